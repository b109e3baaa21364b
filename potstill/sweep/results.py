"""What a sweep leaves for people and programs: table.md, table.json, the figure, and one page with all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from potstill.recipe import Recipe
from potstill.reporting.formats import MISSING, duration, scaled, significant
from potstill.reporting.text import markdown_table, one_line
from potstill.run import write_text
from potstill.sweep.cells import Plan
from potstill.sweep.folder import Folder, Status
from potstill.sweep.metric import OF_TEXT
from potstill.sweep.statistics import Mean
from potstill.sweep.table import CellResult, Row, Table


def write_results(table: Table, plan: Plan, folder: Folder) -> None:
    """Write all of them, each whole or not at all."""
    from potstill.sweep import figure, page  # they draw, and so are slow to import

    write_text(folder.path / "table.json", json.dumps(as_json(table, plan), indent=2) + "\n")
    write_text(folder.path / "table.md", markdown(table))
    chart = figure.chart(table, plan.grid.x)
    if chart:
        figure.write_files(chart, folder.path)
    write_text(folder.path / "report.html", page.render(table, plan, chart))


# --- In words ---------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The table with what is to be known of it."""
    lines = [f"# {one_line(table.title)}: {one_line(table.metric)}", "", markdown_table(head(table), body(table))]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(table)), ""])


def head(table: Table) -> list[str]:
    """The columns."""
    return [name for name, _ in _columns(table)]


def body(table: Table) -> Iterator[list[str]]:
    """The rows, as shown."""
    yield from map(list, zip(*(cells for _, cells in _columns(table)), strict=True))


def _columns(table: Table) -> list[tuple[str, tuple[str, ...]]]:
    """Columns with their cells; those that no row has anything in are left out, but axes and metric."""
    found = list(zip(_heads(table), zip(*(_cells(table, row) for row in table.rows), strict=True), strict=True))
    always = len(table.axes) + 1
    return found[:always] + [(name, cells) for name, cells in found[always:] if set(cells) != {MISSING}]


def _heads(table: Table) -> list[str]:
    columns = [*map(one_line, table.axes), one_line(table.metric)]
    intervals = ["95% interval", *([f"of {table.replicates} and examples"] if _has_two_level(table) else [])]
    columns += [*intervals, "n"]
    if table.against:
        columns += [f"less {_words(table.against)}", *intervals, "p", "p after Holm"]
    return [*columns, "training", "tokens"]


def _cells(table: Table, row: Row) -> list[str]:
    cells = [*map(one_line, row.places.values()), *_shown(table, row.mean, row.two_level), _count(row)]
    if table.against:
        found = row.difference
        shown = _shown(table, found.mean, found.two_level) if found else [MISSING] * (2 + _has_two_level(table))
        shown[0] = shown[0] if shown[0].startswith("-") else f"+{shown[0]}"
        ps = [found.mean.p, found.p_holm] if found else [math.nan] * 2
        cells += [*shown, *(MISSING if math.isnan(p) else f"{p:.3g}" for p in ps)]
    return [*cells, duration(row.seconds), scaled(row.tokens)]


def _shown(table: Table, mean: Mean, two_level: Sequence[float] | None) -> list[str]:
    """Mean and interval, and the other interval where the table has that column."""
    cells = [significant(mean.mean), _interval((mean.low, mean.high))]
    return cells + ([_interval(two_level)] if _has_two_level(table) else [])


def _interval(ends: Sequence[float] | None) -> str:
    if ends is None or not all(map(math.isfinite, ends)):
        return MISSING
    return f"[{', '.join(map(significant, ends))}]"


def _count(row: Row) -> str:
    """How many cells the mean is of, and how many it was to be of."""
    return str(row.mean.num) if row.mean.num == len(row.cells) else f"{row.mean.num} of {len(row.cells)}"


def _words(places: Mapping[str, str]) -> str:
    return one_line(", ".join(f"{axis} {label}" for axis, label in places.items()))


def _has_two_level(table: Table) -> bool:
    return any(row.two_level for row in table.rows)


# --- What is to be known of it ----------------------------------------------------------------------------------------


def notes(table: Table) -> list[str]:
    """How intervals and p were made, and what is not there, in plain sentences."""
    return [one_line(note) for note in (*_of_other_text(table), *_how(table), *_missing(table))]


def _of_other_text(table: Table) -> Iterator[str]:
    """A figure of what a student is to write says nothing across cells that are to write something else."""
    if table.metric.removesuffix("_stderr") in OF_TEXT and len(table.targets) > 1:
        yield (
            f"{table.metric} is of the text that a student is to write, and cells have different ones (data.target: "
            f"{', '.join(table.targets)}): across those it is not comparable; accuracy, of the answers alone, is."
        )


