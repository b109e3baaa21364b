"""The table of a sweep: a row for each combination of all axes but the one that is averaged over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from potstill.evaluation.metrics.significance import Interval, holm
from potstill.reporting.formats import number
from potstill.reporting.row_scores import RowScores, read_scores
from potstill.run import Run
from potstill.sweep.cells import Cell, Plan
from potstill.sweep.examples import stacked
from potstill.sweep.folder import STUDENT, Folder, Record, Status, status_of
from potstill.sweep.statistics import Mean, t_mean, two_level_interval


@dataclass(frozen=True)
class CellResult:
    """One cell as the table counts it. ``replicate``: its label on the averaged axis, "" without one.

    ``value``: its figure, None where there is none. ``seconds``: of training, with what the teacher wrote beforehand.
    ``tokens``: that were trained on.
    """

    name: str
    replicate: str
    status: Status
    run: Run
    error: str | None = None
    value: float | None = None
    seconds: float | None = None
    tokens: float | None = None
    scores: RowScores | None = None


@dataclass(frozen=True)
class Difference:
    """A row less the one it is set against, seed by seed. ``p_holm``: for the family of all differences."""

    mean: Mean
    p_holm: float
    two_level: Interval | None


@dataclass(frozen=True)
class Row:
    """One combination: the mean over its cells, and the difference from what it is set against."""

    places: Mapping[str, str]
    cells: tuple[CellResult, ...]
    mean: Mean
    two_level: Interval | None
    seconds: float | None
    tokens: float | None
    difference: Difference | None = None
    counterpart: Mapping[str, str] | None = None  # what it is set against

    @property
    def name(self) -> str:
        """Its place on each axis, in words."""
        return ", ".join(f"{axis} {label}" for axis, label in self.places.items()) or "all cells"


@dataclass(frozen=True)
class Table:
    """All that the pages show."""

    title: str
    metric: str
    axes: tuple[str, ...]
    replicates: str | None
    against: Mapping[str, str]
    rows: tuple[Row, ...]
    changed_files: tuple[str, ...] = ()  # data that was not the same when all cells ran
    targets: tuple[str, ...] = ()  # the forms of text that its students write

    @property
    def family(self) -> int:
        """How many differences p is made right for."""
        return sum(row.difference is not None and row.difference.mean.num > 1 for row in self.rows)


def tabulate(plan: Plan, folder: Folder) -> Table:
    """The table of what is done so far."""
    grid, records = plan.grid, folder.records()
    groups: dict[tuple[tuple[str, str], ...], list[CellResult]] = {}
    for cell in plan.cells:
        result = _result(cell, folder, records.get(cell.key), plan)
        groups.setdefault(cell.without(grid.replicates), []).append(result)
    rows = [averaged(dict(places), cells) for places, cells in groups.items()]
    return Table(
        title=folder.name,
        metric=plan.metric,
        axes=tuple(axis for axis in grid.axes if axis != grid.replicates),
        replicates=grid.replicates,
        against=grid.against,
        rows=tuple(with_differences(rows, grid.against)),
        changed_files=tuple(_changed_files([cell.run for row in rows for cell in row.cells if cell.value is not None])),
        targets=tuple(dict.fromkeys(cell.recipe.stage.data.target for cell in plan.cells)),
    )


def _changed_files(runs: Sequence[Run]) -> Iterator[str]:
    """Files of rows that had other contents in one run than in another."""
    seen: dict[str, set[str]] = {}
    for stage in (stage for run in runs for stage in run.stages or [run]):
        for told in stage.read("data").get("files", {}).values():
            seen.setdefault(told["file"], set()).add(told["sha256"])
    yield from (file for file, hashes in seen.items() if len(hashes) > 1)


def _result(cell: Cell, folder: Folder, record: Record | None, plan: Plan) -> CellResult:
    status = status_of(cell, {cell.key: record} if record else {})
    run = folder.run(cell, record)
    replicate = cell.places.get(plan.grid.replicates or "", "")
    bare = CellResult(run.path.name, replicate, status, run, record.error if record else None)
    if status is not Status.done:
        return bare
    value = number(run.result.read(f"eval/{STUDENT}").get(plan.metric))
    costs = [stage.read("cost") for stage in run.stages or [run]]
    return replace(
        bare,
        value=value,
        seconds=_sum(cost.get(key, 0.0) for cost in costs for key in ("training_s", "teacher_text_s")),
        tokens=_sum(cost.get("tokens") for cost in costs),
        scores=None if value is None else read_scores(run.result, plan.metric, value),
    )


def _sum(values: Iterable[Any]) -> float | None:
    """The sum; None where one is not known."""
    known = list(map(number, values))
    there = [value for value in known if value is not None]
    return sum(there) if len(there) == len(known) else None


def averaged(places: Mapping[str, str], cells: Sequence[CellResult]) -> Row:
    """The row of one combination's cells, without its difference."""
    there = [cell for cell in cells if cell.value is not None]
    return Row(
        places=places,
        cells=tuple(cells),
        mean=t_mean([cell.value for cell in there if cell.value is not None]),
        two_level=_two_level([cell.scores for cell in there]),
        seconds=_mean_of([cell.seconds for cell in there]),
        tokens=_mean_of([cell.tokens for cell in there]),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _two_level(ours: Sequence[RowScores | None], theirs: Sequence[RowScores | None] | None = None) -> Interval | None:
    """The interval over seeds and examples; None for one seed, or without the same examples everywhere."""
    if len(ours) < 2 or not (both := stacked([*ours, *(theirs or ())])):
        return None
    if theirs is None:
        return two_level_interval(both)
    half = len(ours)
    first, second = (
        replace(both, values=both.values[part], weights=both.weights[part])
        for part in (slice(None, half), slice(half, None))
    )
    return two_level_interval(first, second)


# --- Differences ------------------------------------------------------------------------------------------------------


def with_differences(rows: Sequence[Row], against: Mapping[str, str]) -> Iterator[Row]:
    """The rows with their differences, and with p after Holm's correction over those that have one."""
    known = {tuple(row.places.items()): row for row in rows}
    found: list[tuple[Row, Difference | None]] = []
    for row in rows:
        places = {axis: against.get(axis, label) for axis, label in row.places.items()}
        if not against or places == row.places:
            found.append((row, None))
        else:
            other = known.get(tuple(places.items()))
            found.append((replace(row, counterpart=places), _difference(row, other) if other else None))
    family = [difference.mean.p for _, difference in found if difference and difference.mean.num > 1]
    adjusted = iter(holm(family))
    for row, difference in found:
        if difference and difference.mean.num > 1:
            corrected = next(adjusted)
            difference = replace(difference, p_holm=math.nan if math.isnan(difference.mean.p) else corrected)
        yield replace(row, difference=difference)


def _difference(ours: Row, theirs: Row) -> Difference | None:
    """Seed by seed; None where no seed has both."""
    others = {cell.replicate: cell for cell in theirs.cells if cell.value is not None}
    pairs = [
        (cell, others[cell.replicate]) for cell in ours.cells if cell.value is not None and cell.replicate in others
    ]
    if not pairs:
        return None
    values: list[Any] = [(one.value, other.value) for one, other in pairs]
    mean = t_mean([one - other for one, other in values])
    return Difference(
        mean, math.nan, _two_level([one.scores for one, _ in pairs], [other.scores for _, other in pairs])
    )
