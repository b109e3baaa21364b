"""The cells of a grid: one recipe for each combination, all of them loaded and checked before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from potstill import recipe_io
from potstill.errors import ConfigError, Problem, closest
from potstill.recipe import Recipe
from potstill.recipe_errors import Issue, KeyPath, Mark, problems
from potstill.recipe_yaml import COMMAND_LINE, refusal
from potstill.recipes import METHODS
from potstill.sweep.grid import Grid, Value
from potstill.sweep.grid_file import NOT_AN_AXIS, read_grid
from potstill.sweep.metric import mistake

MAX_CELLS = 10_000
MAX_NAME = 100  # characters of a cell's name before its key

# What is wrong with cells' recipes, by place, key and cause: one line for what several cells have wrong.
Wrong = dict[tuple[str, str, str], tuple[Mark, Problem]]


@dataclass(frozen=True)
class Cell:
    """One combination of a grid.

    Args:
        places: the label on each axis, in the order of the axes.
        recipe: what is run; without a run name.
        key: SHA-256 of the recipe's content, in hex: the same recipe is the same cell, whatever it is called.
    """

    places: Mapping[str, str]
    recipe: Recipe
    key: str

    @property
    def name(self) -> str:
        """The run folder's name: values readable, cut where long, and the beginning of the key to tell cells apart."""
        words = [_word(axis, label) for axis, label in self.places.items()]
        return f"{'-'.join(words)[:MAX_NAME]}-{self.key[:10]}"

    def without(self, *axes: str | None) -> tuple[tuple[str, str], ...]:
        """Its places on all axes but these."""
        return tuple((axis, label) for axis, label in self.places.items() if axis not in axes)


@dataclass(frozen=True)
class Plan:
    """A grid with its cells, all of them valid. ``metric``: the figure of eval/student_after.json that it is about."""

    grid: Grid
    cells: tuple[Cell, ...]
    metric: str


def plan(file: Path) -> Plan:
    """The cells that a grid file describes.

    Raises: ConfigError with every mistake of the file and of its cells' recipes, by line.
    """
    grid = read_grid(file)
    wrong: Wrong = {}
    cells = tuple(_cells(grid, wrong)) if grid.has_cells else ()
    complete = grid.has_cells and not wrong and not grid.layer.issues
    metric = grid.metric or _primary(grid, cells, complete=complete)
    if metric and (told := mistake(metric, [cell.recipe for cell in cells] if complete else [])):
        grid.wrong(("metric",), *told)
    if found := _found_wrong(grid, wrong):
        raise refusal(str(file), tuple(problem for _, problem in sorted(found, key=lambda pair: pair[0])))
    return Plan(grid, cells, metric)


def _found_wrong(grid: Grid, wrong: Wrong) -> list[tuple[Mark, Problem]]:
    """All that is wrong with a grid file and its cells, with where it stands."""
    marks = {mark for mark, _ in wrong.values()}
    misspelt = {axis for axis in grid.axes if grid.mark(("axes", axis), at_key=True) in marks}
    own = [issue for issue in grid.layer.issues if not _follows(grid, issue, misspelt)]
    return [(_mark_of(problem), problem) for problem in problems(own, {}, str(grid.file))] + list(wrong.values())


def _follows(grid: Grid, issue: Issue, misspelt: Collection[str]) -> bool:
    """Whether an axis is not found because its own name is misspelt, which is told of the axis."""
    if not issue.cause.endswith(NOT_AN_AXIS):
        return False
    named = issue.path[-1] if len(issue.path) > 1 else grid.layer.values[str(issue.path[0])]
    return closest(str(named), grid.axes) in misspelt


def _mark_of(problem: Problem) -> Mark:
    line, column = problem.where.rsplit(":", 2)[1:]
    return int(line), int(column)