def _how(table: Table) -> Iterator[str]:
    over = table.replicates
    if over is None:
        yield "One cell for each row: nothing is averaged, so there is no interval and no p. Add an axis of seeds."
        return
    if not any(row.mean.num > 1 for row in table.rows):
        yield f"No row has two cells that are done, so there is no interval over {over} and no p."
        return
    yield (
        f"Mean of n cells that differ in {over} alone. 95% interval: Student's t with n - 1 degrees of freedom over "
        f"them. It says what other values of {over} would have changed, and supposes figures that are about normal."
    )
    if _has_two_level(table):
        yield (
            f"Of {over} and examples: 95% percentile interval of a two-level bootstrap, {over} and held-out examples "
            "drawn again together, the same examples for all cells. With few cells it is too narrow by about "
            "sqrt((n - 1) / n) in what comes from them; p goes with Student's t."
        )
    if table.against:
        yield (
            f"Differences from {_words(table.against)} are paired by {over}, all other settings alike. p: paired t, "
            f"two-sided; after Holm's correction it is right for all {table.family} differences of the table together. "
            "A difference whose interval holds 0, or whose p after Holm is 0.05 or more, is not sure; nor is it none."
        )
    if any(row.mean.num > 1 and row.mean.low == row.mean.high for row in table.rows):
        yield f"An interval that is a point: its cells have one figure, which is no sign that another {over} would too."


def _missing(table: Table) -> Iterator[str]:
    for file in table.changed_files:
        yield f"{file} was changed between cells, so that not all were trained or measured on the same rows."
    for row in table.rows:
        for status, said in ((Status.left, "not run yet"), (Status.begun, "not finished yet")):
            if missing := [cell for cell in row.cells if cell.status is status]:
                yield f"{row.name}: {_replicates(table, missing)} {said}."
        for cell in row.cells:
            if cell.status is Status.failed:
                yield f"{row.name}: {_replicates(table, [cell])} failed: {cell.error}"
        if silent := [cell for cell in row.cells if cell.status is Status.done and cell.value is None]:
            yield f"{row.name}: {_replicates(table, silent)} measured no finite {table.metric}."
        if row.counterpart and (row.difference is None or row.difference.mean.num < row.mean.num):
            num = row.difference.mean.num if row.difference else 0
            yield f"{row.name}: {num} of {row.mean.num} cells have their counterpart in {_words(row.counterpart)}."


def _replicates(table: Table, cells: Sequence[CellResult]) -> str:
    labels = ", ".join(cell.replicate for cell in cells)
    return f"{table.replicates} {labels}" if table.replicates else "it has"


# --- For programs -----------------------------------------------------------------------------------------------------


def as_json(table: Table, plan: Plan) -> dict[str, Any]:
    """The table with every cell; a figure that is not finite is null."""
    return {
        "sweep": table.title,
        "metric": table.metric,
        "replicates": table.replicates,
        "against": dict(table.against),
        "interval": "Student's t over replicates, 95%",
        "two_level_interval": "percentiles of a bootstrap over replicates and held-out examples, 95%",
        "num_differences": table.family,
        "rows": [_row_as_json(row) for row in table.rows],
        "notes": notes(table),
        "shared": shared(plan),
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    difference = row.difference
    return {
        "settings": dict(row.places),
        "num_cells": len(row.cells),
        **_mean_as_json(row.mean, row.two_level),
        "difference": None
        if difference is None
        else _mean_as_json(difference.mean, difference.two_level)
        | {"p": finite(difference.mean.p), "p_holm": finite(difference.p_holm)},
        "training_s": row.seconds,
        "tokens": row.tokens,
        "cells": [_cell_as_json(cell) for cell in row.cells],
    }


def _mean_as_json(mean: Mean, two_level: Sequence[float] | None) -> dict[str, Any]:
    ends = {"mean": mean.mean, "low": mean.low, "high": mean.high}
    other = None if two_level is None else [finite(end) for end in two_level]
    return {key: finite(value) for key, value in ends.items()} | {"n": mean.num, "two_level": other}


def _cell_as_json(cell: CellResult) -> dict[str, Any]:
    return {
        "name": cell.name,
        "replicate": cell.replicate,
        "status": cell.status.value,
        "value": cell.value,
        "training_s": cell.seconds,
        "tokens": cell.tokens,
        "run": f"runs/{cell.run.path.name}",
        "error": cell.error,
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shared(plan: Plan) -> dict[str, Any]:
    """The settings that all cells have alike, by dotted key."""
    recipes = [_flat_recipe(cell.recipe) for cell in plan.cells]
    first, *others = recipes
    return {key: value for key, value in first.items() if all(key in one and one[key] == value for one in others)}


def _flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Settings by dotted key, as they may be written: those of an only stage without its name."""
    found = {}
    for key, value in _flat(recipe.model_dump(mode="json", exclude={"run"})):
        short = key.removeprefix("stages.0.")
        is_short = len(recipe.stages) == 1 and short.split(".")[0] not in Recipe.model_fields
        found[short if is_short else key] = value
    return found


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for at, item in enumerate(value):
            yield from _flat(item, f"{path}.{at}")
    else:
        yield path, value
