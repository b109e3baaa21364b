"""A file in which a person reads annotations, keeps, drops or edits them; and what they decided.

``verdict`` is empty, keep or drop; ``edited`` is empty, or what the words (the label, where only that was asked for)
are to be. All other columns are for reading. A verdict is about the words that were shown, whatever the filters are by
then: what a person kept is kept as it was seen.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from potstill.annotation.filters import Sieved, versions
from potstill.annotation.reading import Annotation
from potstill.data.reader import BadRow, check_file, read_rows
from potstill.errors import ConfigError, DataError
from potstill.run import write_text

COLUMNS = (
    *("id", "sample", "prompt", "gold", "label", "rationale", "response"),
    *("dropped_by", "why", "verdict", "edited", "sha256"),
)
VERDICTS = ("", "keep", "drop")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet takes a cell for a formula
SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Verdict:
    """What a person decided about one annotation.

    Args:
        decision: as in ``verdict``. edited: as in its column.
        sha256: of the words it is about. where: in which line it stands, for messages.
        reviews: the review files in which it stands or was shown.
    """

    decision: str
    edited: str
    sha256: str
    where: str
    reviews: tuple[str, ...] = ()

    @property
    def decides(self) -> bool:
        return bool(self.decision or self.edited)


Key: TypeAlias = tuple[str, int]  # of a row, and which of its annotations
Verdicts: TypeAlias = Mapping[Key, Verdict]


def check_review(file: Path, *, to_write: bool) -> None:
    """Refuse a file of another kind, one that may hold a person's work already, and one that is not there.

    Raises: ConfigError, DataError.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"the review file {file} is neither .csv nor .jsonl", "name one that is")
    if to_write and file.exists():
        raise ConfigError(
            f"{file} is there already, and may hold what a person decided",
            f"take it over with --apply {file}; for a further review choose another name",
        )
    if not to_write:
        check_file(file)


def write_review(file: Path, found: Sequence[Sieved], verdicts: Verdicts) -> None:
    """A row for each annotation of the teacher, kept or dropped, with what is decided already. Written whole or not at
    all."""
    rows = [_row(one, verdicts.get(key_of(one))) for one in found if one.annotation.origin == "teacher"]
    if file.suffix.lower() == ".jsonl":
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    write_text(file, text.getvalue())


def _row(one: Sieved, verdict: Verdict | None) -> dict[str, Any]:
    said = (verdict and as_shown(one, verdict.sha256)) or one.annotation
    told = {
        "id": said.id,
        "sample": said.sample,
        "prompt": said.prompt,
        "gold": said.gold or "",
        "label": said.label or "",
        "rationale": said.rationale or "",
        "response": said.response or "",
        "dropped_by": one.dropped_by or "",
        "why": one.why or "",
    }
    decided = {"verdict": verdict.decision, "edited": verdict.edited} if verdict else {"verdict": "", "edited": ""}
    return told | decided | {"sha256": _sha256(said)}


def key_of(one: Sieved) -> Key:
    return one.annotation.id, one.annotation.sample


def as_shown(one: Sieved, hashed: str) -> Annotation | None:
    """The annotation as it was when a person saw it, behind other filters perhaps; None where they saw another."""
    if _sha256(one.annotation) == hashed:
        return one.annotation
    return next((said for said in versions(one.as_read) if _sha256(said) == hashed), None)


def _sha256(said: Annotation) -> str:
    """What a verdict is about: the words and the label of this row."""
    told = [said.id, said.sample, said.prompt, said.gold, said.label, said.words]
    return sha256(json.dumps(told).encode()).hexdigest()[:16]


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


# --- taking it over ---------------------------------------------------------------------------------------------------


def read_review(file: Path, found: Sequence[Sieved]) -> dict[Key, Verdict]:
    """The verdicts of a review of these annotations, empty ones too; rows that were taken out of it have none.

    Raises: DataError, naming file, line and field, for a row about anything else, or one that cannot be meant.
    """
    known = {key_of(one): one for one in found if one.annotation.origin == "teacher"}
    verdicts: dict[Key, Verdict] = {}
    for row in read_rows(file):
        where = str(file.with_name(row.where))
        if isinstance(row, BadRow):
            raise DataError(f"{where}: {row.reason}", "correct the line")
        key, hashed = _key(row.values, where)
        said = as_shown(known[key], hashed) if key in known else None
        if said is None:
            raise DataError(
                f"{where}: this is a review of other annotations than there are now",
                "apply it with the --limit and --samples that it was made with, or write a new one with --review",
            )
        if key in verdicts:
            raise DataError(f"{where}: {key[0]!r} stands at {verdicts[key].where} already", "remove one of the two")
        verdicts[key] = _verdict(row.values, said, hashed, where)
    return verdicts


def _key(values: Mapping[str, Any], where: str) -> tuple[Key, str]:
    missing = next((name for name in ("id", "sample", "verdict", "edited", "sha256") if values.get(name) is None), None)
    if missing:
        raise DataError(f"{where}: missing field {missing!r}", "leave the columns as --review wrote them")
    try:
        return (_unguarded(str(values["id"])), int(values["sample"])), str(values["sha256"])
    except ValueError:
        raise DataError(f"{where}: field 'sample' is no number", "leave the columns as --review wrote them") from None


def _verdict(values: Mapping[str, Any], said: Annotation, hashed: str, where: str) -> Verdict:
    decision, edited = str(values["verdict"]).strip().lower(), _unguarded(str(values["edited"])).strip()
    if decision not in VERDICTS:
        raise DataError(f"{where}: field 'verdict' is {decision[:40]!r}", "leave it empty, or write keep or drop")
    if decision == "drop" and edited:
        raise DataError(f"{where}: it is dropped, and has words in 'edited'", "clear one of the two")
    if decision == "keep" and not edited and said.unread is not None:
        raise DataError(f"{where}: nothing could be read that can be kept ({said.unread})", "write it into 'edited'")
    if edited and said.mode == "label" and said.options and edited not in said.options:
        raise DataError(
            f"{where}: field 'edited' is {edited[:40]!r}, which is none of the options",
            f"write one of {', '.join(said.options)[:120]}",
        )
    if edited and said.asks_label and said.mode != "label" and said.label is None:
        raise DataError(f"{where}: it has no label that edited words could explain", "leave 'edited' empty")
    return Verdict(decision, edited, hashed, where)


def decided(one: Sieved, verdicts: Verdicts) -> Annotation | None:
    """The annotation as a person wants it, or else as the filters leave it; None where it is left out."""
    verdict = verdicts.get(key_of(one))
    if verdict is None or not verdict.decides or one.annotation.origin != "teacher":
        return None if one.dropped_by else one.annotation
    if verdict.decision == "drop":
        return None
    said = as_shown(one, verdict.sha256)
    assert said is not None  # read_review and check_decisions have seen to it
    return _edited(said, verdict.edited) if verdict.edited else said


def _edited(said: Annotation, words: str) -> Annotation:
    changed = replace(said, label=words) if said.mode == "label" else said.with_words(words)
    return replace(changed, origin="human-edited", finished=True, unread=None)
