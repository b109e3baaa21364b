"""Scores of several runs on the same examples, put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.reporting.row_scores import RowScores
from potstill.sweep.statistics import Examples


def stacked(runs: Sequence[RowScores | None]) -> Examples | None:
    """Scores of several runs of the same examples; None where they are not the same, or not all known."""
    there = [scores for scores in runs if scores is not None]
    if len(there) < len(runs) or len({(scores.ids, scores.is_log) for scores in there}) != 1:
        return None
    values, weights = (np.stack([getattr(scores, name) for scores in there]) for name in ("values", "weights"))
    return Examples(values, weights, there[0].is_log)
