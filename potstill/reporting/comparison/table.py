"""What a comparison is made of, and its statistics: models, what was measured of each example, and what that is worth.

Nothing here knows of run folders or suites: see ``gathered`` for those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from potstill.evaluation.metrics.significance import (
    Difference,
    GapClosed,
    Interval,
    bootstrap_interval,
    gap_closed,
    holm,
    paired_difference,
    share_interval,
)

Role: TypeAlias = Literal["teacher", "untouched", "sft", "student"]
SURE = 0.05  # p after Holm's correction, below which a difference counts as sure
Key: TypeAlias = str  # of an example: equal where two models were asked the same


@dataclass(frozen=True)
class Cost:
    """What a training has cost. Tokens over all processes; None where an older run did not count them."""

    training_s: float | None
    teacher_tokens: int | None
    student_tokens: int | None


@dataclass(frozen=True)
class Entry:
    """A model of the comparison.

    ``key`` is what `potstill evaluate` calls it; ``name`` is for people. ``cost`` is None for a model that was not
    trained here.
    """

    key: str
    name: str
    role: Role
    method: str | None = None
    cost: Cost | None = None
    num_parameters: float | None = None
    size_on_disk_bytes: float | None = None
    tokens_per_s: float | None = None

    @property
    def is_trained(self) -> bool:
        return self.role in ("sft", "student")

    @property
    def is_sft(self) -> bool:
        """Whether it was fine-tuned on text alone, as a run's baseline or as a run of its own."""
        return self.role == "sft" or self.method == "sft"


@dataclass(frozen=True)
class Measure:
    """One figure, of each example and model.

    Args:
        name: "forward KL (nats)", "dolly: rouge l greedy".
        better: which way.
        scores: by entry, then by example; the weighted mean of an entry's is its figure.
        of_trials: whether each score is 0 or 1.
        weights: of examples in that mean, their tokens say; an example that is not there has weight 1.
        told: how the models were asked, in a line.
        unit: how a mean is shown: as it is, as a percentage, or as exp of it.
        between: for each entry, the keys of the untouched student and the teacher that its gap lies between.
    """

    name: str
    better: Literal["lower", "higher"]
    scores: Mapping[str, Mapping[Key, float]]
    told: str = ""
    unit: Literal["plain", "percent", "perplexity"] = "plain"
    between: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    weights: Mapping[Key, float] = field(default_factory=dict)
    of_trials: bool = False

    def shown(self, value: float) -> float:
        """A mean in the unit that it is shown in."""
        if self.unit == "perplexity":
            return math.exp(min(value, 700.0))
        return 100 * value if self.unit == "percent" else value


@dataclass(frozen=True)
class Against:
    """A model less the baseline, on the examples that both were asked; ``p_holm`` is right for the whole table."""

    difference: Difference
    p_holm: float
    num: int

    @property
    def is_sure(self) -> bool:
        return self.p_holm < SURE


@dataclass(frozen=True)
class Cell:
    """A model's figure: mean and 95% interval in the measure's own unit, over ``num`` examples.

    ``gap`` is the share of the way from untouched student to teacher; ``against`` the difference from the baseline.
    Each is None where it means nothing: for the teacher itself, say, or without common examples.
    """

    mean: float
    interval: Interval
    num: int
    gap: GapClosed | None = None
    against: Against | None = None


@dataclass(frozen=True)
class Table:
    """Cells by measure (in order) and entry key; a model that was not measured has none."""

    entries: tuple[Entry, ...]
    measures: tuple[Measure, ...]
    baseline: Entry | None
    cells: tuple[Mapping[str, Cell], ...]

    def rows(self) -> Iterator[tuple[Entry, list[Cell | None]]]:
        """Each model with its cell in each measure."""
        return ((entry, [cells.get(entry.key) for cells in self.cells]) for entry in self.entries)


def tabulate(entries: Sequence[Entry], measures: Sequence[Measure], baseline: Entry | None) -> Table:
    """Every figure with its interval, its share of the gap, and what it is more than chance.

    All models but the teachers are set against the baseline, in every measure, and all these p are one family.
    """
    found = [
        (at, entry.key, pair)
        for at, measure in enumerate(measures)
        for entry in entries
        if baseline and entry.role != "teacher" and (pair := _difference(measure, entry, baseline))
    ]
    adjusted = holm([difference.p for _, _, (difference, _) in found])
    against = {
        (at, key): Against(difference, p, num) for (at, key, (difference, num)), p in zip(found, adjusted, strict=True)
    }
    cells = tuple(
        {e.key: _cell(m, e, against.get((at, e.key))) for e in entries if m.scores.get(e.key)}
        for at, m in enumerate(measures)
    )
    return Table(tuple(entries), tuple(measures), baseline, cells)


def _cell(measure: Measure, entry: Entry, against: Against | None) -> Cell:
    examples = list(measure.scores[entry.key])
    (values,), weights = _columns(measure, (entry.key,), examples)
    mean = float(np.average(values, weights=weights))
    ends = share_interval(values) if measure.of_trials else bootstrap_interval(values, weights=weights)
    return Cell(mean, ends, len(values), _gap(measure, entry), against)


def _gap(measure: Measure, entry: Entry) -> GapClosed | None:
    """The share of the gap that an own student closed, on examples that all three models were asked."""
    ends = measure.between.get(entry.key)
    if not ends or not entry.is_trained:
        return None
    columns, weights = _common(measure, (entry.key, *ends))
    return gap_closed(*columns, weights=weights) if weights else None


def _difference(measure: Measure, entry: Entry, baseline: Entry) -> tuple[Difference, int] | None:
    if entry.key == baseline.key:
        return None
    columns, weights = _common(measure, (entry.key, baseline.key))
    return (paired_difference(*columns, weights=weights), len(weights)) if weights else None


def _common(measure: Measure, keys: Sequence[str]) -> tuple[list[list[float]], list[float]]:
    """The scores of some models on the examples that all of them were asked, and the examples' weights."""
    first, *others = (measure.scores.get(key, {}) for key in keys)
    return _columns(measure, keys, [example for example in first if all(example in other for other in others)])


def _columns(measure: Measure, keys: Sequence[str], examples: Sequence[Key]) -> tuple[list[list[float]], list[float]]:
    columns = [[measure.scores[key][example] for example in examples] for key in keys if key in measure.scores]
    return columns, [measure.weights.get(example, 1.0) for example in examples]
