"""What a summary is like beside its article, and the lead of the article as a baseline."""

from __future__ import annotations

import math
import re

from potstill.evaluation.metrics.text import normalised, num_words

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
NGRAMS = (1, 2, 3, 4)


def sentences(text: str) -> list[str]:
    """The sentences of a text, their ends being ``.``, ``!`` or ``?`` before white space.

    A known limit: an abbreviation ends one too ("Mr. Smith" is two), and a closing quote after the stop hides the end.
    """
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def lead(article: str, num_sentences: int = 3) -> str:
    """The first sentences of an article, joined by spaces: the baseline lead-3.

    Raises: ValueError for fewer than one sentence.
    """
    if num_sentences < 1:
        raise ValueError(f"a lead of {num_sentences} sentences: give 1 or more")
    return " ".join(sentences(article)[:num_sentences])


def novelty(summary: str, article: str, n: int) -> float:
    """Share of the summary's n-grams that are nowhere in the article, from 0 to 1; nan where it has none.

    Words are compared in lower case without punctuation, and an n-gram counts as often as it is written.

    Args:
        n: words in a row, 1 or more.
    Raises: ValueError if n < 1.
    Source: See et al. 2017, arXiv:1704.04368, section 7.2, whose words were those of another tokeniser.
    """
    known = set(_ngrams(article, n))
    written = _ngrams(summary, n)
    return sum(gram not in known for gram in written) / len(written) if written else math.nan


def compression(summary: str, article: str) -> float:
    """Words of the article for each word of the summary; nan where the summary is empty.

    Source: Grusky et al. 2018, Newsroom, arXiv:1804.11283, section 4.
    """
    words = num_words(summary)
    return num_words(article) / words if words else math.nan


def summary_figures(summary: str, article: str) -> dict[str, float]:
    """``novelty_1`` to ``novelty_4``, ``compression`` and ``words`` of one summary; nan is what it is too short for."""
    return {f"novelty_{n}": novelty(summary, article, n) for n in NGRAMS} | {
        "compression": compression(summary, article),
        "words": float(num_words(summary)),
    }


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n-grams of {n} words: give n of 1 or more")
    words = normalised(text).split()
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
