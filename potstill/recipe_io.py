"""Recipes from method names, YAML files and overrides, and back to YAML. Every mistake is reported at once.

A recipe is made in layers: what a method returns, or nothing; then a file; then the command line. A layer is a mapping
of keys to values, dotted (``budget.steps: 20``) or nested (``budget: {steps: 20}``), set one by one into plain values
along the schema. Pydantic validates the result once. Who wrote which key is kept beside the values, for the messages.
"""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

from pydantic import ValidationError, create_model
from pydantic_core import PydanticUndefined, to_jsonable_python
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from potstill import recipe_errors as errors
from potstill.errors import ConfigError
from potstill.recipe import Recipe, Section, Stage
from potstill.recipe_errors import STAGE, Issue, KeyPath, Mark, Origin, Span

COMMAND_LINE = "command line"
MAX_BYTES = 200_000  # a recipe has about 2000
MAX_VALUES = 5_000  # aliases included, so that a few lines cannot stand for a billion
MAX_DEPTH = 30
TYPED = ("int", "float", "bool", "null")
FLOW = ("[", "{", "'", '"')  # what begins a list, a mapping or quoted text
TEXT = ("str", "timestamp", "value", "merge")  # a date, "=" and "<<" mean nothing in a recipe: they stay text
REFUSED = object()  # stands for a value that is reported already


@dataclass
class Layer:
    """Settings from one place. ``spans`` says where in a file each stands; ``issues`` what was wrong with its YAML."""

    source: str
    values: dict[str, Any]
    spans: dict[KeyPath, Span] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)


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
        near = errors.closest(path.name, sorted(file.name for file in path.parent.glob("*.y*ml")))
        raise ConfigError(f"{name}: file not found", f"Did you mean '{path.parent / near}'?" if near else None)
    near_method = errors.closest(name, methods)
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
        _complain(file, ("method",), span.value, cause, fix)
    raise _refusal(file.source, errors.problems(file.issues, {}, file.source))


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
        for key in [key for key in layer.values if key in schema.model_fields]:
            given[key] = layer.values.pop(key)
            _claim(draft, layer, (key,), (key,), given[key], short=False)
    draft.values = plain(_called(methods[name], schema, given, draft))
    return draft


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
    except ValidationError as error:  # each is fine, but not together
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        draft.issues.append(Issue((list(given)[-1],), f"does not go with the other parameters: {said}"))
        return method()


def _resolved(draft: Draft, layers: list[Layer], methods: Methods) -> Recipe:
    """The draft with the layers on it, validated."""
    for layer in layers:
        _apply(draft, layer, methods)
    try:
        recipe = Recipe.model_validate(draft.values)
    except ValidationError as error:
        draft.issues += errors.issues(error, Recipe, draft.parameters)
    if draft.issues:
        raise _refusal(draft.label, errors.problems(draft.issues, draft.origins, draft.label))
    return recipe


def _refusal(label: str, problems: tuple[Any, ...]) -> ConfigError:
    return ConfigError(f"{label}: {len(problems)} problem{'s' * (len(problems) > 1)}", problems=problems)


# --- Setting keys -----------------------------------------------------------------------------------------------------


def _apply(draft: Draft, layer: Layer, methods: Methods) -> None:
    """Set a layer's keys, the outer ones first, so that their order on the command line does not matter."""
    draft.narrowed.clear()
    paths = {key: _full_path(draft, key) for key in layer.values}
    for key in sorted(paths, key=lambda key: _rank(paths[key][0])):
        path, short = paths[key]
        _claim(draft, layer, (key,), path, layer.values[key], short=short)
        if issue := _misplaced(draft, path, layer.values[key], methods):
            draft.issues.append(issue)
        else:
            draft.values = _merged(draft, Recipe, draft.values, path, layer.values[key], ())


def _full_path(draft: Draft, key: str) -> tuple[KeyPath, bool]:
    """The path of a key, and whether it was written without its stage."""
    path = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    stages = draft.values.get("stages")
    only_stage = isinstance(stages, list) and len(stages) == 1
    short = only_stage and path[0] in errors.hints(Stage) and path[0] not in errors.hints(Recipe)
    return (*STAGE, *path) if short else path, short


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


def _claim(draft: Draft, layer: Layer, written: KeyPath, path: KeyPath, value: Any, *, short: bool) -> None:
    """Note that ``layer`` set ``path`` and all that the value holds; ``written`` is where the layer has it."""
    if not isinstance(value, dict):  # what was there is replaced
        for old in [old for old in draft.origins if old[: len(path)] == path]:
            del draft.origins[old]
    draft.origins[path] = Origin(layer.source, layer.spans.get(written), short)
    parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for part, inner in parts:
        _claim(draft, layer, (*written, part), (*path, part), inner, short=short)


