"""The panel: every model on text it wrote itself. A table, because each objective wins the figure it optimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from potstill.reporting.formats import MISSING, number, percent, significant
from potstill.reporting.tables import MODEL_NAMES, Cell, cell
from potstill.run import Run


@dataclass(frozen=True)
class Group:
    """A row: figures of one kind, by their keys in panel/*.json.

    ``better`` is "lower", "teacher" where no side is better and a student is compared with its teacher, or "paired"
    where only the difference of two students says anything.
    """

    keys: tuple[str, ...]
    name: str
    better: str
    shown: Callable[[Any], str]


@dataclass(frozen=True)
class Panel:
    """The models that were measured, in order, and the rows of those groups that any of them has."""

    models: tuple[str, ...]
    rows: tuple[tuple[Group, tuple[Cell, ...]], ...]
    num_responses: int | None


GROUPS = (
    Group(("teacher_nll_own_nats",), "teacher's NLL of own samples (nats)", "lower", significant),
    Group(("student_nll_teachers_nats",), "own NLL of the teacher's samples (nats)", "lower", significant),
    Group(("reverse_kl_own_nats",), "reverse KL on own samples (nats)", "lower", significant),
    Group(("forward_kl_own_nats",), "forward KL on own samples (nats)", "lower", significant),
    Group(("excess_error_percent",), "excess accumulated error (%)", "paired", significant),
    Group(("entropy_own_nats",), "entropy on own samples (nats)", "teacher", significant),
    Group(
        ("distinct_1", "distinct_2", "distinct_3"),
        "distinct 1-, 2-, 3-grams",
        "teacher",
        partial(significant, digits=3),
    ),
    Group(("self_bleu",), "self-BLEU", "teacher", significant),
    Group(("repeated_4gram_rate",), "repeated 4-grams", "teacher", percent),
    Group(("response_tokens_mean",), "response tokens, mean", "teacher", significant),
    Group(("finished_share",), "responses that ended by themselves", "teacher", percent),
)


def panel(run: Run) -> Panel | None:
    """What was measured of each model on its own samples; None where nothing was."""
    found = {model: figures for model in MODEL_NAMES if (figures := run.read(f"panel/{model}"))}
    rows = tuple((group, tuple(_cell(group, figures) for figures in found.values())) for group in GROUPS)
    kept = tuple(row for row in rows if any(shown.value != MISSING for shown in row[1]))
    counts = {number(figures.get("num_responses")) for figures in found.values()}
    count = counts.pop() if len(counts) == 1 else None
    return Panel(tuple(found), kept, None if count is None else int(count)) if kept else None


def _cell(group: Group, figures: dict[str, Any]) -> Cell:
    """One figure with its error, or several side by side; a dash where none of them was measured."""
    if len(group.keys) == 1:
        return cell(group.keys[0], group.shown, figures)
    values = [group.shown(figures.get(key)) for key in group.keys]
    return Cell(MISSING if set(values) == {MISSING} else " / ".join(values), "")
