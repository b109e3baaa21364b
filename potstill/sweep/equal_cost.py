"""The table of a sweep once more, at one cost for all cells: the largest that every one of them has reached."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from potstill.errors import ConfigError
from potstill.recipe import METRICS_TO_MAXIMISE, METRICS_TO_MINIMISE
from potstill.sweep.budgets import At
from potstill.sweep.curves import Curve, NoCurve, curve
from potstill.sweep.folder import Status
from potstill.sweep.statistics import Mean, t_mean
from potstill.sweep.table import CellResult, Difference, Row, Table, averaged, with_differences

SURE_BELOW = 0.05  # p after Holm's correction
NOT_SHOWN, NO_INTERVAL = "no difference shown", "no interval over {over}"


@dataclass(frozen=True)
class View:
    """A table whose figures are of validation rows, at one cost.

    Args:
        table: the same rows; a cell that has no figure at ``x`` has no value.
        x: the cost.
        curves: by the name of the cell.
        without: why a finished cell has no curve, by its name.
    """

    at: At
    table: Table
    x: float
    curves: Mapping[str, Curve]
    without: Mapping[str, str]

    def of(self, row: Row) -> list[Curve]:
        """The curves of a row's cells."""
        return [self.curves[cell.name] for cell in row.cells if cell.name in self.curves]


def equal_cost(table: Table, at: At) -> View:
    """The view of a table's finished cells along a cost.

    Raises: ConfigError where none of them has a curve along it.
    """
    curves, without = _curves(table, at)
    if not curves:
        causes = ", ".join(dict.fromkeys(without.values())) or "no cell is done"
        raise ConfigError(
            f"nothing to compare at equal {at.words}: {causes}",
            f"give another --at: {', '.join(At)}; or another metric",
        )
    x = min(curve.end for curve in curves.values())
    rows = [averaged(row.places, [_placed(cell, curves, x) for cell in row.cells]) for row in table.rows]
    return View(at, replace(table, rows=tuple(with_differences(rows, table.against))), x, curves, without)


def _curves(table: Table, at: At) -> tuple[dict[str, Curve], dict[str, str]]:
    curves: dict[str, Curve] = {}
    without: dict[str, str] = {}
    for cell in (cell for row in table.rows for cell in row.cells if cell.status is Status.done):
        try:
            curves[cell.name] = curve(cell.run, table.metric, at)
        except NoCurve as reason:
            without[cell.name] = str(reason)
    return curves, without


def _placed(cell: CellResult, curves: Mapping[str, Curve], x: float) -> CellResult:
    """The cell with its figure at ``x`` alone: what its whole run took, and held-out rows, belong to another table."""
    value = curves[cell.name].at(x) if cell.name in curves else math.nan
    return replace(cell, value=value if math.isfinite(value) else None, seconds=None, tokens=None, scores=None)


# --- What may be said of a difference ---------------------------------------------------------------------------------


def verdict(table: Table, difference: Difference) -> str:
    """Lower or higher, where the interval leaves 0 out and p after Holm is below 0.05; nothing else is a result."""
    mean = difference.mean
    if mean.num < 2:
        return NO_INTERVAL.format(over=table.replicates or "seeds")
    if not (mean.low > 0 or mean.high < 0) or not difference.p_holm < SURE_BELOW:
        return NOT_SHOWN
    return f"{'higher' if mean.mean > 0 else 'lower'}{_which_way(table.metric, mean.mean)}"


def _which_way(metric: str, difference: float) -> str:
    if metric not in (*METRICS_TO_MINIMISE, *METRICS_TO_MAXIMISE):
        return ""
    return ", better" if (difference > 0) == (metric in METRICS_TO_MAXIMISE) else ", worse"


# --- Lines to draw ----------------------------------------------------------------------------------------------------


def averaged_curve(curves: Sequence[Curve]) -> list[tuple[float, Mean]]:
    """The mean over seeds with its interval, wherever one of them was validated and all of them were at work."""
    if not curves:
        return []
    first, last = max(curve.begin for curve in curves), min(curve.end for curve in curves)
    return [(x, t_mean([curve.at(x) for curve in curves])) for x in sorted(set(_places(curves))) if first <= x <= last]


def _places(curves: Sequence[Curve]) -> Iterator[float]:
    yield from (x for curve in curves for x, _ in curve.points)
