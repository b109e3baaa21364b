"""What is wrong with a recipe, in the user's words: where it stands, under which key, and the way out.

Pydantic says *that* a value is refused. What the value must be is read off the schema, so that a bound or a choice
stands in one place, and a message never shows more machinery than the user wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from potstill.errors import Problem, closest, nearest
from potstill.recipe import Recipe, Section, Stage

KeyPath = tuple[str | int, ...]  # ("stages", 0, "budget", "steps")
Mark = tuple[int, int]  # line and column, from 1
STAGE: KeyPath = ("stages", 0)
ALL = "all"  # of the stages: all.budget.steps


@dataclass(frozen=True)
class Span:
    """Where a key and its value begin in a file."""

    key: Mark
    value: Mark


@dataclass(frozen=True)
class Origin:
    """Who set a key: a file or "command line", where in it, and how its stage was written: not at all where ``short``,
    as ``all`` where ``every``."""

    source: str
    span: Span | None
    short: bool
    every: bool = False


@dataclass(frozen=True)
class Issue:
    """A problem by its full path. ``at`` says which end of the line is to blame: the key or its value."""

    path: KeyPath
    cause: str
    fix: str | None = None
    at: Literal["key", "value"] = "value"
    origin: Origin | None = None  # where the path alone does not say it


# --- Reading the schema -----------------------------------------------------------------------------------------------


@cache
def hints(section: type[Section]) -> dict[str, Any]:
    """The keys of a section and what each may hold."""
    declared = get_type_hints(section, include_extras=True)
    return {key: declared[key] for key in section.model_fields}


def unwrap(hint: Any) -> tuple[Any, list[Any]]:
    """``Annotated[int, Field(ge=1)]`` as ``int`` and its constraints."""
    if get_origin(hint) is not Annotated:
        return hint, []
    core, *notes = get_args(hint)
    return core, [part for note in notes for part in (note, *getattr(note, "metadata", ()))]


def members(hint: Any) -> list[Any]:
    """The alternatives of a union, and of unions inside it; of anything else, itself."""
    return [inner for part in _parts(hint) for inner in members(part)] or [hint]


def _parts(hint: Any) -> tuple[Any, ...]:
    core, _ = unwrap(hint)
    return get_args(core) if get_origin(core) in (Union, UnionType) else ()


def sections(hint: Any) -> list[type[Section]]:
    """The kinds of section a key may hold."""
    return [core for core, _ in map(unwrap, members(hint)) if isinstance(core, type) and issubclass(core, Section)]


def tag_key(hint: Any) -> str | None:
    """The key that chooses between several kinds of section: ``kind`` of a student, ``name`` of an objective."""
    for note in unwrap(hint)[1]:
        if isinstance(note, FieldInfo) and note.discriminator:
            return str(note.discriminator)
    return next((key for part in _parts(hint) if (key := tag_key(part))), None)


def variants(hint: Any) -> dict[str, type[Section]]:
    """The kinds of section a key may hold, by tag."""
    key = tag_key(hint)
    return {tag: kind for kind in sections(hint) for tag in get_args(hints(kind)[key])} if key else {}


def longhand(hint: Any, value: Any) -> Any:
    """A value as the schema's own short forms spell it out: ``forward_kl`` is ``{name: forward_kl}``."""
    for note in unwrap(hint)[1]:
        if isinstance(note, BeforeValidator):
            with suppress(ValueError):  # refused: validating it will say so
                value = note.func(value)  # type: ignore[call-arg]  # ours take the value alone
    for part in _parts(hint):
        value = longhand(part, value)
    return value


def section_of(hint: Any, value: Any) -> type[Section] | None:
    """The section that a key holds, or will hold once something is set in it."""
    if not (key := tag_key(hint)):
        return next(iter(sections(hint)), None)
    spelled = longhand(hint, value if isinstance(value, Mapping) else {})
    return variants(hint).get(str(spelled.get(key)))


def item_hint(hint: Any) -> Any:
    """What an item of a list may be; None where the key holds no list."""
    cores = (unwrap(member)[0] for member in members(hint))
    return next((get_args(core)[0] for core in cores if get_origin(core) is tuple), None)


