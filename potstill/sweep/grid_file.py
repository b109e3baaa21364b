"""The grid file: which recipe, which settings, and along which axes they change. Every mistake is told with its line.

    method: kd
    set: {budget.steps: 200, data: rows.jsonl}
    axes:
      divergence: [forward_kl, reverse_kl]
      seed: [1, 2, 3]
      student: {small: {student: models/a}, large: {student: models/b, batch.size: 4}}

An axis is a key of the recipe with its values, or a name of its own over named groups of settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.errors import closest, nearest
from potstill.recipe_errors import KeyPath, shown
from potstill.recipe_yaml import read_file
from potstill.recipes import METHODS
from potstill.sweep.grid import Grid, Value, label_of

KEYS = ("method", "recipe", "set", "axes", "metric", "replicates", "x", "against", "skip", "jobs")
REPLICATES = "seed"  # what is averaged over where the file names nothing
NOT_AN_AXIS = "is not an axis"


def read_grid(file: Path) -> Grid:
    """The grid in a file. Its mistakes are noted in ``layer.issues``, for the cells' own to be told with them.

    Raises: ConfigError where it is no YAML mapping.
    """
    layer = read_file(file)
    grid = Grid(file, layer)
    values = layer.values
    for key in values.keys() - set(KEYS):
        fix = f"{nearest(key, KEYS)}Valid keys: {', '.join(KEYS)}. A recipe's own keys stand under set or axes"
        grid.wrong((key,), "unknown key", fix, at_key=True)
    axes = dict(_axes(grid, values.get("axes")))
    shared = _shared(grid, values.get("set", {}), axes)
    replicates = _axis(grid, "replicates", values.get("replicates"), axes)
    if "replicates" not in values and REPLICATES in axes:
        replicates = REPLICATES
    x = _axis(grid, "x", values.get("x"), axes)
    if x is not None and x == replicates:
        grid.wrong(("x",), f"{x} is the axis that is averaged over", "Choose another")
    return Grid(
        file,
        layer,
        method=_method(grid, values, axes),
        recipe=_text(grid, "recipe", values.get("recipe")),
        shared=shared,
        axes=axes,
        metric=_text(grid, "metric", values.get("metric")),
        replicates=replicates,
        x=x,
        against=_against(grid, values, axes, replicates),
        skip=tuple(_skipped(grid, values.get("skip", []), axes)),
        jobs=_jobs(grid, values.get("jobs", 1)),
    )


# --- What stands in the file ------------------------------------------------------------------------------------------


def _text(grid: Grid, key: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    grid.wrong((key,), f"must be text, not {shown(value)}")
    return None


def _jobs(grid: Grid, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    grid.wrong(("jobs",), f"must be a whole number of at least 1, not {shown(value)}")
    return 1


def _method(grid: Grid, values: Mapping[str, Any], axes: Mapping[str, tuple[Value, ...]]) -> str | None:
    """The method that all cells start from; None where a recipe or an axis gives it."""
    given = [key for key in ("method", "recipe") if values.get(key) is not None]
    given += [f"axes.{name}" for name, places in axes.items() if any("method" in place.settings for place in places)]
    if not given and "axes" in values:
        grid.wrong(("method",), "is missing", f"Give method ({', '.join(METHODS)}), recipe, or an axis called method")
    for key in given[1:]:
        grid.wrong(tuple(key.split(".", 1)), f"{given[0]} gives the recipe already", "Keep one of them", at_key=True)
    method = _text(grid, "method", values.get("method"))
    named: list[tuple[KeyPath, Any]] = [(("method",), method)]
    named += [
        (place.place("method"), place.settings["method"])
        for places in axes.values()
        for place in places
        if "method" in place.settings
    ]
    for path, name in named:
        if name is not None and str(name) not in METHODS:
            fix = f"{nearest(str(name), METHODS)}Methods: {', '.join(METHODS)}"
            grid.wrong(path, f"no method called {shown(name)}", fix)
    return method


def _axes(grid: Grid, value: Any) -> Iterator[tuple[str, tuple[Value, ...]]]:
    """The axes that can be read."""
    if "axes" not in grid.layer.values and _meant_as_axes(grid.layer.values):
        return
    if value is None or not isinstance(value, dict) or not value:
        grid.wrong(("axes",), "must have one axis or more", "Write a key with its values, such as seed: [1, 2, 3]")
        return
    seen: dict[str, str] = {}  # key: axis
    for name, values in value.items():
        path: KeyPath = ("axes", name)
        places = tuple(_places(grid, path, values))
        for key in dict.fromkeys(key for place in places for key in place.settings):
            if (before := seen.setdefault(key, name)) != name:
                grid.wrong(path, f"{key} changes along {before} too", "A key belongs to one axis", at_key=True)
        for at, place in enumerate(places):
            if place.label in {other.label for other in places[:at]}:
                grid.wrong(place.path, f"{place.label} stands twice", "Cells of it would be the same: remove one")
        yield name, places


def _meant_as_axes(values: Mapping[str, Any]) -> bool:
    """Whether a key is ``axes`` misspelt, which is told as an unknown key."""
    return any(isinstance(values[key], dict) and closest(key, KEYS) == "axes" for key in values.keys() - set(KEYS))


def _places(grid: Grid, path: KeyPath, values: Any) -> Iterator[Value]:
    """The places of one axis."""
    if not isinstance(values, list | dict):
        fix = "Write values as [1, 2, 3], or groups as {small: {student: models/a}}"
        grid.wrong(path, f"must be a list of values or a mapping of named settings, not {shown(values)}", fix)
        return
    if not values:
        grid.wrong(path, "has no values", "Give it one or more, or leave the axis out")
    if isinstance(values, list):
        for at, item in enumerate(values):
            yield Value(label_of(item), {str(path[-1]): item}, (*path, at), raw=item)
        return
    for name, settings in values.items():
        if isinstance(settings, dict) and settings:
            yield Value(name, settings, (*path, name), is_named=True)
        else:
            fix = "Write {student: models/a, batch.size: 4}, or the axis as a list of values"
            grid.wrong((*path, name), f"must be a mapping of settings, not {shown(settings)}", fix)


def _shared(grid: Grid, value: Any, axes: Mapping[str, tuple[Value, ...]]) -> Mapping[str, Any]:
    """The settings of all cells."""
    if not isinstance(value, dict):
        grid.wrong(("set",), f"must be a mapping of settings, not {shown(value)}", "Write set: {budget.steps: 200}")
        return {}
    moving = {key: name for name, places in axes.items() for place in places for key in place.settings}
    for key in value:
        if key in moving:
            grid.wrong(("set", key), f"changes along the axis {moving[key]}", "Keep it in one place", at_key=True)
        elif key == "method":
            grid.wrong(("set", key), "stands outside set", "Write method: NAME as a line of its own", at_key=True)
    if "run" in value or "run" in moving:
        path = ("set", "run") if "run" in value else ("axes", moving["run"])
        grid.wrong(path, "names one run, and each cell has one of its own", "Name the sweep with --name", at_key=True)
    return value


# --- What refers to axes ----------------------------------------------------------------------------------------------


def _axis(grid: Grid, key: str, name: Any, axes: Iterable[str]) -> str | None:
    """An axis that the file names."""
    if name is None or name in (known := list(axes)):
        return name
    if not known:  # that there are none is told already
        return None
    grid.wrong((key,), f"{shown(name)} {NOT_AN_AXIS}", f"{nearest(str(name), known)}Axes: {', '.join(known)}")
    return None


def _against(
    grid: Grid, values: Mapping[str, Any], axes: Mapping[str, tuple[Value, ...]], replicates: str | None
) -> Mapping[str, str]:
    """What every cell is set against."""
    if (given := values.get("against")) is None:
        return {}
    found = _chosen(grid, ("against",), given, axes)
    if replicates in found:
        grid.wrong(("against", str(replicates)), "is averaged over: cells of the same one are set side by side anyway")
    if found and all(len(axes[name]) == 1 for name in found):
        grid.wrong(("against",), "is every combination, so that nothing is set against it")
    return found


def _skipped(grid: Grid, given: Any, axes: Mapping[str, tuple[Value, ...]]) -> Iterator[Mapping[str, str]]:
    """Combinations that are left out."""
    if not isinstance(given, list):
        grid.wrong(
            ("skip",), f"must be a list of combinations, not {shown(given)}", "Write skip: [{variant: standard}]"
        )
        return
    for at, item in enumerate(given):
        if found := _chosen(grid, ("skip", at), item, axes):
            yield found


def _chosen(grid: Grid, path: KeyPath, given: Any, axes: Mapping[str, tuple[Value, ...]]) -> Mapping[str, str]:
    """Places on axes, by label; {} where one of them is not there."""
    if not isinstance(given, dict) or not given:
        grid.wrong(path, f"must be a mapping of axes to values, not {shown(given)}", "Write {variant: standard}")
        return {}
    if not all(axes.get(name, True) for name in given) or not axes:  # told already: no axes, or one without values
        return {}
    found: dict[str, str] = {}
    for name, value in given.items():
        if name not in axes:
            fix = f"{nearest(name, axes)}Axes: {', '.join(axes)}"
            grid.wrong((*path, name), NOT_AN_AXIS, fix, at_key=True)
        elif label := _matching(axes[name], value):
            found[name] = label
        else:
            labels = [place.label for place in axes[name]]
            fix = f"{nearest(label_of(value), labels)}Values: {', '.join(labels)}"
            grid.wrong((*path, name), f"matches no cell: {name} is never {shown(value)}", fix)
    return found if len(found) == len(given) else {}


def _matching(places: Iterable[Value], value: Any) -> str | None:
    """The label of the place that a value names: 1 and 1.0 are one."""
    wanted = label_of(value)
    for place in places:
        same = not place.is_named and place.raw == value and isinstance(place.raw, bool) == isinstance(value, bool)
        if place.label == wanted or same:
            return place.label
    return None
