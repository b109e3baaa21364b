"""Rouge-L as MiniLLM and the works after it report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rouge_l(responses: Sequence[str], references: Sequence[str]) -> float:
    """Mean Rouge-L F-measure x 100, with stemming, of each response against its reference.

    Source: Lin 2004, ROUGE; the implementation is the package rouge-score, which the field's tables use.
    """
    scorer = _scorer()
    scores = [scorer.score(ref, res)["rougeL"].fmeasure for res, ref in zip(responses, references, strict=True)]
    return 100 * sum(scores) / len(scores) if scores else float("nan")


def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