def child(hint: Any, part: str | int) -> Any:
    """What may stand at ``part`` inside a value; None where the value has no parts of that sort."""
    if kinds := sections(hint):
        return hints(kinds[0]).get(str(part), Any)
    if get_origin(unwrap(hint)[0]) is dict:
        return get_args(unwrap(hint)[0])[1]
    return item_hint(hint) if isinstance(part, int) else None


# --- From pydantic's errors to issues ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Located:
    """An error's path without pydantic's tags, what may stand there, and what surrounds it."""

    path: KeyPath
    hint: Any
    outer: Any


def locate(root: type[Section], loc: Iterable[str | int]) -> Located:
    """Drop from ``loc`` what the user did not write: tags of unions, names of types, "[key]"."""
    at = Located((), root, root)
    for part in loc:
        if kind := variants(at.hint).get(str(part)):
            at = Located(at.path, kind, at.outer)
        elif _mixes(at.hint):  # the name of a type, where a section may stand in the place of a number
            continue
        elif (inner := child(at.hint, part)) is not None:
            at = Located((*at.path, part), inner, at.hint)
    return at


def _mixes(hint: Any) -> bool:
    """Sections and plain values are alternatives here."""
    plain = [member for member in members(hint) if member is not NoneType and not sections(member)]
    return bool(plain and sections(hint))


def issues(
    error: ValidationError, root: type[Section], parameters: Sequence[str] = (), stages: Sequence[str] = ()
) -> Iterator[Issue]:
    """One issue for each key that is wrong.

    Args:
        error: of validating ``root``.
        root: the section that was validated.
        parameters: the method's, for suggestions.
        stages: the names of a recipe's stages, where it has several.
    """
    found = [(detail, locate(root, detail["loc"])) for detail in error.errors(include_url=False)]
    best: dict[KeyPath, ErrorDetails] = {}
    for detail, at in found:
        # A list with a bad item is called too short, and each member of a union complains: the item says it best.
        hidden = any(_is_inside(other.path, at.path) for _, other in found)
        if not hidden and (at.path not in best or detail["type"] == "value_error"):  # our own words say it better
            best[at.path] = detail
    for detail, at in found:
        if best.get(at.path) is detail:
            yield _issue(detail, at, parameters, stages)


def _is_inside(path: KeyPath, outer: KeyPath) -> bool:
    return len(path) > len(outer) and path[: len(outer)] == outer


def _issue(detail: ErrorDetails, at: Located, parameters: Sequence[str], stages: Sequence[str]) -> Issue:
    match detail["type"]:
        case "missing" if isinstance(at.path[-1], str):
            return Issue(at.path, "is missing", _list_of_keys(at.hint) or f"Give it {describe(at.hint)}", at="key")
        case "missing":  # an item of a list of fixed length
            return wrong_value(at.path[:-1], at.outer, detail["input"])
        case "value_error":
            cause, _, fix = detail["msg"].removeprefix("Value error, ").rpartition(". ")
            return Issue(at.path, cause or fix, fix if cause else None, at="key")
        case "union_tag_not_found":
            return Issue(
                (*at.path, str(tag_key(at.hint))), "is missing", f"One of: {', '.join(variants(at.hint))}", "key"
            )
        case "union_tag_invalid":
            choice = Literal[tuple(variants(at.hint))]  # type: ignore[valid-type]  # the tags, as a type to describe
            return wrong_value((*at.path, str(tag_key(at.hint))), choice, detail["ctx"]["tag"])
    if detail["type"] in ("extra_forbidden", "invalid_key") or detail["loc"][-1] == "[key]":
        inside = [str(key) for key in detail["input"]] if isinstance(detail["input"], Mapping) else []
        word = str(at.path[-1])
        of_stages = _way_to_stage(word, inside, stages) if at.outer is Recipe else None
        fix = of_stages or _nearest_key(word, at.outer, parameters, inside)
        return Issue(at.path, "unknown key", fix, at="key")
    return wrong_value(at.path, at.hint, detail["input"])


