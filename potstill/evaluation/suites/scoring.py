"""From the rows of a suite to its figures, each with an interval over examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from potstill.data.catalogue.item import Item
from potstill.evaluation.metrics.significance import bootstrap_interval, share_interval
from potstill.evaluation.suites.suite import Row, Scores, Weighed


def mean_scores(rows: Sequence[Row]) -> Scores:
    """Every score of the rows as a mean with its 95% interval; rows without a value are left out of its mean, and
    counted by ``num``."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    return {name: interval(column(rows, name), of_trials=is_of_trials(name)) for name in names}


def is_of_trials(name: str) -> bool:
    """Whether a score is 1 for what happened to an example and 0 for what did not, so that its mean is a share."""
    return name.startswith(("accuracy", "exact_match", "parse_failure", "frame_agreement"))


def column(rows: Sequence[Row], name: str) -> list[float | None]:
    """One score of every row."""
    return [row["scores"].get(name) for row in rows]


class ByPrimary:
    """What most protocols have in common: any item can be asked, in one frame, and each counts the same in
    the primary figure."""

    primary: str
    max_frames: int | None = 1
    better: Literal["higher", "lower"] = "higher"

    def check(self, item: Item) -> None:
        """Any item can be asked."""

    def of_each(self, rows: Sequence[Row]) -> list[Weighed | None]:
        return [None if value is None else Weighed(value) for value in column(rows, self.primary)]


def interval(values: Sequence[float | None], *, of_trials: bool = False) -> dict[str, Any]:
    """A mean with its 95% interval, over the values that are there; ``of_trials``: they are 0 or 1."""
    there = np.array([value for value in values if value is not None], dtype=float)
    if not len(there):
        return {"mean": None, "low": None, "high": None, "num": 0}
    low, high = share_interval(there) if of_trials else bootstrap_interval(there)
    return {"mean": float(there.mean()), "low": low, "high": high, "num": len(there)}


def by_group(rows: Sequence[Row], name: str) -> dict[str, dict[str, Any]]:
    """One score by the part of the data set, where it has parts."""
    groups = sorted({row["group"] for row in rows} - {""})
    if len(groups) < 2:
        return {}
    of_trials = is_of_trials(name)
    of_group = {group: [row for row in rows if row["group"] == group] for group in groups}
    return {group: interval(column(some, name), of_trials=of_trials) for group, some in of_group.items()}
