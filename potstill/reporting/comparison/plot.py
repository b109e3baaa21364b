"""Quality against cost as inline SVG: a small chart for each measure, a numbered point for each trained model.

As in ``plots``, a chart holds numbers and nothing else, and its colours are the page's: names, which may be long or
hostile, stand in a list beside the charts, which the template escapes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

from potstill.reporting import plots
from potstill.reporting.comparison.table import Cell, Entry, Measure, Table
from potstill.reporting.formats import number
from potstill.reporting.plots import BASELINE, GRID, LOG_ABOVE, RC, STUDENT, TEXT, UNTOUCHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWABLE = 1e100  # beyond it an axis has no room left for margins
POINTS_PER_INCH = 72
ANGLES = (45, 135, -45, -135, 0, 180, 20, 160, -20, -160, 70, 110, -70, -110, 90, -90)  # of a number from its point
Box: TypeAlias = tuple[float, float, float, float]  # left, bottom, right, top, in points (1/72 inch)


@dataclass(frozen=True)
class Point:
    """A trained model: its number in the list, what it cost, its figure as shown, and the interval where it has one."""

    number: int
    is_sft: bool
    x: float
    y: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Chart:
    """A measure against a cost. ``left_out``: numbers of trained models of which one of the two is not known."""

    title: str
    axis: str
    points: tuple[Point, ...]
    teachers: tuple[float, ...]
    untouched: tuple[float, ...]
    left_out: tuple[int, ...]

    @property
    def log_x(self) -> bool:
        return _far_apart([point.x for point in self.points])

    @property
    def log_y(self) -> bool:
        bars = [end for point in self.points for end in point.interval or ()]
        return _far_apart([*(point.y for point in self.points), *bars, *self.teachers, *self.untouched])


@dataclass(frozen=True)
class Axis:
    """A cost. ``always``: drawn even where all models have the same."""

    title: str
    label: str
    of: Callable[[Entry], object]
    always: bool = False


AXES = (
    Axis("By training time", "training, seconds", lambda entry: entry.cost and entry.cost.training_s, always=True),
    Axis("By size", "parameters", lambda entry: entry.num_parameters),
    Axis("By the teacher's tokens", "teacher's tokens", lambda entry: entry.cost and entry.cost.teacher_tokens),
)


def numbers(table: Table) -> dict[str, int]:
    """The number of each trained model's point, by entry key: 1, 2, ... in the order of the table."""
    trained = [entry.key for entry in table.entries if entry.is_trained]
    return {key: at for at, key in enumerate(trained, start=1)}


def charts(table: Table) -> list[tuple[str, list[Chart]]]:
    """Charts by cost, under its title: training time, then what trained models differ in of size and teacher tokens."""
    groups = []
    for axis in AXES:
        costs = {number(axis.of(entry)) for entry in table.entries if entry.is_trained} - {None}
        if axis.always or len(costs) > 1:
            found = [chart for at in range(len(table.measures)) if (chart := _chart(table, at, axis))]
            groups += [(axis.title, found)] if found else []
    return groups


