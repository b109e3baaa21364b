"""A file in which a person reads annotations, keeps, drops or edits them; and what they decided.

``verdict`` is empty, keep or drop; ``edited`` is empty, or what the words (the label, where only that was asked for)
are to be. All other columns are for reading.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from potstill.annotation.filters import Sieved
from potstill.annotation.reading import Annotation
from potstill.data.reader import BadRow, read_rows
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
    """What a person decided about one annotation, and in which line."""

    decision: str
    edited: str
    where: str


def check_review(file: Path, *, to_write: bool) -> None:
    """Refuse a file of another kind, and one that may hold a person's work already. Raises: ConfigError."""
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"the review file {file} is neither .csv nor .jsonl", "name one that is")
    if to_write and file.exists():
        raise ConfigError(
            f"{file} is there already, and may hold what a person decided",
            f"take it over with --apply {file}, or choose another name",
        )


def write_review(file: Path, found: Sequence[Sieved]) -> None:
    """A row for each annotation of the teacher, kept or dropped. Written whole or not at all."""
    rows = [_row(one) for one in found if one.annotation.origin == "teacher"]
    if file.suffix.lower() == ".jsonl":
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    write_text(file, text.getvalue())


def _row(one: Sieved) -> dict[str, Any]:
    said = one.annotation
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
    return told | {"verdict": "", "edited": "", "sha256": _sha256(one)}


def _sha256(one: Sieved) -> str:
    """What a verdict is about: the words and the label of this row, and whether they were kept."""
    said = one.annotation
    told = [said.id, said.sample, said.prompt, said.gold, said.label, said.words, one.dropped_by]
    return sha256(json.dumps(told).encode()).hexdigest()[:16]


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


# --- taking it over ---------------------------------------------------------------------------------------------------


def read_review(file: Path, found: Sequence[Sieved]) -> dict[tuple[str, int], Verdict]:
    """The verdicts of a review of these annotations; rows that were taken out of it have none.

    Raises: DataError, naming file, line and field, for a row about anything else, or one that cannot be meant.
    """
    known = {(one.annotation.id, one.annotation.sample): one for one in found}
    verdicts: dict[tuple[str, int], Verdict] = {}
    for row in read_rows(file):
        where = str(file.with_name(row.where))
        if isinstance(row, BadRow):
            raise DataError(f"{where}: {row.reason}", "correct the line")
        key, hashed = _key(row.values, where)
        if key not in known or _sha256(known[key]) != hashed:
            raise DataError(
                f"{where}: this is a review of other annotations than there are now",
                "apply it with the settings and filters that it was made with, or write a new one with --review",
            )
        if key in verdicts:
            raise DataError(f"{where}: {key[0]!r} stands at {verdicts[key].where} already", "remove one of the two")
        verdicts[key] = _verdict(row.values, known[key], where)
    return verdicts


def _key(values: Mapping[str, Any], where: str) -> tuple[tuple[str, int], str]:
    missing = next((name for name in ("id", "sample", "verdict", "edited", "sha256") if values.get(name) is None), None)
    if missing:
        raise DataError(f"{where}: missing field {missing!r}", "leave the columns as --review wrote them")
    try:
        return (_unguarded(str(values["id"])), int(values["sample"])), str(values["sha256"])
    except ValueError:
        raise DataError(f"{where}: field 'sample' is no number", "leave the columns as --review wrote them") from None


def _verdict(values: Mapping[str, Any], one: Sieved, where: str) -> Verdict:
    decision, edited = str(values["verdict"]).strip().lower(), _unguarded(str(values["edited"])).strip()
    if decision not in VERDICTS:
        raise DataError(f"{where}: field 'verdict' is {decision[:40]!r}", "leave it empty, or write keep or drop")
    if decision == "drop" and edited:
        raise DataError(f"{where}: it is dropped, and has words in 'edited'", "clear one of the two")
    said = one.annotation
    if decision == "keep" and not edited and said.unread is not None:
        raise DataError(f"{where}: nothing could be read that can be kept ({said.unread})", "write it into 'edited'")
    if edited and said.mode == "label" and said.options and edited not in said.options:
        raise DataError(
            f"{where}: field 'edited' is {edited[:40]!r}, which is none of the options",
            f"write one of {', '.join(said.options)[:120]}",
        )
    if edited and said.asks_label and said.mode != "label" and said.label is None:
        raise DataError(f"{where}: it has no label that edited words could explain", "leave 'edited' empty")
    return Verdict(decision, edited, where)


def decided(one: Sieved, verdicts: Mapping[tuple[str, int], Verdict]) -> Annotation | None:
    """The annotation as a person wants it, or else as the filters leave it; None where it is left out."""
    verdict = verdicts.get((one.annotation.id, one.annotation.sample), Verdict("", "", ""))
    if verdict.edited:
        return _edited(one.annotation, verdict.edited)
    if verdict.decision == "drop" or (one.dropped_by and verdict.decision != "keep"):
        return None
    return one.annotation


def _edited(said: Annotation, words: str) -> Annotation:
    changed = replace(said, label=words) if said.mode == "label" else said.with_words(words)
    return replace(changed, origin="human-edited", finished=True, unread=None)
