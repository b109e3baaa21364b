"""Recipes from method names, YAML files and overrides, and back to YAML. Every mistake is reported at once.

A recipe is made in layers: what a method returns, or nothing; then a file; then the command line. A layer is a mapping
of keys to values, dotted (``budget.steps: 20``) or nested (``budget: {steps: 20}``), set one by one into plain values
along the schema. Pydantic validates the result once. Who wrote which key is kept beside the values, for the messages.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

from pydantic import ValidationError, create_model
from pydantic_core import PydanticUndefined, to_jsonable_python

from potstill import recipe_errors as errors
from potstill.errors import ConfigError, closest
from potstill.recipe import Recipe, Section, Stage
from potstill.recipe_errors import STAGE, Issue, KeyPath, Origin
from potstill.recipe_yaml import COMMAND_LINE, Layer, complain, dump, parse_overrides, read_file, refusal

__all__ = ["dump", "load", "parse_overrides"]


@dataclass
class Draft:
    """A recipe in the making: plain values, who set them, and what is wrong so far."""

    label: str  # where a mistake stands that nobody wrote
    values: dict[str, Any]
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    method: str | None = None  # the one that was called, if any
    parameters: tuple[str, ...] = ()  # and what it takes
    narrowed: set[KeyPath] = field(default_factory=set)  # sections of which this layer has set a ``one_of`` key


Methods = Mapping[str, Callable[..., Recipe]]


def load(target: str | Path | Recipe, overrides: Mapping[str, Any] | None = None, *, methods: Methods) -> Recipe:
    """The recipe that ``target`` and ``overrides`` describe, resolved and valid.

    Args:
        target: a method's name, a YAML file, or a Recipe.
        overrides: settings by key, dotted or nested. In a recipe of one stage the ``stages.0.`` may be left out.
        methods: the built-in methods by name.
    Raises: ConfigError, with every problem found.
    """
    command = Layer(COMMAND_LINE, plain(dict(overrides or {})))
    if isinstance(target, Recipe):
        return _resolved(Draft(f"recipe {target.method}", plain(target)), [command], methods)
    if str(target) in methods:
        return _resolved(_from_method(str(target), methods, [command], f"recipe {target}"), [command], methods)
    file = read_file(_found(target, methods))
    if "stages" in file.values:
        return _resolved(_from_file(file), [command], methods)
    name = _method_of(file, methods)
    return _resolved(_from_method(name, methods, [file, command], file.source), [file, command], methods)


def plain(value: Any) -> Any:
    """Sections, paths and tuples as mappings, text and lists."""
    return to_jsonable_python(value, fallback=lambda other: other)


# --- The target -------------------------------------------------------------------------------------------------------


def _found(target: str | Path, methods: Methods) -> Path:
    """The recipe file that ``target`` names."""
    path, name = Path(target), str(target)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
        raise ConfigError("a recipe is a file here: recipes are not fetched", "Download it, read it, and name the file")
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{name} is a folder, not a recipe", f"Name the file, such as {path / 'recipe.yaml'}")
    if path.suffix in (".yaml", ".yml"):
        near = closest(path.name, sorted(file.name for file in path.parent.glob("*.y*ml")))
        raise ConfigError(f"{name}: file not found", f"Did you mean '{path.parent / near}'?" if near else None)
    near_method = closest(name, methods)
    hint = f"Did you mean '{near_method}'? " if near_method else ""
    raise ConfigError(f"no method or recipe file called '{name}'", f"{hint}Methods: {', '.join(methods)}")


def _method_of(file: Layer, methods: Methods) -> str:
    """The method a file starts from, taken out of its settings."""
    name = file.values.pop("method", None)
    if isinstance(name, str) and name in methods:
        return name
    if name is None:
        cause, fix = "is missing", f"Give one ({', '.join(methods)}), or stages"
    else:
        cause, fix = f"no method called {errors.shown(name)}", errors.did_you_mean(str(name), methods, "Methods")
    if name is not None or not file.issues:  # it may be missing because it could not be read
        span = file.spans.get(("method",), file.spans[()])
        complain(file, ("method",), span.value, cause, fix)
    raise refusal(file.source, errors.problems(file.issues, {}, file.source))


def _from_file(file: Layer) -> Draft:
    """The draft of a recipe written out in full."""
    draft = Draft(file.source, {}, issues=list(file.issues))
    _claim(draft, file, (), (), file.values, short=False)
    draft.values = _replaced(draft, Recipe, {}, file.values, ())
    return draft


def _from_method(name: str, methods: Methods, layers: list[Layer], label: str) -> Draft:
    """The draft of a method's recipe. The method's own parameters are taken out of the layers."""
    schema = _parameters(methods[name])
    draft = Draft(label, {}, method=name, parameters=tuple(schema.model_fields))
    draft.issues += [issue for layer in layers for issue in layer.issues]
    given: dict[str, Any] = {}
    for layer in layers:
        for key in _outer_first(key for key in layer.values if key.split(".")[0] in schema.model_fields):
            path, value = _path(key), layer.values.pop(key)
            _claim(draft, layer, (key,), path, value, short=False)
            given = _merged(draft, schema, given, path, value, ())
    draft.values = plain(_called(methods[name], schema, given, draft))
    return draft


def _outer_first(keys: Iterable[str]) -> list[str]:
    """Keys in an order in which the one that chooses a section's kind comes before those inside it."""
    return sorted(keys, key=lambda key: (key.count("."), not key.endswith((".name", ".kind"))))


