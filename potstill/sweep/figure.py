"""The figure of a sweep: the metric against one axis, a line for each other combination, with intervals over seeds.

Unlike the charts of a report it carries its own words, for it is also written as figure.svg and figure.png. They are
the user's own: keys and values of the grid file, made harmless and escaped by the writer of the SVG.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.reporting import plots
from potstill.reporting.plots import BASELINE, GRID, LOG_ABOVE, RC, STUDENT, TEXT, UNTOUCHED
from potstill.reporting.text import one_line
from potstill.run import write_text
from potstill.sweep.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # of facets
PANEL = (3.6, 2.7)  # inches
COLOURS = (STUDENT, BASELINE, UNTOUCHED, TEXT)
DASHES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v")
DODGE = 3.0  # points between lines, so that bars of one place do not hide each other
PAPER = {TEXT: "#1f2023", GRID: "#dedad3", STUDENT: "#a94f1d", BASELINE: "#2b6a99", UNTOUCHED: "#6b7078"}


@dataclass(frozen=True)
class Point:
    """A mean at a place on the axis; ``low`` and ``high`` are nan where it has no interval."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A combination of the other axes, or "" where there is no other."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """What is drawn. ``ticks``: labels at 0, 1, 2, .. where the axis is not of numbers. ``panels``: title and lines."""

    x: str
    y: str
    ticks: tuple[str, ...]
    line_axis: str
    panels: tuple[tuple[str, tuple[Line, ...]], ...]

    @property
    def labels(self) -> list[str]:
        """The lines' names, each once; a line has the same look in all panels."""
        return list(dict.fromkeys(line.label for _, lines in self.panels for line in lines))

    @property
    def log_x(self) -> bool:
        """Whether the axis is logarithmic: of numbers that are far apart, or each the same multiple of the last."""
        if self.ticks or self.places[0] <= 0:
            return False
        steps = [later / earlier for earlier, later in pairwise(self.places)]
        is_geometric = len(steps) > 1 and max(steps) < 1.01 * min(steps)
        return is_geometric or self.places[-1] / self.places[0] > LOG_ABOVE

    @property
    def places(self) -> list[float]:
        """The places on the axis that have a point, in order."""
        return sorted({point.x for _, lines in self.panels for line in lines for point in line.points})


def chart(table: Table, x: str | None) -> Chart | None:
    """The chart of a table along the axis ``x``; None without such an axis, or where nothing is measured yet.

    Lines are along the axis of ``against``, else the first of the others; where more axes are left, each combination
    of those has a panel of its own.
    """
    rows = [row for row in table.rows if math.isfinite(row.mean.mean)]
    if x is None or not rows:
        return None
    others = [axis for axis in table.axes if axis != x]
    line_axis = next((axis for axis in others if axis in table.against), others[0] if others else "")
    labels = list(dict.fromkeys(row.places[x] for row in table.rows))
    numbers = _numbers(labels)
    at = numbers or {label: float(place) for place, label in enumerate(labels)}
    panels: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        title = ", ".join(f"{axis} {row.places[axis]}" for axis in others if axis != line_axis)
        lines = panels.setdefault(one_line(title), {})
        lines.setdefault(one_line(row.places.get(line_axis, "")), []).append(_point(row, at[row.places[x]]))
    made = tuple(
        (title, tuple(Line(label, tuple(sorted(points, key=lambda point: point.x))) for label, points in lines.items()))
        for title, lines in panels.items()
    )
    ticks = () if numbers else tuple(map(one_line, labels))
    return Chart(one_line(x), one_line(table.metric), ticks, one_line(line_axis), made)


def _point(row: Row, x: float) -> Point:
    return Point(x, row.mean.mean, row.mean.low, row.mean.high)


def _numbers(labels: Sequence[str]) -> dict[str, float] | None:
    """The labels as numbers, where all of them are."""
    try:
        found = {label: float(label) for label in labels}
    except ValueError:
        return None
    return found if all(map(math.isfinite, found.values())) else None


# --- Drawing ----------------------------------------------------------------------------------------------------------


def write_files(chart: Chart, folder: Path) -> None:
    """Write figure.svg and figure.png, each whole or not at all."""
    write_text(folder / "figure.svg", _drawn(chart, PAPER, "svg").decode())
    temporary = folder / f".figure.png.{os.getpid()}"
    temporary.write_bytes(_drawn(chart, PAPER, "png"))
    os.replace(temporary, folder / "figure.png")


def inline(chart: Chart) -> str:
    """The chart as an <svg> element in the colours of the page."""
    return plots.inline(_drawn(chart, {}, "svg").decode(), f"{chart.y} by {chart.x}, with 95% intervals", "sweep")


def _drawn(chart: Chart, colours: Mapping[str, str], kind: str) -> bytes:
    """The figure's bytes, the same for the same chart."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    style = {key: colours.get(value, value) if isinstance(value, str) else value for key, value in RC.items()}
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), dpi=150, layout="constrained")
        (FigureCanvasSVG if kind == "svg" else FigureCanvasAgg)(figure)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, (title, lines) in zip(axes.flat, chart.panels, strict=False):
            _draw(panel, chart, title, lines, colours)
        for empty in axes.flat[len(chart.panels) :]:
            empty.set_visible(False)
        _legend(figure, chart, colours)
        target = io.BytesIO()
        dates = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(target, format=kind, transparent=kind == "svg", metadata=dates)
    return target.getvalue()


def _draw(axes: Axes, chart: Chart, title: str, lines: Sequence[Line], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter
    from matplotlib.transforms import ScaledTranslation

    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9)
    if chart.log_x:
        axes.set_xscale("log")
    for line in lines:
        at = chart.labels.index(line.label)
        aside = DODGE * (at - (len(chart.labels) - 1) / 2) / 72
        assert axes.figure is not None
        shifted = axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
        look = line_look(at, colours)
        xs, means = [point.x for point in line.points], [point.mean for point in line.points]
        axes.plot(xs, means, transform=shifted, **look)
        axes.update_datalim([(point.x, end) for point in line.points for end in _ends(point)])
        for point in line.points:
            if math.isfinite(point.low):
                axes.plot([point.x] * 2, _ends(point), transform=shifted, color=look["color"], linewidth=1.0)
    axes.autoscale_view()
    axes.margins(0.08)
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), chart.ticks)
    else:
        axes.set_xticks(chart.places)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(chart.x)
    if axes.get_subplotspec() is not None and axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel(chart.y)


def _ends(point: Point) -> tuple[float, float]:
    return (point.low, point.high) if math.isfinite(point.low) else (point.mean, point.mean)


def line_look(at: int, colours: Mapping[str, str]) -> dict[str, Any]:
    """The colour, dashes and marker of a line: different for the first 20."""
    colour = COLOURS[at % len(COLOURS)]
    dashes = DASHES[at // len(COLOURS) % len(DASHES)]
    return {"color": colours.get(colour, colour), "linestyle": dashes, "marker": MARKERS[at % len(MARKERS)]}


def _legend(figure: Figure, chart: Chart, colours: Mapping[str, str]) -> None:
    """The lines' names below all panels, where there are several."""
    from matplotlib.lines import Line2D

    if len(chart.labels) > 1:
        handles = [Line2D([], [], **line_look(at, colours)) for at in range(len(chart.labels))]
        title, columns = chart.line_axis, min(4, len(chart.labels))
        figure.legend(handles, chart.labels, title=title, loc="outside lower center", ncols=columns, frameon=False)