def wrong_value(path: KeyPath, hint: Any, value: Any) -> Issue:
    """A value of the wrong type, out of range, or not among the choices."""
    return Issue(path, f"must be {describe(hint)}, not {shown(value)}", _way_to(hint, value))


def _way_to(hint: Any, value: Any) -> str | None:
    """From a wrong value to a right one, where there is one way."""
    cores = [unwrap(member)[0] for member in members(hint)]
    choices = [str(choice) for core in cores if get_origin(core) is Literal for choice in get_args(core)]
    if isinstance(value, str) and (near := closest(value, choices)):
        return f"Did you mean '{near}'?"
    if str in cores and isinstance(value, int | float) and not isinstance(value, bool):
        return "Put it in quotes"
    return _list_of_keys(hint)


# --- Words ------------------------------------------------------------------------------------------------------------


def describe(hint: Any) -> str:
    """What a value must be: "a whole number of at least 1", "one of auto, cpu, cuda, mps"."""
    options = [member for member in members(hint) if member is not NoneType]
    return " or ".join(dict.fromkeys(map(_describe_one, options)))


def _describe_one(hint: Any) -> str:
    core, limits = unwrap(hint)
    if get_origin(core) is Literal:
        choices = ", ".join(map(str, get_args(core)))
        return choices if len(get_args(core)) == 1 else f"one of {choices}"
    if get_origin(core) is tuple:
        return _describe_list(get_args(core), limits)
    if core in (int, float):
        return ("a whole number" if core is int else "a number") + _describe_range(limits)
    if core is str:
        pattern = _limit(limits, "pattern")
        return f"text that matches {pattern}" if pattern else "text"
    return "true or false" if core is bool else "a mapping"


def _limit(limits: list[Any], name: str) -> Any:
    return next((getattr(note, name) for note in limits if hasattr(note, name)), None)


def _describe_range(limits: list[Any]) -> str:
    if _limit(limits, "ge") is not None and _limit(limits, "le") is not None:
        return f" from {_limit(limits, 'ge'):g} to {_limit(limits, 'le'):g}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    said = [f"{word} {_limit(limits, name):g}" for name, word in words.items() if _limit(limits, name) is not None]
    return " " + " and ".join(said) if said else ""


def _describe_list(args: tuple[Any, ...], limits: list[Any]) -> str:
    least = _limit(limits, "min_length")
    exact = _limit(limits, "max_length") if args[-1] is Ellipsis else len(args)
    size = f" of {exact}" if exact else f" of at least {least}" if least else ""
    return f"a list{size}, each {describe(args[0])}"


def shown(value: Any) -> str:
    """A value as a message shows it: one short line, whatever it is."""
    if isinstance(value, Mapping):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value).replace("\n", " ")
    if isinstance(value, list | tuple) and len(text) > 40:
        return f"a list of {len(value)} items"
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(word: str, choices: Iterable[str], otherwise: str) -> str:
    """ "Did you mean 'kd'?", or, where nothing is near, all the choices after ``otherwise``."""
    known = list(dict.fromkeys(choices))
    near = closest(word, known)
    return f"Did you mean '{near}'?" if near else f"{otherwise}: {', '.join(known)}"


def keys_of(hint: Any) -> list[str]:
    """The keys of a section that a recipe shows, or of a mapping with keys of its own."""
    if kinds := sections(hint):
        return [key for key in hints(kinds[0]) if not kinds[0].model_fields[key].exclude]
    return [str(key) for key in get_args(get_args(unwrap(hint)[0])[0])]


def _list_of_keys(hint: Any) -> str | None:
    return f"Valid keys: {', '.join(keys_of(hint))}" if len(sections(hint)) == 1 else None


def _nearest_key(word: str, outer: Any, parameters: Sequence[str], inside: Sequence[str] = ()) -> str:
    """What an unknown key was meant to be. ``inside``: the keys that were set in it."""
    if outer is not Recipe:
        return did_you_mean(word, keys_of(outer), "Valid keys")
    if known := [key for key in inside if key in parameters]:  # rollout.max_new_tokens, where it is a parameter itself
        return f"Did you mean '{known[0]}'?"
    if word in hints(Stage):  # in a recipe written out in full
        return f"Did you mean '{dotted(STAGE)}.{word}'?"
    if inner := [key for key in _keys_inside_stage() if key.rpartition(".")[2] == word]:
        return "Did you mean " + " or ".join(f"'{key}'" for key in inner) + "?"
    return did_you_mean(word, [*hints(Recipe), *hints(Stage), *parameters], "Valid keys")


