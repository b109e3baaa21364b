"""The figure of a sweep along a cost: a line for each row's mean, its interval over seeds as a band, and where it ends.

It looks as ``sweep.figure`` does, and carries its own words like it.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.reporting.plots import LOG_ABOVE, RC, TEXT
from potstill.reporting.text import one_line
from potstill.run import write_text
from potstill.sweep.equal_cost import View, averaged_curve
from potstill.sweep.figure import PAPER, line_look
from potstill.sweep.statistics import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (6.4, 4.0)  # inches
BAND = 0.15  # opacity


@dataclass(frozen=True)
class Line:
    """A row: its name, and the mean over its cells at each place, in order."""

    label: str
    points: tuple[tuple[float, Mean], ...]

    @property
    def has_band(self) -> bool:
        """Whether it has an interval anywhere."""
        return any(math.isfinite(mean.low) for _, mean in self.points)


def lines(view: View) -> list[Line]:
    """The lines of a view, those without a point left out."""
    found = [Line(one_line(row.name), tuple(averaged_curve(view.of(row)))) for row in view.table.rows]
    return [line for line in found if line.points]


def write_files(view: View, stem: Path) -> None:
    """Write ``stem``.svg and ``stem``.png, each whole or not at all."""
    write_text(stem.with_name(f"{stem.name}.svg"), _drawn(view, "svg").decode())
    temporary = stem.with_name(f".{stem.name}.png.{os.getpid()}")
    temporary.write_bytes(_drawn(view, "png"))
    os.replace(temporary, stem.with_name(f"{stem.name}.png"))


def _drawn(view: View, kind: str) -> bytes:
    """The figure's bytes, the same for the same view."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    found = lines(view)
    style = {key: PAPER.get(value, value) if isinstance(value, str) else value for key, value in RC.items()}
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=SIZE, dpi=150, layout="constrained")
        (FigureCanvasSVG if kind == "svg" else FigureCanvasAgg)(figure)
        axes = figure.subplots()
        _draw(axes, view, found)
        figure.legend(loc="outside lower center", ncols=min(2, max(1, len(found))), frameon=False)
        target = io.BytesIO()
        dates = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(target, format=kind, transparent=kind == "svg", metadata=dates)
    return target.getvalue()


def _draw(axes: Axes, view: View, found: Sequence[Line]) -> None:
    axes.set_axisbelow(True)
    for at, line in enumerate(found):
        xs = [x for x, _ in line.points]
        style = line_look(at, PAPER) | {"marker": ""}
        axes.plot(xs, [mean.mean for _, mean in line.points], label=line.label, **style)
        if line.has_band:
            low, high = [mean.low for _, mean in line.points], [mean.high for _, mean in line.points]
            axes.fill_between(xs, low, high, color=style["color"], alpha=BAND, linewidth=0)
    axes.axvline(view.x, color=PAPER[TEXT], linestyle=":", linewidth=1.0)
    if _is_wide(found):
        axes.set_yscale("log")
    banded = any(line.has_band for line in found)
    axes.set_xlabel(f"{view.at.words} so far (dotted: where cells are compared)")
    axes.set_ylabel(one_line(view.table.metric) + (f", 95% over {view.table.replicates}" if banded else ""))


def _is_wide(found: Sequence[Line]) -> bool:
    """Whether values are so far apart that a logarithmic axis shows more."""
    values = [mean.mean for line in found for _, mean in line.points if math.isfinite(mean.mean)]
    return bool(values) and min(values) > 0 and max(values) / min(values) > LOG_ABOVE