def svg(chart: Chart, prefix: str) -> str:
    """The chart as an <svg> element, the same bytes for the same chart.

    Args:
        chart: what to draw.
        prefix: put before every id, so that several charts can stand in one page.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(plots.WIDTH, plots.HEIGHT), dpi=POINTS_PER_INCH)
        FigureCanvasSVG(figure)
        figure.subplots_adjust(**plots.MARGINS)
        _draw(figure.add_subplot(), chart)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    label = f"{chart.title} by {chart.axis}, a numbered point for each trained model"
    return plots.inline(target.getvalue(), label, prefix)


# --- What is drawn ----------------------------------------------------------------------------------------------------


def _chart(table: Table, at: int, axis: Axis) -> Chart | None:
    """None where no trained model has both figure and cost."""
    measure, cells = table.measures[at], table.cells[at]
    numbered = numbers(table)
    trained = [entry for entry in table.entries if entry.key in numbered]
    points = [
        point
        for entry in trained
        if (cell := cells.get(entry.key)) and (point := _point(measure, entry, cell, axis, numbered[entry.key]))
    ]
    drawn = {point.number for point in points}
    left_out = tuple(found for found in numbered.values() if found not in drawn)
    teachers, untouched = (tuple(_levels(table, at, role)) for role in ("teacher", "untouched"))
    return Chart(measure.name, axis.label, tuple(points), teachers, untouched, left_out) if points else None


def _point(measure: Measure, entry: Entry, cell: Cell, axis: Axis, at: int) -> Point | None:
    x, y = _drawable(axis.of(entry)), _drawable(measure.shown(cell.mean))
    low, high = (_drawable(measure.shown(end)) for end in cell.interval)
    if x is None or y is None:
        return None
    return Point(at, entry.is_sft, x, y, None if low is None or high is None else (low, high))


def _levels(table: Table, at: int, role: str) -> Iterator[float]:
    """The figures of models that stand as lines."""
    cells = [table.cells[at].get(entry.key) for entry in table.entries if entry.role == role]
    found = [_drawable(table.measures[at].shown(cell.mean)) for cell in cells if cell]
    yield from dict.fromkeys(level for level in found if level is not None)


def _drawable(value: object) -> float | None:
    found = number(value)
    return found if found is not None and abs(found) < DRAWABLE else None


def _far_apart(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > LOG_ABOVE


# --- Drawing ----------------------------------------------------------------------------------------------------------


def _draw(axes: Axes, chart: Chart) -> None:
    for levels, colour, dashes in ((chart.teachers, TEXT, (5, 2)), (chart.untouched, UNTOUCHED, (1, 1.5))):
        for level in levels:
            axes.axhline(level, color=colour, linestyle=(0, dashes), linewidth=1.2)
    for point in chart.points:
        colour = BASELINE if point.is_sft else STUDENT
        if point.interval:
            axes.plot([point.x, point.x], point.interval, color=colour, linewidth=1.2)
        marker = "s" if point.is_sft else "o"
        axes.plot([point.x], [point.y], color=colour, marker=marker, markersize=5, clip_on=False)  # a cost may be 0
    _scale(axes, chart)
    _label(axes, chart.points)


def _scale(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter

    axes.set_axisbelow(True)
    axes.margins(0.12)
    if chart.log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        if all(point.x >= 0 for point in chart.points):
            axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    if chart.log_y:
        axes.set_yscale("log")
    large = max(point.x for point in chart.points) >= 10_000
    axes.xaxis.set_major_formatter(EngFormatter() if large else FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(chart.axis)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Each point's number beside it, where it hides neither another point nor another number."""
    axes.get_xlim(), axes.get_ylim()  # settles the limits, on which places depend
    taken = [box for point in points for box in _ink(axes, point)]
    for point in points:
        at = axes.transData.transform((point.x, point.y))
        dx, dy = _free_place(axes, (float(at[0]), float(at[1])), taken)
        taken.append(_around(at[0] + dx, at[1] + dy))
        line = {"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            str(point.number),
            (point.x, point.y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=9,
            arrowprops=line if math.hypot(dx, dy) > 12 else None,
        )


def _ink(axes: Axes, point: Point) -> Iterator[Box]:
    """Where the point and its error bar are."""
    x, y = axes.transData.transform((point.x, point.y))
    yield _around(x, y, 3, 3)
    if point.interval:
        low, high = (axes.transData.transform((point.x, end))[1] for end in point.interval)
        yield x - 1, low, x + 1, high


def _free_place(axes: Axes, at: tuple[float, float], taken: Sequence[Box]) -> tuple[float, float]:
    """Where a number may stand, from its point; right above it where all is full."""
    frame = axes.bbox
    places = [
        (radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle)))
        for radius, angle in product((10, 18, 27, 38, 50), ANGLES)
    ]
    for dx, dy in places:
        box = _around(at[0] + dx, at[1] + dy)
        inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
        if inside and not any(_overlap(box, other) for other in taken):
            return dx, dy
    return places[0]


def _around(x: float, y: float, half_width: float = 6, half_height: float = 5) -> Box:
    """A box around a place; as large as a number of two digits where nothing else is said."""
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