@cache
def _parameters(method: Callable[..., Recipe]) -> type[Section]:
    """A method's parameters as a section, so that they are checked and explained like any other."""
    annotated = get_type_hints(method, include_extras=True)
    fields = {p.name: (annotated[p.name], p.default) for p in inspect.signature(method).parameters.values()}
    return create_model("Parameters", __base__=Section, **fields)  # type: ignore[call-overload]


def _called(method: Callable[..., Recipe], schema: type[Section], given: dict[str, Any], draft: Draft) -> Recipe:
    """What the method returns for the parameters that are valid."""
    try:
        checked = schema.model_validate(given)
    except ValidationError as error:
        wrong = list(errors.issues(error, schema))
        draft.issues += wrong
        checked = schema.model_validate({k: v for k, v in given.items() if k not in {i.path[0] for i in wrong}})
    try:
        return method(**{key: getattr(checked, key) for key in checked.model_fields_set})
    except ValueError as error:  # each is fine, but not together
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        why = said.removeprefix("Value error, ")
        draft.issues.append(Issue((list(given)[-1],), f"does not go with the other parameters: {why}"))
        return method()


def _resolved(draft: Draft, layers: list[Layer], methods: Methods) -> Recipe:
    """The draft with the layers on it, validated."""
    for layer in layers:
        _apply(draft, layer, methods)
    try:
        recipe = Recipe.model_validate(draft.values)
    except ValidationError as error:
        draft.issues += errors.issues(error, Recipe, draft.parameters, tuple(_places(draft.values.get("stages"))))
    if draft.issues:
        raise refusal(draft.label, errors.problems(draft.issues, draft.origins, draft.label))
    return recipe


# --- Setting keys -----------------------------------------------------------------------------------------------------


def _apply(draft: Draft, layer: Layer, methods: Methods) -> None:
    """Set a layer's keys, the outer ones first, so that their order on the command line does not matter."""
    draft.narrowed.clear()
    targets = [target for key in layer.values for target in _targets(draft, key)]
    for target in sorted(targets, key=lambda target: (not target.every, _rank(target.path))):
        value = layer.values[target.key]
        _claim(draft, layer, (target.key,), target.path, value, short=target.short, every=target.every)
        if issue := _misplaced(draft, target.path, value, methods):
            draft.issues.append(issue)
        else:
            draft.values = _merged(draft, Recipe, draft.values, target.path, value, ())


def _path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


@dataclass(frozen=True)
class Target:
    """Where a key of a layer leads. ``short``: it was written without its stage. ``every``: it is of all stages."""

    key: str
    path: KeyPath
    short: bool = False
    every: bool = False


