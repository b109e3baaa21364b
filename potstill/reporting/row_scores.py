"""What a run measured of each held-out example, as far as it makes up the run's figure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from potstill.evaluation.evaluator import COMPARED
from potstill.run import Run

STUDENT = "student_after"
SAME = 1e-4  # how near to the figure, relatively, what the examples give must come


@dataclass(frozen=True)
class RowScores:
    """Of one run: which examples, and the value and weight of each; the figure is their weighted mean, or exp of it."""

    ids: tuple[str, ...]
    values: Float[np.ndarray, " example"]
    weights: Float[np.ndarray, " example"]
    is_log: bool


def read_scores(run: Run, metric: str, figure: float) -> RowScores | None:
    """The scores behind a run's figure; None where the rows do not hold them, or do not give that figure."""
    is_log = metric == "perplexity"
    score = "nats" if is_log else metric
    rows = [row for row in run.rows(STUDENT) if score in row["scores"]]
    if not rows:
        return None
    of_tokens = is_log or metric in COMPARED  # sums over an example's tokens
    weights = np.array([float(row["scores"]["tokens"]) if of_tokens else 1.0 for row in rows])
    values = np.array([float(row["scores"][score]) for row in rows]) / weights
    found = RowScores(tuple(f"{row['id']}\n{row['input']}" for row in rows), values, weights, is_log)
    mean = float(np.average(values, weights=weights))
    if not math.isclose(math.exp(mean) if is_log else mean, figure, rel_tol=SAME, abs_tol=SAME * 1e-3):
        return None
    return found
