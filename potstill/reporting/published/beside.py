"""Published figures and ours, method by method, and in plain words what is not the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.evaluation.suites import SUITES
from potstill.reporting.published.schema import Published


@dataclass(frozen=True)
class Ours:
    """A figure that we measured, with its 95% interval; in the unit of the suite.

    ``name``: of the model in our table. ``model``: the student as it was before training, ``teacher`` None where there
    was none, ``method`` a recipe's name or ``teacher``. ``settings``: how the suite asked,
    ``result.settings["settings"]``; None where it is not known.
    """

    suite: str
    figure: str
    method: str
    model: str
    teacher: str | None
    mean: float
    low: float | None
    high: float | None
    num_items: int | None
    settings: Mapping[str, Any] | None = None
    name: str = ""


@dataclass(frozen=True)
class Beside:
    """A published figure and ours of the same method, if there is one; ``differs`` is what they do not share."""

    published: Published
    ours: Ours | None
    differs: tuple[str, ...]


def beside(published: Sequence[Published], ours: Sequence[Ours]) -> tuple[Beside, ...]:
    """Every published figure of a suite and figure that we have too, with each of ours of its method, or with none.

    Returns: lines in the order in which ours come (suite and figure), within that in the order of publication. What we
    measured and nobody published, and what was published and we have no such figure of, is left out.
    """
    return tuple(
        Beside(theirs, one, () if one is None else tuple(differences(theirs, one)))
        for suite, figure in dict.fromkeys((one.suite, one.figure) for one in ours)
        for theirs in published
        if (theirs.suite, theirs.figure) == (suite, figure)
        for one in _same_method(theirs, ours)
    )


def _same_method(theirs: Published, ours: Sequence[Ours]) -> Sequence[Ours | None]:
    wanted = (theirs.suite, theirs.figure, theirs.method)
    return [one for one in ours if (one.suite, one.figure, one.method) == wanted] or [None]


def differences(theirs: Published, ours: Ours) -> Iterator[str]:
    """What is not the same, in a few words each; what the file does not say is not guessed at."""
    yield from _model("student", ours.model, theirs.row.model, theirs)
    yield from _model("teacher", ours.teacher, theirs.row.teacher, theirs)
    yield from _rows(theirs, ours)
    yield from _asked(theirs, ours)


def _model(what: str, ours: str | None, theirs: str | None, published: Published) -> Iterator[str]:
    names = () if theirs is None else (theirs, *published.known_as.get(theirs, ()))
    if ours != theirs and not _is_one_of(ours, names):
        yield _words(what, ours or "none", theirs or "none")


def _is_one_of(name: str | None, names: Collection[str]) -> bool:
    return name is not None and name.casefold() in {other.casefold() for other in names}


def _rows(theirs: Published, ours: Ours) -> Iterator[str]:
    suite, table = SUITES[ours.suite], theirs.table
    if suite.dataset and table.dataset != suite.dataset:
        yield _words("data", suite.dataset, table.dataset)
    elif suite.splits and table.split and table.split not in suite.splits:
        yield _words("split", ", ".join(suite.splits), table.split)
    if table.num_items and ours.num_items and table.num_items != ours.num_items:
        yield _words("items", ours.num_items, table.num_items)


def _asked(theirs: Published, ours: Ours) -> Iterator[str]:
    """Settings that both sides state. Seeds are compared where both draw."""
    asked = theirs.table.asked.model_dump(exclude_none=True)
    if not asked:
        return
    if ours.settings is None:
        yield "how ours was asked is not known"
        return
    mine = {**ours.settings, "temperature": _temperature(ours.figure, ours.settings)}
    if not (mine["temperature"] and asked.get("temperature", 1)):
        asked.pop("seeds", None)
    for key, value in asked.items():
        if key in mine and (said := _said(key, mine[key])) != (published := _said(key, value)):
            yield _words(key.replace("_", " "), said, published)


def _temperature(figure: str, settings: Mapping[str, Any]) -> float:
    """0 for a greedy answer: a suite has a temperature also where no seed draws at it."""
    return float(settings.get("temperature", 1.0)) if settings.get("seeds") and not figure.endswith("_greedy") else 0.0


def _said(key: str, value: Any) -> str:
    if key == "temperature":
        return f"{value:g}" if value else "greedy"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _words(what: str, ours: object, theirs: object) -> str:
    return f"{what}: ours {ours}, theirs {theirs}"
