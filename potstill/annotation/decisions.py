"""What a person has decided so far, in all the reviews that were applied: it holds until a later review says otherwise.

Beside ``annotations.jsonl`` stands ``annotations.decided.jsonl``: a line for each annotation that was decided about.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.annotation.filters import Sieved
from potstill.annotation.reading import Annotation
from potstill.annotation.review import Key, Verdict, Verdicts, as_shown, key_of
from potstill.errors import DataError
from potstill.run import read_jsonl, write_text


class Line(BaseModel):
    """A line of the file. ``sha256`` is of the words that were shown, ``reviews`` the files in which it was."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: str
    sample: int
    verdict: Literal["", "keep", "drop"]
    edited: str
    sha256: str
    reviews: list[str]


def read_decisions(file: Path) -> dict[Key, Verdict]:
    """What is decided; nothing where there is no file. Raises: DataError for a damaged line."""
    found: dict[Key, Verdict] = {}
    for number, values in enumerate(read_jsonl(file), 1):
        where = f"{file}:{number}"
        try:
            line = Line.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = ".".join(map(str, first["loc"])) or "the line"
            raise DataError(f"{where}: {name}: {first['msg']}", "take the line out: it is decided anew") from None
        found[line.id, line.sample] = Verdict(line.verdict, line.edited, line.sha256, where, tuple(line.reviews))
    return found


def write_decisions(file: Path, decisions: Verdicts) -> None:
    """Written whole or not at all."""
    lines = [
        Line(id=id, sample=sample, verdict=one.decision, edited=one.edited, sha256=one.sha256, reviews=[*one.reviews])  # type: ignore[arg-type]
        for (id, sample), one in decisions.items()
    ]
    write_text(file, "".join(json.dumps(line.model_dump(), ensure_ascii=False) + "\n" for line in lines))


def name_of(review: Path, out: Path) -> str:
    """A review as decisions name it: as seen from the output, so that it is the same from every folder."""
    try:
        return Path(os.path.relpath(review.resolve(), out.resolve().parent)).as_posix()
    except ValueError:  # another drive
        return review.resolve().as_posix()


def taken_over(there: Verdicts, applied: Verdicts, review: str) -> dict[Key, Verdict]:
    """What is decided once a review is applied: in what it decides it has the last word.

    Where it is empty it takes back what stood in this review, and leaves what was decided in others.
    """
    after = dict(there)
    for key, verdict in applied.items():
        before = there.get(key)
        if verdict.decides:
            same = before is not None and _said(before) == _said(verdict)
            others = before.reviews if before is not None and same else ()
            after[key] = replace(verdict, reviews=tuple(dict.fromkeys((*others, review))))
        elif before is not None and review in before.reviews:
            del after[key]
    return after


def _said(one: Verdict) -> tuple[str, str, str]:
    return one.decision, one.edited, one.sha256


def shown_in(decisions: Verdicts, review: str) -> dict[Key, Verdict]:
    """The same, to be found in a further review, where they can be taken back."""
    return {key: replace(one, reviews=(*one.reviews, review)) for key, one in decisions.items()}


def check_decisions(decisions: Verdicts, found: Sequence[Sieved]) -> None:
    """Refuse a decision about other words than the teacher's are now. Raises: DataError, naming file and line."""
    for one in found:
        verdict = decisions.get(key_of(one))
        if verdict and one.annotation.origin == "teacher" and as_shown(one, verdict.sha256) is None:
            raise DataError(
                f"{verdict.where}: {one.annotation.id!r} was decided about when it had other words",
                "take the line out, and decide anew in a review (--review)",
            )


def reviewed(decisions: Verdicts, found: Sequence[Sieved], kept: Sequence[Annotation]) -> dict[str, Any]:
    """What became of the annotations by a person's decisions.

    ``brought_back_from``: how many each filter would leave out. ``kept_as_seen``: how many filters would change now.
    """
    there = {(one.id, one.sample): one for one in kept}
    by_filters = {key_of(one) for one in found if one.dropped_by is None}
    back = Counter(one.dropped_by for one in found if one.dropped_by and key_of(one) in there)
    return {
        "decisions": sum(key_of(one) in decisions for one in found if one.annotation.origin == "teacher"),
        "edited": sum(one.origin == "human-edited" for one in kept),
        "brought_back": len(there.keys() - by_filters),
        "brought_back_from": dict(back.most_common()),
        "kept_as_seen": sum(_seen_otherwise(one, there) for one in found),
        "dropped": len(by_filters - there.keys()),
    }


def _seen_otherwise(one: Sieved, there: Mapping[Key, Annotation]) -> bool:
    now = there.get(key_of(one))
    return now is not None and now.origin == "teacher" and now != one.annotation
