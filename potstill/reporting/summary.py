"""The table of a run as data: what ``potstill report RUN --format json`` prints."""

from __future__ import annotations

import math
from typing import Any

from potstill.reporting import settings, stages
from potstill.run import RUNS, Run

FIGURES = (
    "forward_kl_nats",
    "reverse_kl_nats",
    "top1_agreement",
    "acceptance_rate",
    "perplexity",
    "rouge_l",
    "num_parameters",
    "tokens_per_s",
)


def summary(run: Run) -> dict[str, Any]:
    """The figures of each model that was measured, and where the run's results are; of several stages those of the
    last, and a line for each.

    Every model has the keys FIGURES, null where it was not measured, then whatever else was. Valid JSON: a figure that
    is not finite is null, and so is a student that is not there.
    """
    places: dict[str, Any] = {
        "run": run.name,
        "method": settings.method(run),
        "report": str(run.report_file),
        "student": str(run.student) if run.student.is_dir() else None,
    }
    if run.stages:
        places["stages"] = stages.as_data(run)
        run = run.result
    return places | {model: _figures(measured) for model, measured in run.evaluations().items()}


def places(run: Run) -> list[str]:
    """Lines for a terminal: where a run's student and report are, and how it goes on where it is not finished."""
    is_whole = is_finished(run)
    absent = "not kept" if is_whole else "not there yet"
    lines = [
        f"student  {run.student if run.student.is_dir() else absent}",
        f"report   {run.report_file}",
    ]
    named = run.name if (RUNS / run.name).resolve() == run.path.resolve() else run.path
    return lines if is_whole else [*lines, f"not finished: go on with `potstill resume {named}`"]


def is_finished(run: Run) -> bool:
    """Whether all was trained and measured that the recipe asks for, of every stage; what was removed since counts."""
    if run.stages:
        return all(planned.get("student_sha256") for planned in run.read("stages"))
    measured = run.evaluations()
    baseline = settings.value_at(settings.recipe(run), "baseline")
    return "student_after" in measured and (baseline != "equal_time_sft" or baseline in measured)


def _figures(measured: dict[str, Any]) -> dict[str, Any]:
    figures = {key: finite(value) for key, value in measured.items()}
    return {key: figures.pop(key, None) for key in FIGURES} | figures


def finite(value: Any) -> Any:
    """The value with every float that JSON cannot say as None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
