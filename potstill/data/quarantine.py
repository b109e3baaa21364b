"""Rows that can be used, sorted from those that cannot; too many of those stop the run."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.data.examples import Example, Unusable
from potstill.data.reader import EXCERPT_CHARS, BadRow, Row
from potstill.errors import DataError
from potstill.run import write_text

SHOWN = 3  # bad rows named in the message


@dataclass(frozen=True)
class Sifted:
    """The usable examples of a file and its bad rows, both in the file's order."""

    examples: tuple[Example, ...]
    bad: tuple[BadRow, ...]

    @property
    def num_rows(self) -> int:
        return len(self.examples) + len(self.bad)


def sift(rows: Iterable[Row | BadRow], example_of: Callable[[Row], Example]) -> Sifted:
    """Sort rows; of two with one id the second is bad.

    Args:
        example_of: raises Unusable with the reason why a row is bad.
    """
    examples: list[Example] = []
    bad: list[BadRow] = []
    first: dict[str, str] = {}  # id -> where
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        try:
            example = example_of(row)
            if (seen := first.setdefault(example.id, row.where)) != row.where:
                raise Unusable(f"duplicate id {example.id[:60]!r} (first at {seen})")
            examples.append(example)
        except Unusable as reason:
            bad.append(BadRow(row.where, str(reason), excerpt(row)))
    return Sifted(tuple(examples), tuple(bad))


def excerpt(row: Row) -> str:
    try:
        return json.dumps(row.values, ensure_ascii=False, default=str)[:EXCERPT_CHARS]
    except (RecursionError, ValueError, TypeError):
        return reprlib.repr(row.values)[:EXCERPT_CHARS]


def write_quarantine(file: Path, bad: Sequence[BadRow]) -> None:
    """Write the bad rows as .jsonl: where, reason, and the row's beginning. No file where there are none."""
    if bad:
        write_text(file, "".join(json.dumps(vars(row)) + "\n" for row in bad))
    else:
        file.unlink(missing_ok=True)  # one that an earlier attempt left would be untrue


def judge(file: object, sifted: Sifted, max_bad_rows: float, quarantine_file: Path | None = None) -> None:
    """Raise DataError where a file has no usable row, or a share of bad rows above ``max_bad_rows``."""
    if not sifted.num_rows:
        raise DataError(f"{file} has no rows", "put rows in it, or name another file of rows")
    share = len(sifted.bad) / sifted.num_rows
    if sifted.examples and share <= max_bad_rows:
        return
    named = "; ".join(f"{row.where}: {row.reason}" for row in sifted.bad[:SHOWN])
    listed = f"; all are in {quarantine_file}" if quarantine_file else ""
    limit = f", more than data.max_bad_rows={max_bad_rows:g} allows" if sifted.examples else ""
    cause = f"{len(sifted.bad)} of the {sifted.num_rows} rows of {file} ({share:.1%}) cannot be used{limit}"
    raise DataError(f"{cause}: {named}{listed}", _fix(sifted, share))


def _fix(sifted: Sifted, share: float) -> str:
    missing = [row for row in sifted.bad if row.reason.startswith("missing field")]
    if 2 * len(missing) > sifted.num_rows:
        return "say how the file names its fields (data.fields.prompt=question), or set data.format"
    if not sifted.examples:
        return "mend the rows, or name another file of rows"
    return f"mend these rows, or allow them with data.max_bad_rows={math.ceil(100 * share) / 100:g}"