def _merged(draft: Draft, hint: Any, old: Any, path: KeyPath, new: Any, at: KeyPath) -> Any:
    """``old`` with ``new`` at ``path`` inside it. ``hint``: what the schema says of ``old``; ``at``: where that is."""
    if not path:
        return _replaced(draft, hint, old, new, at)
    if isinstance(old, list):
        return _with_item(draft, hint, old, path, new, at)
    if kind := errors.section_of(hint, old):
        return _with_key(draft, hint, kind, old if isinstance(old, dict) else {}, path, new, at)
    if isinstance(old, dict) or errors.tag_key(hint):  # data.fields, or a section of unknown kind: pydantic will say so
        return {**(old or {}), str(path[0]): _nested(path[1:], new)}
    draft.issues.append(Issue((*at, *path), f"{errors.dotted(at[-1:])} is a single value and has no keys", at="key"))
    return old


def _nested(path: KeyPath, value: Any) -> Any:
    return {str(path[0]): _nested(path[1:], value)} if path else value


def _with_item(draft: Draft, hint: Any, old: list[Any], path: KeyPath, new: Any, at: KeyPath) -> list[Any]:
    index = path[0]
    if not isinstance(index, int) or index >= len(old):
        cause = f"{errors.dotted(at[-1:])} has {len(old)} item{'s' * (len(old) != 1)}, and {index} is none of them"
        draft.issues.append(Issue((*at, *path), cause, f"Count from 0 to {len(old) - 1}" if old else None, at="key"))
        return old
    item = _merged(draft, errors.item_hint(hint), old[index], path[1:], new, (*at, index))
    return [*old[:index], item, *old[index + 1 :]]


def _with_key(
    draft: Draft, hint: Any, kind: type[Section], old: dict[Any, Any], path: KeyPath, new: Any, at: KeyPath
) -> dict[Any, Any]:
    key = path[0]
    if not isinstance(key, str) or key not in errors.hints(kind):
        return {**old, key: new}  # pydantic calls it unknown, together with everything else
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
        return {**old, **new} if isinstance(old, dict) else new
    result = old if isinstance(old, dict) else {}
    for key in sorted(new, key=lambda key: key != errors.tag_key(hint)):
        result = _merged(draft, hint, result, (key,), new[key], at)
    return result


