"""Rouge as MiniLLM and the works after it report it. Words are runs of a-z and 0-9: text of another script scores 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge_l_scores(responses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Rouge-L F-measure x 100 of each response against the best of its references; see ``rouge_scores``."""
    return rouge_scores(responses, references, kinds=("rougeL",))["rougeL"]


def rouge_scores(
    responses: Sequence[str], references: Sequence[Sequence[str]], kinds: Sequence[str] = KINDS
) -> dict[str, list[float]]:
    """F-measures x 100, with stemming, of each response: per kind the largest over its references.

    Args:
        responses: texts; an empty one scores 0.
        references: of each response, one or more.
        kinds: names of rouge-score; its ``rougeL`` takes a text as one sentence, whatever lines it has.
    Returns: by kind, one value for each response, from 0 to 100.
    Raises: ValueError where a response has no reference, or the counts differ.
    Source: Lin 2004, ROUGE; the implementation is the package rouge-score.
    """
    scorer = _scorer(kinds)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for at, (response, allowed) in enumerate(zip(responses, references, strict=True)):
        if isinstance(allowed, str) or not allowed:
            raise ValueError(f"example {at}: give a list of one or more references")
        scores = [scorer.score(reference, response) for reference in allowed]
        for kind in kinds:
            found[kind].append(100 * max(score[kind].fmeasure for score in scores))
    return found


def _scorer(kinds: Sequence[str]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=True)