def _targets(draft: Draft, key: str) -> list[Target]:
    """Where a key leads: to one place, or with ``all`` to one in every stage.

    A stage's name stands for its place: ``r2.budget.steps``, or ``stages.r2.budget.steps``.
    """
    path = _path(key)
    stages = draft.values.get("stages")
    places = _places(stages)
    if path[0] == errors.ALL and len(path) > 1 and isinstance(stages, list):
        having = [at for at, stage in enumerate(stages) if not (path[1] == "budget" and _follows(stage))]
        return [Target(key, ("stages", at, *path[1:]), every=True) for at in having]
    if path[0] in places and path[0] not in errors.hints(Recipe):
        return [Target(key, ("stages", places[path[0]], *path[1:]))]
    if path[0] == "stages" and len(path) > 1 and path[1] in places:
        return [Target(key, ("stages", places[path[1]], *path[2:]))]
    only_stage = isinstance(stages, list) and len(stages) == 1
    short = only_stage and path[0] in errors.hints(Stage) and path[0] not in errors.hints(Recipe)
    return [Target(key, (*STAGE, *path) if short else path, short=short)]


def _follows(stage: Any) -> bool:
    """Whether a stage's budget is that of other stages, and so no budget of all stages is its."""
    budget = stage.get("budget") if isinstance(stage, dict) else None
    return isinstance(budget, dict) and budget.get("compute_of") is not None


def _places(stages: Any) -> dict[Any, int]:
    """Where each stage of several stands, by its name; a name that is given twice is the schema's to refuse."""
    several = isinstance(stages, list) and len(stages) > 1
    names = [stage.get("name") for stage in stages if isinstance(stage, dict)] if several else []
    return {name: at for at, name in enumerate(names) if isinstance(name, str)}


def _rank(path: KeyPath) -> tuple[int, bool]:
    """Outer keys before inner ones, and the key that chooses the kind of a section before anything else in it."""
    is_tag = errors.tag_key(errors.locate(Recipe, path[:-1]).hint) == path[-1]
    return len(path) - is_tag, not is_tag


def _misplaced(draft: Draft, path: KeyPath, value: Any, methods: Methods) -> Issue | None:
    """A key that is known, but cannot be set in this recipe."""
    if path == ("method",) and draft.method not in (None, value):
        fix = f"Start from {value} instead" if str(value) in methods else None
        return Issue(path, f"this recipe starts from {draft.method}", fix)
    if path[0] in draft.parameters:
        return Issue(path, f"{path[0]} is a single value and has no keys", at="key")
    name = str(draft.values.get("method"))
    if not draft.method and name in methods and path[0] in _parameters(methods[name]).model_fields:
        fix = f"Start from {name}, or change streams"
        return Issue(path, f"is a parameter of {name}, and this recipe is written out in full", fix, at="key")
    return None


def _claim(
    draft: Draft, layer: Layer, written: KeyPath, path: KeyPath, value: Any, *, short: bool, every: bool = False
) -> None:
    """Note that ``layer`` set ``path`` and all that the value holds; ``written`` is where the layer has it."""
    if not isinstance(value, dict):  # what was there is replaced
        for old in [old for old in draft.origins if old[: len(path)] == path]:
            del draft.origins[old]
    draft.origins[path] = Origin(layer.source, layer.spans.get(written), short, every)
    parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for part, inner in parts:
        _claim(draft, layer, (*written, part), (*path, part), inner, short=short, every=every)


def _merged(draft: Draft, hint: Any, old: Any, path: KeyPath, new: Any, at: KeyPath) -> Any:
    """``old`` with ``new`` at ``path`` inside it. ``hint``: what the schema says of ``old``; ``at``: where that is."""
    if not path:
        return _replaced(draft, hint, old, new, at)
    if isinstance(old, list):
        return _with_item(draft, hint, old, path, new, at)
    if kind := errors.section_of(hint, old):
        return _with_key(draft, hint, kind, old if isinstance(old, dict) else {}, path, new, at)
    inner = errors.child(hint, path[0]) if len(path) > 1 else None
    if isinstance(old, dict) and not isinstance(path[0], int) and errors.sections(inner):  # teachers.big.revision
        return {**old, path[0]: _merged(draft, inner, old.get(path[0]), path[1:], new, (*at, path[0]))}
    # data.fields, the settings of another method, or a section of unknown kind: pydantic will say so
    if isinstance(old, dict) or errors.tag_key(hint):
        return _over(old or {}, _nested(path, new))
    draft.issues.append(Issue((*at, *path), f"{errors.dotted(at[-1:])} is a single value and has no keys", at="key"))
    return old