def key_of(recipe: Recipe) -> str:
    """The content hash of a recipe, whatever its run is called."""
    content = recipe.model_dump(mode="json", exclude={"run"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _word(axis: str, label: str) -> str:
    """A value in a folder's name: text speaks for itself, a number needs the end of its key."""
    bare = re.fullmatch(r"[-+0-9.e]+|true|false|null", label)
    return re.sub(r"[^A-Za-z0-9._]+", "_", f"{axis.rpartition('.')[2]}{label}" if bare else label).strip("._") or "_"


# --- Making them ------------------------------------------------------------------------------------------------------


def _cells(grid: Grid, wrong: Wrong) -> Iterator[Cell]:
    """The cells whose recipes are valid; what is wrong with the others is noted."""
    combinations = list(_combinations(grid))
    if not combinations:
        grid.wrong(("skip",) if grid.skip else ("axes",), "no combination is left")
    if len(combinations) > MAX_CELLS:
        grid.wrong(("axes",), f"{len(combinations):,} cells are more than {MAX_CELLS:,}", "Make several grids of it")
        return
    if grid.against and combinations and not any(_is(places, grid.against) for places in combinations):
        grid.wrong(("against",), "matches no cell: skip leaves all of them out")
    seen: dict[str, Mapping[str, Value]] = {}
    for places in combinations:
        recipe = _recipe(grid, places, wrong)
        if recipe is None:
            continue
        key = key_of(recipe)
        if (twin := seen.setdefault(key, places)) is not places:
            _complain_of_twins(grid, twin, places)
        yield Cell({axis: value.label for axis, value in places.items()}, recipe, key)


def _combinations(grid: Grid) -> Iterator[Mapping[str, Value]]:
    """All combinations but the skipped ones."""
    for values in product(*grid.axes.values()):
        places = dict(zip(grid.axes, values, strict=True))
        if not any(_is(places, skipped) for skipped in grid.skip):
            yield places


def _is(places: Mapping[str, Value], wanted: Mapping[str, str]) -> bool:
    return all(places[axis].label == label for axis, label in wanted.items())


def _complain_of_twins(grid: Grid, twin: Mapping[str, Value], places: Mapping[str, Value]) -> None:
    """Two cells of one recipe: an axis that changes nothing, most often."""
    axis = next((axis for axis in places if places[axis] is not twin[axis]), next(iter(places)))
    said = [", ".join(f"{axis} {value.label}" for axis, value in one.items()) for one in (twin, places)]
    grid.wrong(places[axis].path, f"two cells are the same recipe: {said[0]}; {said[1]}", "Remove one of them")


def _recipe(grid: Grid, places: Mapping[str, Value], wrong: Wrong) -> Recipe | None:
    """A cell's recipe; None where it is not valid."""
    overrides = dict(grid.shared)
    for value in places.values():
        overrides |= value.settings
    target = overrides.pop("method", None) or grid.method or _found(grid)
    try:
        return recipe_io.load(target, overrides, methods=METHODS)
    except ConfigError as error:
        told = error.problems or (Problem(str(grid.file), "recipe", error.cause, error.fix),)
        for problem in told:
            mark, placed = _placed(grid, places, overrides, problem)
            wrong.setdefault((placed.where, placed.key, placed.cause), (mark, placed))
    return None


def _found(grid: Grid) -> str:
    """The recipe file, as it is named or beside the grid file."""
    beside = grid.file.parent / str(grid.recipe)
    return str(beside) if beside.is_file() and not Path(str(grid.recipe)).is_file() else str(grid.recipe)


# --- Where a mistake of a recipe stands in the grid -------------------------------------------------------------------


def _placed(
    grid: Grid, places: Mapping[str, Value], overrides: Mapping[str, Any], problem: Problem
) -> tuple[Mark, Problem]:
    """A problem of one cell's recipe with its line in the grid file; one of a recipe file keeps its own."""
    if grid.recipe is not None and problem.where.startswith(f"{_found(grid)}:"):
        return (0, 0), problem
    path: KeyPath = ("recipe",) if grid.recipe else ("method",)
    if problem.where == COMMAND_LINE and (key := _setting(overrides, problem.key)):
        path = next((value.place(key) for value in places.values() if key in value.settings), ("set", key))
        inside = problem.key[len(key) :].strip(".")
        path = (*path, *(int(part) if part.isdecimal() else part for part in inside.split(".") if part))
    unknown = problem.cause == "unknown key"
    axis_key = unknown and path[0] == "axes" and not places[str(path[1])].is_named
    mark = grid.mark(path[:2] if axis_key else path, at_key=unknown)
    return mark, replace(problem, where=f"{grid.file}:{mark[0]}:{mark[1]}")


def _setting(overrides: Mapping[str, Any], key: str) -> str | None:
    """The setting that a problem's key is about: the key itself, else what holds it, else what it holds."""
    around = [one for one in overrides if key == one or key.startswith(f"{one}.")]
    return max(around, key=len, default=next((one for one in overrides if one.startswith(f"{key}.")), None))


def _primary(grid: Grid, cells: Sequence[Cell], *, complete: bool) -> str:
    """The figure that the recipes choose their checkpoints by."""
    found = sorted({cell.recipe.stage.checkpoint.best_by for cell in cells})
    if complete and len(found) > 1:
        cause = f"is missing, and cells choose their checkpoints by different figures: {', '.join(found)}"
        grid.wrong(("metric",), cause, f"Write metric: {found[0]}, for instance")
    return found[0] if found else ""
