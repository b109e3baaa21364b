"""The page of a sweep: its table, its figure, and the settings that all cells share; no script, nothing loaded.

Its walls are those of ``report``: every string is cleaned and escaped, and a Content-Security-Policy lets nothing run.
"""

from __future__ import annotations

from markupsafe import Markup

from potstill.recipe_errors import shown
from potstill.reporting import report
from potstill.sweep import figure, results
from potstill.sweep.cells import Plan
from potstill.sweep.figure import Chart
from potstill.sweep.folder import Status
from potstill.sweep.table import Table

ORDER = (Status.done, Status.failed, Status.begun, Status.left)


def render(table: Table, plan: Plan, chart: Chart | None) -> str:
    """The page as HTML."""
    cells = [cell for row in table.rows for cell in row.cells]
    shared = results.shared(plan)
    return report.environment().get_template("sweep.html.j2").render(
        title=table.title,
        metric=table.metric,
        counts=[(status.value, count) for status in ORDER if (count := sum(c.status is status for c in cells))],
        head=results.head(table),
        num_axes=len(table.axes),
        rows=list(results.body(table)),
        notes=results.notes(table),
        drawing=Markup(figure.inline(chart)) if chart else None,
        x=plan.grid.x,
        cells=[(cell, f"runs/{cell.run.path.name}/report.html") for cell in cells],
        varied=[(axis, ", ".join(place.label for place in places)) for axis, places in plan.grid.axes.items()],
        shared=[(key, value if isinstance(value, str) else shown(value)) for key, value in shared.items()],
    )  # fmt: skip