def _nested(path: KeyPath, value: Any) -> Any:
    return {str(path[0]): _nested(path[1:], value)} if path else value


def _over(old: Any, new: Any) -> Any:
    """Plain values: a mapping changes the keys it has, however deep; anything else takes the place of ``old``."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _over(old.get(key), value) for key, value in new.items()}


def _with_item(draft: Draft, hint: Any, old: list[Any], path: KeyPath, new: Any, at: KeyPath) -> list[Any]:
    index = path[0]
    if not isinstance(index, int) or index >= len(old):
        cause = f"{errors.dotted(at[-1:])} has {len(old)} item{'s' * (len(old) != 1)}, and {index} is none of them"
        fix = f"Count from 0 to {len(old) - 1}" if old else None
        if at == STAGE[:1] and (names := tuple(_places(old))):
            fix = errors.no_stage(str(index), names)
        draft.issues.append(Issue((*at, *path), cause, fix, at="key"))
        return old
    item = _merged(draft, errors.item_hint(hint), old[index], path[1:], new, (*at, index))
    return [*old[:index], item, *old[index + 1 :]]


def _with_key(
    draft: Draft, hint: Any, kind: type[Section], old: dict[Any, Any], path: KeyPath, new: Any, at: KeyPath
) -> dict[Any, Any]:
    key = path[0]
    if not isinstance(key, str) or key not in errors.hints(kind):
        unknown, before = _nested(path[1:], new), old.get(key)
        if isinstance(unknown, dict) and isinstance(before, dict):
            unknown = {**before, **unknown}
        return {**old, key: unknown}  # pydantic calls it unknown, together with everything else
    if key == errors.tag_key(hint) and new != old.get(key):
        return _switched(hint, kind, old, key, new)
    if key in kind.one_of and new is not None and at not in draft.narrowed:
        draft.narrowed.add(at)  # a second one in the same layer is a contradiction, for the schema to refuse
        old = {**old, **dict.fromkeys(kind.one_of)}
    value = _merged(draft, errors.hints(kind)[key], old.get(key, _default(kind, key)), path[1:], new, (*at, key))
    return {**old, key: value}


def _switched(hint: Any, kind: type[Section], old: dict[str, Any], tag: str, new: Any) -> dict[str, Any]:
    """A section turned into another kind. What was set and the new kind knows too is kept; defaults are not."""
    if not (other := errors.variants(hint).get(str(new))):
        return {**old, tag: new}
    gone = {key for key in errors.hints(kind) if key not in errors.hints(other) or old.get(key) == _default(kind, key)}
    return {tag: new, **{key: value for key, value in old.items() if key not in {tag, *gone}}}


def _default(kind: type[Section], key: str) -> Any:
    value = kind.model_fields[key].get_default(call_default_factory=True, validated_data={})
    return None if value is PydanticUndefined else plain(value)


def _replaced(draft: Draft, hint: Any, old: Any, new: Any, at: KeyPath) -> Any:
    """``new`` in the place of ``old``. A mapping changes the keys it has; a bare value sets the key it is short for."""
    if isinstance(new, dict):
        return _updated(draft, hint, old, new, at)
    if new is None and NoneType in errors.members(hint):
        return None
    if isinstance(spelled := errors.longhand(hint, new), dict):
        # The name of another objective keeps the settings of this one; another model is another student.
        keeps = set(spelled) == {errors.tag_key(hint)}
        return _updated(draft, hint, old if keeps else None, spelled, at)
    if isinstance(new, list):
        return [_replaced(draft, errors.item_hint(hint), None, item, (*at, i)) for i, item in enumerate(new)]
    if (kind := errors.section_of(hint, old)) and kind.shorthand:
        return _merged(draft, hint, old, (kind.shorthand,), new, at)
    return new


def _updated(draft: Draft, hint: Any, old: Any, new: dict[str, Any], at: KeyPath) -> Any:
    """``old`` with every key of ``new`` set, the one that chooses the kind first."""
    if not errors.sections(hint):
        return _over(old, new)
    result = old if isinstance(old, dict) else {}
    for key in sorted(new, key=lambda key: key != errors.tag_key(hint)):
        result = _merged(draft, hint, result, (key,), new[key], at)
    return result
