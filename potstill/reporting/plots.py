"""Curves of a run as inline SVG: one small chart for each metric, drawn without a display and without global state.

A chart holds numbers and nothing else. Its title, which may come from a user, is put beside it by the template, which
escapes it. Colours are the page's CSS variables, so that one drawing serves light and dark.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from potstill.reporting.formats import number
from potstill.reporting.text import one_line
from potstill.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_ABOVE = 30.0  # ratio of largest to smallest value from which a logarithmic axis shows more
MARKERS_BELOW = 30  # points
WIDTH, HEIGHT = 4.4, 2.5  # inches
MARGINS = {"left": 0.15, "right": 0.99, "top": 0.97, "bottom": 0.19}  # fixed: quicker, and axes stand in line

# Colours drawn, and what stands in the SVG for them.
TEXT, GRID, STUDENT, BASELINE, UNTOUCHED = "#000001", "#000002", "#000003", "#000004", "#000005"
PAGE_COLOURS = {
    TEXT: "currentColor",
    GRID: "var(--line)",
    STUDENT: "var(--student)",
    BASELINE: "var(--baseline)",
    UNTOUCHED: "var(--untouched)",
}
RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "potstill",  # the same run gives the same bytes
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
}


@dataclass(frozen=True)
class Series:
    """One line: its colour, its dashes, and points (step, value) with None where the value was not finite."""

    colour: str
    dashes: str
    points: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class Chart:
    """One metric. ``untouched`` is the student's value before training, where it is known."""

    title: str
    series: tuple[Series, ...]
    untouched: float | None = None
    may_be_log: bool = True

    @property
    def log(self) -> bool:
        """Whether the axis is logarithmic: where values are far apart."""
        values = [value for line in self.series for _, value in line.points if value is not None]
        values += [self.untouched] if self.untouched is not None else []
        return self.may_be_log and bool(values) and min(values) > 0 and max(values) / min(values) > LOG_ABOVE


def training_charts(run: Run) -> list[Chart]:
    """The student's loss and its terms, then the baseline's loss: on axes of its own, for it may be another loss."""
    own, baseline = run.metrics(), run.baseline.metrics()
    loss = _points(own, "train/loss")
    terms = [key for key in _keys(own, "train/") if key != "train/loss" and _points(own, key) != loss]
    charts = [Chart(key, (_student(own, key),)) for key in ["train/loss", *terms]]
    charts += [Chart("train/loss of the equal-time SFT baseline", (_baseline(baseline, "train/loss"),))]
    return [chart for chart in charts if chart.series[0].points]


def validation_charts(run: Run) -> list[Chart]:
    """Each validation figure by step, student and baseline together, with the untouched student's held-out value."""
    own, baseline = run.metrics(), run.baseline.metrics()
    untouched = run.evaluations().get("student_before", {})
    charts = []
    for key in _keys(own, "validation/"):
        name = key.removeprefix("validation/")
        if not name.endswith("_stderr") and not name.startswith("num_"):
            lines = (_student(own, key), _baseline(baseline, key))
            charts.append(Chart(key, tuple(line for line in lines if line.points), number(untouched.get(name))))
    return charts


def text_charts(run: Run) -> list[Chart]:
    """What the sources tell of the student's text, and the share of its tokens that a term was about."""
    return [*_all_charts(run, "source/"), *_all_charts(run, "select/")]


def schedule_charts(run: Run) -> list[Chart]:
    """Settings that change while the student is trained."""
    return _all_charts(run, "schedule/")


def optimiser_charts(run: Run) -> list[Chart]:
    """Learning rate and gradient norm of the student. A rate ends near 0, which a logarithm would blow up."""
    own = run.metrics()
    charts = [Chart(key, (_student(own, key),), may_be_log=False) for key in ("optim/learning_rate", "optim/grad_norm")]
    return [chart for chart in charts if chart.series[0].points]


def svg(chart: Chart, prefix: str) -> str:
    """The chart as an <svg> element.

    Args:
        chart: what to draw.
        prefix: put before every id, so that several charts can stand in one page.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        FigureCanvasSVG(figure)
        figure.subplots_adjust(**MARGINS)
        _draw(figure.add_subplot(), chart)
        return inline(_written(figure), f"{chart.title} by step", prefix)


def _draw(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.set_axisbelow(True)
    if chart.untouched is not None:
        axes.axhline(chart.untouched, color=UNTOUCHED, linestyle=":", linewidth=1.2)
    for line in chart.series:
        steps = [step for step, _ in line.points]
        values = [math.nan if value is None else value for _, value in line.points]
        marker = "o" if len(steps) < MARKERS_BELOW else ""
        axes.plot(steps, values, color=line.colour, linestyle=line.dashes, marker=marker)
    if chart.log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step")


def _written(figure: Figure) -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return target.getvalue()


def inline(document: str, label: str, prefix: str) -> str:
    """A whole SVG file as an element of a page.

    It holds only what was drawn here and in ``comparison.plot``, so plain patterns are enough.

    Args:
        label: what it shows, for those who do not see it. prefix: put before every id.
    """
    element = document[document.index("<svg ") + len("<svg ") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", element)
    for drawn, shown in PAGE_COLOURS.items():
        element = element.replace(drawn, shown)
    return f'<svg role="img" aria-label="{html.escape(one_line(label), quote=True)}" {element}'


def _keys(lines: Iterable[dict[str, Any]], prefix: str) -> list[str]:
    """All metrics under ``prefix``, in the order they appear."""
    return list(dict.fromkeys(key for line in lines for key in line if key.startswith(prefix)))


def _all_charts(run: Run, prefix: str) -> list[Chart]:
    own = run.metrics()
    return [Chart(key, (_student(own, key),), may_be_log=False) for key in _keys(own, prefix)]


def _points(lines: Sequence[dict[str, Any]], key: str) -> tuple[tuple[float, float | None], ...]:
    steps = [(number(line.get("step")), number(line[key])) for line in lines if key in line]
    return tuple((step, value) for step, value in steps if step is not None)


def _student(lines: Sequence[dict[str, Any]], key: str) -> Series:
    return Series(STUDENT, "-", _points(lines, key))


def _baseline(lines: Sequence[dict[str, Any]], key: str) -> Series:
    return Series(BASELINE, "--", _points(lines, key))
