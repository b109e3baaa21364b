"""The models of a run of several stages beside each other: what each scores on the same held-out examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.evaluation.evaluator import COMPARED
from potstill.reporting import settings
from potstill.reporting.row_scores import STUDENT
from potstill.reporting.tables import Cell, Column, cell, columns_of
from potstill.run import STAGES, Run

NOT_OF_THE_MODEL = ("tokens_per_s",)  # of the machine at that hour
OF_ANSWERS = ("generate_examples", "max_new_tokens", "num_beams", "repetition_penalty", "accuracy")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Standings:
    """A table: models with their cells, and the stages that were measured on other examples or asked otherwise."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, list[Cell]], ...]
    result: str
    left_out: tuple[str, ...]


def standings(run: Run) -> Standings:
    """Every model that the stages began with or made, once; of those that were measured as the result was.

    What compares a model with its teacher is left out where that is another one than the result's.
    """
    planned = run.read("stages") or ()
    stages = {str(plan["name"]): stage for plan, stage in zip(planned, run.stages, strict=True)}
    result = next((name for name, stage in stages.items() if stage.path == run.result.path), "")
    measured = {name: stage for name, stage in stages.items() if stage.evaluations().get(STUDENT)}
    alike = {name: stage for name, stage in measured.items() if _measured(stage) == _measured(run.result)}
    found: dict[str, Figures] = {}
    for name, stage in alike.items():
        same_teacher = settings.teacher(stage) == settings.teacher(run.result)
        for model, figures in _models(name, stage):
            found.setdefault(model, figures if same_teacher else _without_teacher(figures))
    columns = tuple(one for one in columns_of(found.values()) if one.key not in NOT_OF_THE_MODEL)
    rows = tuple((model, [cell(one.key, one.shown, figures) for one in columns]) for model, figures in found.items())
    return Standings(columns, rows, made_by(result), tuple(name for name in measured if name not in alike))


def made_by(stage: str) -> str:
    """What a stage's student is called."""
    return f"student of {stage}"


def _measured(stage: Run) -> tuple[Any, ...]:
    """Which examples a stage was measured on, and how it was asked."""
    asked = settings.measured_with(stage)
    return [(row["id"], row["input"]) for row in stage.rows(STUDENT)], *(asked[key] for key in OF_ANSWERS)


def _models(name: str, stage: Run) -> Iterator[tuple[str, Figures]]:
    """A stage's models that no earlier stage made, and then what it made itself."""
    measured = stage.evaluations()
    teacher, source = settings.teacher(stage), settings.student_source(stage)
    if teacher and not _is_of_stage(teacher) and "teacher" in measured:
        yield teacher, _without_teacher(measured["teacher"])
    as_it_is = settings.value_at(settings.stage(stage), "student", "kind") == "pretrained"
    if "student_before" in measured and not (as_it_is and _is_of_stage(source)):
        yield (str(source) if as_it_is else f"{name}, before training"), measured["student_before"]
    yield made_by(name), measured[STUDENT]
    if baseline := measured.get("equal_time_sft"):
        yield f"equal-time SFT, beside {made_by(name)}", baseline


def _is_of_stage(model: str | None) -> bool:
    """Whether a folder is that of a student that a stage of a run has made."""
    parts = Path(model or "").parts
    return parts[-1:] == ("student",) and parts[-3:-2] == (STAGES,)


def _without_teacher(figures: Figures) -> Figures:
    return {key: value for key, value in figures.items() if not key.startswith(tuple(COMPARED))}
