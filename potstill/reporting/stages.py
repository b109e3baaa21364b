"""A run of several stages at a glance: what each did, what it cost, what it changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.reporting import settings, tables
from potstill.reporting.formats import MISSING, duration, number
from potstill.reporting.text import one_line
from potstill.run import Run

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class StageLine:
    """One stage: how it is called, its models and rows, what it cost, and the figure that its checkpoint was chosen by,
    as measured on the held-out rows before and after; None for what is not known yet."""

    name: str
    method: str | None
    folder: str
    student: str | None
    teacher: str | None
    data: str | None
    steps: int | None
    seconds: float | None
    metric: str | None
    before: float | None
    after: float | None

    @property
    def shown(self) -> dict[str, str]:
        """The cells of a table that differ from how they are kept."""
        figure = tables.column(self.metric) if self.metric else None
        return {
            "steps": MISSING if self.steps is None else f"{self.steps:,}",
            "seconds": duration(self.seconds),
            "metric": figure.name if figure else self.metric or MISSING,
            "before": figure.shown(self.before) if figure else MISSING,
            "after": figure.shown(self.after) if figure else MISSING,
        }


def stage_lines(run: Run) -> list[StageLine]:
    """A line for each stage, in order; none of a run of one stage."""
    planned = run.read("stages") or ()
    return [_line(plan, stage) for plan, stage in zip(planned, run.stages, strict=True)]


def as_data(run: Run) -> list[dict[str, Any]]:
    """The same for `potstill report RUN --format json`."""
    return [asdict(line) for line in stage_lines(run)]


def _line(plan: dict[str, Any], stage: Run) -> StageLine:
    cost, measured = stage.read("cost"), stage.evaluations()
    metric = settings.measured_with(stage)["best_by"]
    parts = [number(cost.get(key)) for key in ("training_s", "teacher_text_s")]
    return StageLine(
        name=str(plan["name"]),
        method=plan.get("method"),
        folder=str(plan["folder"]),
        student=_model(settings.student_source(stage)),
        teacher=_model(settings.teacher(stage)),
        data=settings.data(stage),
        steps=cost.get("steps"),
        seconds=None if parts[0] is None else sum(filter(None, parts)),
        metric=metric,
        **{
            when: number(measured.get(f"student_{when}", {}).get(metric)) if metric else None
            for when in ("before", "after")
        },
    )


def _model(name: str | None) -> str | None:
    """A model's name; of a stage's student that stage."""
    parts = Path(name or "").parts
    return f"of {parts[-2]}" if parts[-1:] == ("student",) and parts[-3:-2] == ("stages",) else name


def rich_stages(run: Run) -> Table:
    """The stages for a terminal of 80 characters."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"stages of {one_line(run.name)}"), box=None, padding=(0, 1, 0, 0), header_style="")
    table.title_justify = table.caption_justify = "left"
    if unfinished := [plan["name"] for plan in run.read("stages") if plan.get("student_sha256") is None]:
        table.caption = Text(one_line(f"not finished: {', '.join(unfinished)}"))
    for heading in ("stage", "method", "steps", "time", "by", "before", "after"):
        table.add_column(Text(heading), justify="left" if heading in ("stage", "method", "by") else "right")
    for line in stage_lines(run):
        shown = line.shown
        cells = (line.name, line.method or MISSING, *(shown[key] for key in shown))
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table
