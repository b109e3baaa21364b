"""Recipes as YAML text: in, with the line and column of every key; out, so that it reads back the same.

Read with ruamel.yaml, which speaks YAML 1.2: 1e-5 is a number and ``no`` is a string. Nothing in a file can run code,
refer to other files or grow beyond a few thousand values.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from potstill import recipe_errors as errors
from potstill.errors import ConfigError
from potstill.recipe import Recipe
from potstill.recipe_errors import Issue, KeyPath, Mark, Origin, Span

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


def refusal(label: str, problems: tuple[Any, ...]) -> ConfigError:
    return ConfigError(f"{label}: {len(problems)} problem{'s' * (len(problems) > 1)}", problems=problems)


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
        raise refusal(layer.source, errors.problems(layer.issues, {}, layer.source))
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
        complain(layer, path, _mark(node), f"{errors.shown(node.value)} cannot be read as {tag}")
        return REFUSED
    fix = "Write plain text, numbers, lists and mappings"
    complain(layer, path, _mark(node), f"the tag {node.tag} is refused", fix)
    return REFUSED


def complain(layer: Layer, path: KeyPath, mark: Mark, cause: str, fix: str | None = None) -> None:
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
            complain(layer, (*path, "?"), mark, "a list or mapping stands as a key", "Write a name there")
            continue
        key = str(key_node.value)
        if first := layer.spans.get((*path, key)):
            complain(layer, (*path, key), mark, f"stands twice, first in line {first.key[0]}", "Remove one of them")
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
