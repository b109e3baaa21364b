"""Several runs in one table, and in plain words what in it cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.reporting import settings
from potstill.reporting.formats import MISSING, duration, number, percent, significant
from potstill.reporting.tables import COLUMNS, Column, cell
from potstill.run import Run

SHOWN = ("forward_kl_nats", "reverse_kl_nats", "top1_agreement", "perplexity", "rouge_l", "num_parameters")
MUCH = 1.2  # ratio of two trainings' seconds from which they are not equally long
ALWAYS = "one training each: the errors are over held-out rows and say nothing of another seed"


@dataclass(frozen=True)
class Line:
    """A model of the table: whose it is, its figures, and what it cost; None for a model that was not trained here."""

    name: str
    method: str | None
    figures: dict[str, Any]
    training_s: float | None
    gap_closed: float | None


@dataclass(frozen=True)
class Comparison:
    """The models, and what is to be known before they are compared."""

    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[Run]) -> Comparison:
    """The first run's teacher and its untouched student, then each run's student and its equal-time baseline."""
    return Comparison(tuple(_lines(runs)), tuple(_notes(runs)))


def markdown(compared: Comparison) -> str:
    """The table, each figure with its standard error, and the notes below it."""
    columns = [column for column in COLUMNS if column.key in SHOWN]
    head = ["model", "method", *(_heading(column) for column in columns), "gap closed", "training"]
    rows = [[line.name, line.method or "", *_cells(line, columns), *_effort(line)] for line in compared.lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
    return "\n\n".join([table, "Before you compare:", "\n".join(f"- {note}" for note in compared.notes)])


def _lines(runs: Sequence[Run]) -> Iterator[Line]:
    first = runs[0].evaluations()
    for key, name in (("teacher", "teacher"), ("student_before", "student before")):
        if key in first:
            yield Line(name, None, first[key], None, None)
    for run in runs:
        measured, cost = run.evaluations(), run.read("cost")
        own, baseline = ("training_s", "teacher_text_s"), ("baseline_training_s",)
        parts = (("student_after", run.name, own), ("equal_time_sft", f"{run.name}, equal-time SFT", baseline))
        for key, name, costs in parts:
            if key in measured:
                seconds = sum(found for k in costs if (found := number(cost.get(k))) is not None)
                method = settings.method(run) if key == "student_after" else "sft"
                yield Line(name, method, measured[key], seconds, _gap_closed(measured, key))


def _gap_closed(measured: dict[str, dict[str, Any]], key: str) -> float | None:
    """The share of the forward KL that the run's own untouched student had, and this one has not."""
    before = number(measured.get("student_before", {}).get("forward_kl_nats"))
    after = number(measured[key].get("forward_kl_nats"))
    return 1 - after / before if before and after is not None else None


def _heading(column: Column) -> str:
    return f"{column.name}{', ' + column.better + ' is better' if column.better else ''}"


def _cells(line: Line, columns: Sequence[Column]) -> Iterator[str]:
    for column in columns:
        shown = cell(column.key, column.shown, line.figures)
        yield f"{shown.value} ± {shown.error}" if shown.error else shown.value


def _effort(line: Line) -> tuple[str, str]:
    trained = line.training_s is not None
    closed = MISSING if line.gap_closed is None else percent(line.gap_closed)
    return closed, duration(line.training_s) if trained else ""


# --- What cannot be compared ------------------------------------------------------------------------------------------


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    facts: tuple[tuple[str, Callable[[Run], Any]], ...] = (
        ("the held-out rows differ: no figure of one run can be set against another's", _held_out),
        ("the answers were written under other settings: Rouge-L cannot be compared", settings.measured_with),
        ("the teachers differ: divergences and agreement are from different models", settings.teacher),
        ("the data trained on differs", _trained_on),
        ("the students began differently: compare what each gained, not where it ended", _began),
    )
    for what, fact in facts:
        found = [fact(run) for run in runs]
        if others := [run.name for run, value in zip(runs, found, strict=True) if value != found[0]]:
            yield f"{what} ({', '.join(others)} from {runs[0].name})"
    seconds = [line.training_s for line in _lines(runs) if line.training_s]
    if seconds and max(seconds) > MUCH * min(seconds):
        least, most = (significant(some, 3) for some in (min(seconds), max(seconds)))
        yield f"the trainings took from {least} to {most} s: none is at equal time"
    if unfinished := [run.name for run in runs if "student_after" not in run.evaluations()]:
        yield f"not finished: {', '.join(unfinished)}"
    yield ALWAYS


def _held_out(run: Run) -> Any:
    """What says which rows were held out: the files by content, how rows become tokens, and how many were measured."""
    data = settings.stage(run).get("data")
    rest = {k: v for k, v in data.items() if k not in ("path", "heldout")} if isinstance(data, dict) else data
    files = run.read("data").get("files", {})
    source = files.get("heldout") or files.get("train") or {}  # the file of its own, or the one it was taken from
    measured = [run.evaluations().get("student_after", {}).get(key) for key in ("num_examples", "num_tokens")]
    return source.get("sha256"), rest, measured


def _trained_on(run: Run) -> Any:
    train = run.read("data").get("files", {}).get("train", {})
    return train.get("sha256") if isinstance(train, dict) else None


def _began(run: Run) -> Any:
    before = run.evaluations().get("student_before", {})
    return [before.get(key) for key in ("perplexity", "num_parameters")]
