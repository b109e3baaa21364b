"""What the disk has of a result: one process at a time writes it, and nothing that is read is taken on trust."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.evaluation.suites.suite import Row, Scores
from potstill.run import LOCK, json_object, write_text

PATIENCE_S = 1  # how long another process is waited for without a word
# What every row has, and of which kind.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "group": str,
    "input": str,
    "references": list,
    "predictions": dict,
    "scores": dict,
    "tokens_left_out": int,
    "seconds": (int, float),
}
TOLD_OF_ROWS = ("num_shortened", "seconds")  # what every scores.json has


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a result's lock. Another process that holds it is waited for, and after a second that is said."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        print(f"{what}: another process is asking, and is waited for, {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def whole(folder: Path, settings: Collection[str], ids: Collection[str]) -> Scores | None:
    """The figures of a result that is done; None where one of its files is missing, cut or damaged.

    Args:
        settings: the names in its settings.json. ids: of its rows.
    """
    scores = _object(folder / "scores.json")
    if not scores.keys() >= set(TOLD_OF_ROWS) or not _object(folder / "settings.json").keys() >= set(settings):
        return None
    rows, damaged = usable_rows(folder / "rows.jsonl", ids)
    return scores if len(rows) == len(ids) and not damaged else None


def usable_rows(file: Path, ids: Collection[str]) -> tuple[dict[str, Row], int]:
    """The rows of these ids that a file has, by id, and how many of its lines are something else, or one of them again.

    A last line that a crash cut is not counted.
    """
    found: dict[str, Row] = {}
    damaged, wanted = 0, frozenset(ids)
    if not file.exists():
        return found, damaged
    with open(file, "rb") as handle:
        for line in handle:
            row = json_object(line) or {}
            usable = line.endswith(b"\n") and all(isinstance(row.get(name), kind) for name, kind in FIELDS.items())
            if usable and row["id"] in wanted and row["id"] not in found:
                found[row["id"]] = row
            else:
                damaged += line.endswith(b"\n")
    return found, damaged


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _object(file: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none that can be read."""
    return (json_object(file.read_bytes()) if file.exists() else None) or {}
