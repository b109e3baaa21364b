"""What ``potstill sweep --at`` leaves: the table at equal cost and its figure, at-<cost>.md, .json, .svg and .png."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from potstill.reporting.formats import MISSING, duration, scaled
from potstill.reporting.text import markdown_table, one_line
from potstill.run import write_text
from potstill.sweep import results
from potstill.sweep.budgets import At
from potstill.sweep.cells import Plan
from potstill.sweep.equal_cost import NOT_SHOWN, SURE_BELOW, View, verdict
from potstill.sweep.folder import Folder, Status
from potstill.sweep.table import CellResult, Row

NAMED = 6  # cells in one sentence
MEANING = {
    At.steps: "A step is batch.size examples, and what it takes differs from method to method.",
    At.teacher_tokens: (
        "Teacher tokens: those of the batches that the teacher was asked about, and those that it wrote beforehand."
    ),
    At.seconds: (
        "Seconds: of training steps, rollouts included, and of the text that the teacher wrote beforehand; validations "
        "and measuring are not in them. Whatever else the machine did is."
    ),
    At.flops: (
        "FLOPs: those of student and teacher in training steps, counted by their weights; the text that a teacher "
        "wrote beforehand is not in them."
    ),
}


def write_results(view: View, plan: Plan, folder: Folder) -> None:
    """Write all four files, each whole or not at all."""
    from potstill.sweep import curve_figure  # it draws, and so is slow to import

    name = f"at-{view.at}"
    write_text(folder.path / f"{name}.json", json.dumps(as_json(view, plan), indent=2) + "\n")
    write_text(folder.path / f"{name}.md", markdown(view))
    curve_figure.write_files(view, folder.path / name)


def amount(at: At, x: float) -> str:
    """A cost as people read it."""
    if at is At.seconds:
        return duration(x)
    return f"{x:,.0f} steps" if at is At.steps else f"{scaled(x)} {at.words}"


# --- In words ---------------------------------------------------------------------------------------------------------


def markdown(view: View) -> str:
    """The table with what is to be known of it."""
    title = f"# {one_line(view.table.title)}: {one_line(view.table.metric)} at {amount(view.at, view.x)}"
    return "\n".join(
        [title, "", markdown_table(head(view), body(view)), "", *(f"- {note}" for note in notes(view)), ""]
    )


def head(view: View) -> list[str]:
    """The columns of the sweep's table, what may be said of the difference, and how far the row's cells got."""
    return [*results.head(view.table), *(["said"] if view.table.against else []), "reached"]


def body(view: View) -> Iterator[list[str]]:
    """The rows, as shown."""
    for row, cells in zip(view.table.rows, results.body(view.table), strict=True):
        said = verdict(view.table, row.difference) if row.difference else MISSING
        yield [*cells, *([said] if view.table.against else []), _reached(view, row)]


def _reached(view: View, row: Row) -> str:
    ends = [curve.end for curve in view.of(row)]
    return " to ".join(dict.fromkeys(amount(view.at, end) for end in (min(ends), max(ends)))) if ends else MISSING


def notes(view: View) -> list[str]:
    """Where the figures are read, who stopped there, how intervals and p were made, and what is not there."""
    return [one_line(note) for note in (*_where(view), *_how(view), *_missing(view))]


def _where(view: View) -> Iterator[str]:
    ends = {name: curve.end for name, curve in view.curves.items()}
    stopped, furthest = [name for name, end in ends.items() if end == view.x], max(ends.values())
    at = f"All figures are at {amount(view.at, view.x)}, the most that all {len(ends)} compared cells have reached."
    if furthest == view.x:
        yield f"{at} All of them ended there."
    else:
        most = amount(view.at, furthest)
        yield f"{at} Stopped there: {_named(view, stopped)}. The others went on, to at most {most}."
        yield (
            "A cell that went on was read before its end, with its learning rate still up, which may be to its loss: "
            f"to be sure give all cells one budget{_budget(view)}."
        )
    yield (
        "They are of validation rows, on the straight line between the validations before and after. Checkpoints are "
        "chosen on those rows; each run's figure of held-out rows, whatever it cost, is in table.md."
    )
    yield MEANING[view.at]
    yield "Settle on a cost before looking: who takes the one of several that suits has chosen it."


def _budget(view: View) -> str:
    """The setting that ends cells along the view's cost, where there is one."""
    return "" if view.at is At.teacher_tokens else f", by budget.{view.at}"