# --- YAML in ----------------------------------------------------------------------------------------------------------


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``["budget.steps=20", "data=x.jsonl"]`` as a mapping, values typed as YAML 1.2 types them.

    Raises: ConfigError where an argument is not KEY=VALUE.
    """
    result: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not key or not equals:
            raise ConfigError(
                f"{argument!r} is not a setting", f"Write {key or 'KEY'}=VALUE, without spaces around the ="
            )
        if not text:
            raise ConfigError(f"{argument!r} has no value", f"Write {key}=null to unset it")
        result[key] = _typed(key, text)
    return result


def _typed(key: str, text: str) -> Any:
    """A value from the command line: a list, a mapping or quoted text as YAML reads them, a bare word by its looks."""
    layer = Layer(f"{COMMAND_LINE}: {key}", {})
    try:
        node = _compose(text, layer.source)
    except ConfigError:
        if text.lstrip()[:1] in FLOW:
            raise
        return text  # *.jsonl and @home are no YAML, but text on a command line
    if text.lstrip()[:1] not in FLOW and not (isinstance(node, ScalarNode) and node.value == text):
        return text  # "a: b" and "a #1" likewise
    value = _value(node, layer, ())
    if layer.issues:
        raise _refusal(layer.source, errors.problems(layer.issues, {}, layer.source))
    return value


def read_file(path: Path) -> Layer:
    """The settings in a YAML file and where each stands.

    Raises: ConfigError where it is no YAML mapping. Lesser mistakes are in the layer's ``issues``.
    """
    layer = Layer(str(path), {})
    node = _compose(_text_of(path), layer.source)
    if not isinstance(node, MappingNode):
        what = "is empty" if node is None else "is not a mapping of keys to values"
        raise ConfigError(f"{path}: {what}", "The shortest recipe is `method: kd`")
    layer.spans[()] = Span(_mark(node), _mark(node))
    values = _value(node, layer, ())
    layer.values = {} if values is REFUSED else values
    return layer


def _text_of(path: Path) -> str:
    try:
        size, raw = path.stat().st_size, b""
        if size <= MAX_BYTES:
            raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: has {size} bytes, too many for a recipe", "Name a recipe, not data or a model")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text", "Save it as UTF-8") from None


def _compose(text: str, source: str) -> Any:
    """The YAML nodes of a text: unlike its values, they know where they stand."""
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # legal, and a warning would be one more voice
    try:
        return yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        said = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        fix = "Indent with spaces, not tabs" if "'\\t'" in said else None
        raise ConfigError(f"{where}: is not valid YAML: {said}", fix) from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply") from None
    except Exception as error:  # a character that no YAML may hold, or what the parser itself stumbles over
        line = text.count("\n", 0, getattr(error, "position", None) or 0) + 1
        raise ConfigError(f"{source}:{line}: is not valid YAML: {str(error).splitlines()[0]}") from None


def _mark(node: Any) -> Mark:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _value(node: Any, layer: Layer, path: KeyPath) -> Any:
    """What a node stands for: mappings, lists and scalars, nothing that runs code."""
    if len(path) > MAX_DEPTH or len(layer.spans) > MAX_VALUES:
        line, column = _mark(node)
        raise ConfigError(f"{layer.source}:{line}:{column}: too deep or too large, aliases included, for a recipe")
    tag = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if isinstance(node, MappingNode) and tag == "map":
        return _mapping(node, layer, path)
    if isinstance(node, SequenceNode) and tag == "seq":
        return _items(node, layer, path)
    if isinstance(node, ScalarNode) and tag in TEXT:
        return str(node.value)
    try:
        if isinstance(node, ScalarNode) and tag in TYPED:
            return getattr(_constructor(), f"construct_yaml_{tag}")(node)
    except (ValueError, LookupError):  # !!int ten
        _complain(layer, path, _mark(node), f"{errors.shown(node.value)} cannot be read as {tag}")
        return REFUSED
    fix = "Write plain text, numbers, lists and mappings"
    _complain(layer, path, _mark(node), f"the tag {node.tag} is refused", fix)
    return REFUSED


def _complain(layer: Layer, path: KeyPath, mark: Mark, cause: str, fix: str | None = None) -> None:
    """Note an issue of the file's own keys, which are not yet paths in a recipe."""
    layer.issues.append(Issue(path, cause, fix, origin=Origin(layer.source, Span(mark, mark), short=False)))


@cache
def _constructor() -> Any:
    return YAML(typ="safe", pure=True).constructor


def _items(node: SequenceNode, layer: Layer, path: KeyPath) -> list[Any]:
    layer.spans |= {(*path, i): Span(_mark(item), _mark(item)) for i, item in enumerate(node.value)}
    values = [_value(item, layer, (*path, i)) for i, item in enumerate(node.value)]
    return [value for value in values if value is not REFUSED]


def _mapping(node: MappingNode, layer: Layer, path: KeyPath) -> dict[str, Any]:
    """A mapping with text as keys, each of them once."""
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        mark = _mark(key_node)
        if not isinstance(key_node, ScalarNode):
            _complain(layer, (*path, "?"), mark, "a list or mapping stands as a key", "Write a name there")
            continue
        key = str(key_node.value)
        if first := layer.spans.get((*path, key)):
            _complain(layer, (*path, key), mark, f"stands twice, first in line {first.key[0]}", "Remove one of them")
            continue
        empty = value_node.start_mark.index == value_node.end_mark.index  # "budget:" has no value to point at
        layer.spans[(*path, key)] = Span(mark, mark if empty else _mark(value_node))
        if (value := _value(value_node, layer, (*path, key))) is not REFUSED:
            result[key] = value
    return result


# --- YAML out ---------------------------------------------------------------------------------------------------------


def dump(recipe: Recipe) -> str:
    """A recipe as YAML, every setting written out. What is unset is left out, and ``load`` gives the same recipe."""
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # long text stays on its line
    out = io.StringIO()
    out.write("# Every setting of a run. It runs again as it is: potstill train THIS_FILE\n")
    yaml.dump(_readable(recipe.model_dump(mode="json", exclude_none=True)), out)
    return out.getvalue()


def _readable(value: Any) -> Any:
    """Short lists on one line, and text with odd characters in quotes that keep them."""
    if isinstance(value, dict):
        return {key: _readable(inner) for key, inner in value.items()}
    if isinstance(value, str):
        return value if value.isprintable() else DoubleQuotedScalarString(value)
    if not isinstance(value, list):
        return value
    items = CommentedSeq(map(_readable, value))
    if not any(isinstance(item, dict | list) for item in items):
        items.fa.set_flow_style()
    return items
