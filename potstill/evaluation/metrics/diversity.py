"""How varied a model's responses are, from their token ids alone. What cannot be computed is nan, never 0."""

from __future__ import annotations

import importlib
import math
from collections.abc import Hashable, Sequence
from typing import Any

Response = Sequence[int]


def diversity(responses: Sequence[Response], stop_id: int) -> dict[str, float]:
    """What responses tell by themselves. Their end token counts for nothing but ``finished_share``.

    Args:
        responses: token ids, the end token included where it was written. stop_id: that token.
    Returns: ``distinct_1`` to ``distinct_3``, ``self_bleu`` (0 to 1), ``repeated_4gram_rate``,
        ``response_tokens_mean``, and ``finished_share``: of responses that ended and were not cut.
    """
    finished = [tuple(response[-1:]) == (stop_id,) for response in responses]
    texts = [response[:-1] if ended else response for response, ended in zip(responses, finished, strict=True)]
    return {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)} | {
        "self_bleu": self_bleu(texts),
        "repeated_4gram_rate": repeated_ngram_rate(texts, 4),
        "response_tokens_mean": mean_length(texts),
        "finished_share": _mean(finished),
    }


def distinct_n(responses: Sequence[Sequence[Hashable]], n: int) -> float:
    """Share of all n-grams that are different ones, over all responses together; nan where there are no n-grams.

    It falls as there is more text: compare it only between equally many responses of about the same length.

    Args:
        responses: token ids, or words. n: of them in a row, 1 or more.
    Raises: ValueError if n < 1.
    Source: Li et al. 2016, arXiv:1510.03055, but divided by the number of n-grams, and not of tokens, so that it is 1
        where nothing is repeated.
    """
    found = [gram for response in responses for gram in _ngrams(response, n)]
    return len(set(found)) / len(found) if found else math.nan


def repeated_ngram_rate(responses: Sequence[Response], n: int = 4) -> float:
    """Share of a response's n-grams that stood in it before, mean over the responses that have any; nan where none has.

    Args:
        responses: token ids. n: tokens in a row, 1 or more.
    Raises: ValueError if n < 1.
    Source: Welleck et al. 2020, arXiv:1908.04319 (seq-rep-n).
    """
    per_response = [grams for response in responses if (grams := _ngrams(response, n))]
    return _mean([1 - len(set(grams)) / len(grams) for grams in per_response])


def self_bleu(responses: Sequence[Response]) -> float:
    """Mean BLEU-4, from 0 to 1, of each response with all the others as its references; high where all are alike.

    Responses without tokens are left out, and fewer than two leave nan. BLEU is nltk's, with 0.1 for a count of 0
    (its smoothing 1). A response of fewer than four tokens is scored on the n-grams it can have. Takes time with the
    square of the number of responses.

    Args:
        responses: token ids.
    Source: Zhu et al. 2018, Texygen, arXiv:1802.01886.
    """
    written = [list(response) for response in responses if response]
    if len(written) < 2:
        return math.nan
    bleu, smoothing = _bleu()
    return _mean(
        [
            bleu(written[:at] + written[at + 1 :], response, smoothing_function=smoothing, auto_reweigh=True)
            for at, response in enumerate(written)
        ]
    )


def mean_length(responses: Sequence[Response]) -> float:
    """Tokens of a response, mean over responses; nan where there are none."""
    return _mean([len(response) for response in responses])


def _ngrams(response: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise ValueError(f"n-grams of {n} tokens: give n of 1 or more")
    return [tuple(response[at : at + n]) for at in range(len(response) - n + 1)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _bleu() -> tuple[Any, Any]:
    """nltk's BLEU and its smoothing, imported where they are needed: nltk takes a second."""
    bleu = importlib.import_module("nltk.translate.bleu_score")
    return bleu.sentence_bleu, bleu.SmoothingFunction().method1