def _way_to_stage(word: str, inside: Sequence[str], stages: Sequence[str]) -> str | None:
    """Of several stages: how one is named, where a key is a setting of a stage, or no stage's name."""
    if len(stages) < 2:
        return None
    own = [word] if word in hints(Stage) else [key for key in _keys_inside_stage() if key.rpartition(".")[2] == word]
    if own:
        named = " or ".join(f"{stages[0]}.{key}" for key in own)
        return f"It is a stage's: write {named}, or all in the stage's place. {no_stage('', stages)}"
    near = None if set(inside) & hints(Stage).keys() else closest(word, hints(Recipe))
    return None if near else no_stage(word, stages)


def no_stage(word: str, stages: Sequence[str]) -> str:
    """The stage that a word was meant to name, and all that there are."""
    return f"{nearest(word, stages) if word else ''}Stages: {', '.join(stages)}, or 0 to {len(stages) - 1}"


def _keys_inside_stage() -> Iterator[str]:
    """``budget.steps`` and its like, for those who write ``steps``."""
    for name, hint in hints(Stage).items():
        yield from dict.fromkeys(f"{name}.{key}" for kind in sections(hint) for key in hints(kind))


# --- From issues to problems ------------------------------------------------------------------------------------------


def problems(found: Iterable[Issue], origins: Mapping[KeyPath, Origin], label: str) -> tuple[Problem, ...]:
    """Issues as the user reads them, those of a file from its top to its bottom.

    Args:
        found: the issues.
        origins: who set which key.
        label: where an issue stands that nobody wrote, such as "recipe kd".
    """
    placed = dict.fromkeys(_placed(issue, origins, label) for issue in found)  # of all stages it is told once
    return tuple(problem for _, problem in sorted(placed, key=lambda pair: pair[0]))


def _placed(issue: Issue, origins: Mapping[KeyPath, Origin], label: str) -> tuple[Mark, Problem]:
    path, origin = _blamed(issue, origins)
    key = dotted(path[len(STAGE) :] if origin and (origin.short or origin.every) else path)
    key = f"{ALL}.{key}" if origin and origin.every else key
    if origin is None or origin.span is None:
        return (0, 0), Problem(origin.source if origin else label, key, issue.cause, issue.fix)
    mark = getattr(origin.span, issue.at)
    return mark, Problem(f"{origin.source}:{mark[0]}:{mark[1]}", key, issue.cause, issue.fix)


def _blamed(issue: Issue, origins: Mapping[KeyPath, Origin]) -> tuple[KeyPath, Origin | None]:
    """The path an issue is reported under, and who wrote it."""
    if issue.origin:
        return issue.path, issue.origin
    if issue.path in origins:
        return issue.path, origins[issue.path]
    # Two settings that do not go together: blame the one the message speaks of, otherwise the first.
    inside = [path for path in origins if _is_inside(path, issue.path)]
    spoken_of = [path for path in inside if _speaks_of(issue, dotted(path[len(issue.path) :]))]
    for path in (spoken_of or inside)[:1]:
        return (path if issue.path in ((), STAGE) else issue.path), origins[path]
    for cut in range(len(issue.path) - 1, -1, -1):  # who wrote the section, or at least another of its keys
        outer = issue.path[:cut]
        keys = [path for path in origins if path == outer or (cut > len(STAGE) and _is_inside(path, outer))]
        if keys:
            return issue.path, origins[min(keys, key=len)]
    return issue.path, None


def _speaks_of(issue: Issue, key: str) -> bool:
    return bool(re.search(rf"\b{re.escape(key)}\b", f"{issue.cause} {issue.fix}"))


def dotted(path: KeyPath) -> str:
    """A path as one word on one line."""
    return ".".join(str(part) if str(part).isprintable() else repr(part) for part in path)
