"""What a judge answered: one JSON object with two marks, and nothing else counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.errors import DataError
from potstill.evaluation.judge.lines import by_id, read_lines
from potstill.evaluation.judge.pairs import Pair
from potstill.evaluation.judge.prompt import HIGHEST, LOWEST

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_IN_A_CODE_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


class Marks(BaseModel):
    """What a judge gives the candidate it read first and the one it read second, from 1 to 10; 7.5 is one too."""

    model_config = _STRICT

    first: float = Field(ge=LOWEST, le=HIGHEST, allow_inf_nan=False)
    second: float = Field(ge=LOWEST, le=HIGHEST, allow_inf_nan=False)
    reason: str = ""


class Answer(BaseModel):
    """A line of an answers file: an id with a judge's own words, or with two marks that a person wrote down.

    The rest is what ``ask`` knows: a hash of the prompt, what was sent beside it, and what the server said of it.
    """

    model_config = _STRICT

    id: str
    answer: str | None = None
    first: float | None = Field(None, ge=LOWEST, le=HIGHEST, allow_inf_nan=False)
    second: float | None = Field(None, ge=LOWEST, le=HIGHEST, allow_inf_nan=False)
    reason: str = ""
    prompt_sha256: str | None = None
    request: dict[str, Any] | None = None
    served_model: str | None = None
    finish_reason: str | None = None

    @model_validator(mode="after")
    def _either(self) -> Answer:
        marks = (self.first is not None) + (self.second is not None)
        if marks != (2 if self.answer is None else 0):
            raise ValueError("give either answer, or first and second")
        return self


def parse_answer(text: str, pair: Pair | None = None) -> Marks | None:
    """The marks in a judge's answer, or None where it is anything but one JSON object of the schema.

    The object may stand in a code fence and nothing may stand beside it. With ``pair`` an answer that also occurs in
    one of the pair's texts is None: a judge that repeats what a candidate told it to say has not marked anything.
    """
    body = text.strip()
    if within := _IN_A_CODE_FENCE.fullmatch(body):
        body = within[1].strip()
    try:
        marks = Marks.model_validate(json.loads(body, object_pairs_hook=_once, parse_constant=_refuse))
    except (ValueError, RecursionError):  # of json and of pydantic alike
        return None
    return None if pair is not None and _repeats(body, pair) else marks


def read_answers(file: Path, pairs: dict[str, tuple[str, Pair]]) -> dict[str, Answer]:
    """The answers of a file by id.

    Raises: DataError for a line that is no answer, an id that stands twice or is none of the pairs', and an answer to
        another prompt than the pair's.
    """
    fix = "make it with `potstill judge ask`, or by hand: lines of id and answer"
    found = by_id(read_lines(file, Answer, fix=fix))
    for name, (where, answer) in found.items():
        if name not in pairs:
            fix = "correct the id, or name the pairs file that was asked about"
            raise DataError(f"{where}: id {name!r} is none of the pairs'", fix)
        if answer.prompt_sha256 not in (None, pairs[name][1].prompt_sha256):
            raise DataError(
                f"{where}: the answer to {name!r} is to another prompt than {pairs[name][0]} has now",
                "name the pairs file that was asked about, or ask again into another file",
            )
    return {name: answer for name, (_, answer) in found.items()}


def marks_of(answer: Answer, pair: Pair) -> Marks | None:
    """The marks of a line, whichever way it was written."""
    if answer.first is not None and answer.second is not None:
        return Marks(first=answer.first, second=answer.second, reason=answer.reason)
    return parse_answer(answer.answer or "", pair)


def _repeats(body: str, pair: Pair) -> bool:
    squeezed = "".join(body.split())
    return any(squeezed in "".join(text.split()) for text in (pair.ours, pair.theirs, pair.question))


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that names a member twice says two things."""
    made = dict(members)
    if len(made) != len(members):
        raise ValueError("a member stands twice")
    return made


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
