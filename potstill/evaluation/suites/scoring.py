"""From the rows of a suite to its figures, each with an interval over examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.evaluation.metrics.significance import bootstrap_interval
from potstill.evaluation.suites.suite import Row, Scores, Weighed


def mean_scores(rows: Sequence[Row]) -> Scores:
    """Every score of the rows as a mean with its 95% interval; rows without a value are left out of its mean, and
    counted by ``num``."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    return {name: interval(column(rows, name)) for name in names}


def column(rows: Sequence[Row], name: str) -> list[float | None]:
    """One score of every row."""
    return [row["scores"].get(name) for row in rows]


def weighed(rows: Sequence[Row], name: str) -> list[Weighed | None]:
    """One score of every row, all of the same weight."""
    return [None if value is None else Weighed(value) for value in column(rows, name)]


def interval(values: Sequence[float | None]) -> dict[str, Any]:
    """A mean with its 95% interval, over the values that are there."""
    there = np.array([value for value in values if value is not None], dtype=float)
    if not len(there):
        return {"mean": None, "low": None, "high": None, "num": 0}
    low, high = bootstrap_interval(there)
    return {"mean": float(there.mean()), "low": low, "high": high, "num": len(there)}


def by_group(rows: Sequence[Row], name: str) -> dict[str, dict[str, Any]]:
    """One score by the part of the data set, where it has parts."""
    groups = sorted({row["group"] for row in rows} - {""})
    if len(groups) < 2:
        return {}
    return {group: interval(column([row for row in rows if row["group"] == group], name)) for group in groups}