def _how(view: View) -> Iterator[str]:
    table, over = view.table, view.table.replicates or "seeds"
    if not any(row.mean.num > 1 for row in table.rows):
        yield (
            f"No row has two cells with a figure there: no interval over {over} exists and no p, and so no difference "
            "can be shown."
        )
        return
    yield (
        f"Mean of n cells that differ in {over} alone, with the 95% interval of Student's t with n - 1 degrees of "
        "freedom over them."
    )
    if table.against:
        yield (
            f"Differences are paired by {over}. p: paired t, two-sided; after Holm's correction it is right for all "
            f"differences of this table together ({table.family}). Where the interval holds 0, or p after Holm is "
            f'{SURE_BELOW:g} or more, it says "{NOT_SHOWN}", which does not show that there is none.'
        )
    else:
        yield "No row is set against another, so no difference is tested: name one with against in the grid."


def _missing(view: View) -> Iterator[str]:
    cells = {cell.name: cell for row in view.table.rows for cell in row.cells}
    for why in dict.fromkeys(view.without.values()):
        yield f"Without a curve: {_named(view, [name for name, one in view.without.items() if one == why])}: {why}."
    if late := [name for name, curve in view.curves.items() if curve.begin > view.x]:
        yield (
            f"No figure there: {_named(view, late)}. Before its first step of the last stage, each had cost more than "
            f"{amount(view.at, view.x)}, in stages before it or in text that the teacher wrote."
        )
    between = [name for name, curve in view.curves.items() if curve.begin <= view.x and cells[name].value is None]
    if between:
        yield f"No finite {view.table.metric} there: {_named(view, between)}."
    if others := [name for name, cell in cells.items() if cell.status is not Status.done]:
        yield f"Not done, and so not compared: {_named(view, others)}."


def _named(view: View, names: Sequence[str]) -> str:
    """Cells in words: a row by itself where all of its cells are meant."""
    parts = []
    for row in view.table.rows:
        meant = [cell for cell in row.cells if cell.name in names]
        if meant:
            parts.append(row.name if len(meant) == len(row.cells) else f"{row.name} ({_replicates(view, meant)})")
    more = len(parts) - NAMED
    return "; ".join(parts[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _replicates(view: View, cells: Sequence[CellResult]) -> str:
    return f"{view.table.replicates} {', '.join(cell.replicate for cell in cells)}"


# --- For programs -----------------------------------------------------------------------------------------------------


def as_json(view: View, plan: Plan) -> dict[str, Any]:
    """The table of the view with every cell's curve; a figure that is not finite is null."""
    told = results.as_json(view.table, plan)
    rows = [_row_as_json(view, row, one) for row, one in zip(view.table.rows, told["rows"], strict=True)]
    return told | {"at": view.at.value, "x": view.x, "rows": rows, "notes": notes(view)}


def _row_as_json(view: View, row: Row, told: dict[str, Any]) -> dict[str, Any]:
    cells = [
        one | {"curve": _points(view, one["name"]), "why_none": view.without.get(one["name"])} for one in told["cells"]
    ]
    said = {"said": verdict(view.table, row.difference) if row.difference else None}
    return told | {"cells": cells} | said


def _points(view: View, name: str) -> list[list[float | None]] | None:
    if name not in view.curves:
        return None
    return [[x, results.finite(figure)] for x, figure in view.curves[name].points]
