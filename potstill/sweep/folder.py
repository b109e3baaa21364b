"""The sweep folder: what it holds, what has happened to each cell, and what is kept of a finished one.

sweeps/<name>/
  grid.yaml      as given           cells.jsonl    what happened to which cell; only ever added to
  runs/<cell>/   ordinary run folders              logs/          what worker processes printed
  table.md       table.json         figure.svg     figure.png     report.html

A cell is known by its recipe's content, so another grid in the same folder runs only what is new, and what is no
longer asked for is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.errors import ConfigError
from potstill.run import RUNS, Run, make_folder, read_jsonl, remove_folder
from potstill.sweep.cells import Cell

SWEEPS = Path("sweeps")
STUDENT = "student_after"  # whose figures a sweep is about


class Keep(StrEnum):
    """What is kept of a finished cell's run folder."""

    student = "student"  # all but the checkpoints
    nothing = "nothing"  # figures, rows, recipe and report; no weights and no text to train on
    all = "all"


class Status(StrEnum):
    """How far a cell is."""

    left = "left"
    begun = "begun"
    done = "done"
    failed = "failed"


@dataclass(frozen=True)
class Record:
    """What cells.jsonl says of a cell. ``run``: the name of its folder. ``seconds``: of the attempt that ended."""

    run: str
    status: Status
    seconds: float | None = None
    error: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Folder:
    """A sweep folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def grid_file(self) -> Path:
        return self.path / "grid.yaml"

    @property
    def journal_file(self) -> Path:
        return self.path / "cells.jsonl"

    def log_file(self, number: int) -> Path:
        return self.path / "logs" / f"worker-{number}.log"

    def run(self, cell: Cell, record: Record | None = None) -> Run:
        """A cell's run folder: the one it was begun in, whatever the cell was called then."""
        return Run(self.path / RUNS / (record.run if record else cell.name))

    def records(self) -> dict[str, Record]:
        """The newest of each cell, by the cell's key. Raises: DataError for a damaged line."""
        found: dict[str, Record] = {}
        for line in read_jsonl(self.journal_file):
            status, before = Status(line["status"]), found.get(line["key"])
            dtype = line.get("dtype") or (before.dtype if before else None)
            found[line["key"]] = Record(line["run"], status, line.get("seconds"), line.get("error"), dtype)
        return {key: self._checked(record) for key, record in found.items()}

    def _checked(self, record: Record) -> Record:
        """A finished cell whose figures somebody has removed is not finished."""
        there = Run(self.path / RUNS / record.run).result.eval_file(STUDENT).is_file()
        return record if record.status is not Status.done or there else Record(record.run, Status.left)

    def note(self, cell: Cell, run: Run, status: Status, **told: Any) -> None:
        """Add a line to cells.jsonl: a whole one or, after a crash, one that is passed over."""
        line = {"key": cell.key, "settings": dict(cell.places), "run": run.path.name, "status": status.value, **told}
        _append(self.journal_file, json.dumps(line) + "\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock, so that no second command works on the sweep.

        Raises: ConfigError where one does, or where a file stands in the folder's way.
        """
        make_folder(self.path / RUNS)
        try:
            with FileLock(self.path / ".lock", blocking=False):
                _mend(self.journal_file)
                yield
        except Timeout:
            raise ConfigError(
                f"{self.path}: another process is at work on this sweep", "wait for it, stop it, or give --name OTHER"
            ) from None


def status_of(cell: Cell, records: Mapping[str, Record]) -> Status:
    """How far a cell is."""
    record = records.get(cell.key)
    return record.status if record else Status.left


def _append(file: Path, line: str) -> None:
    """Write one line with one call, and wait until it is on disk."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _mend(file: Path) -> None:
    """Cut off a last line that a crash left half-written, or the next one would be joined to it."""
    if file.exists() and not (content := file.read_bytes()).endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)


# --- What is kept -----------------------------------------------------------------------------------------------------


def prune(run: Run, keep: Keep) -> None:
    """Remove from a finished run, and from its stages where it has several, what is not to be kept."""
    if keep is Keep.all:
        return
    for part in (run, *run.stages):
        for path in _not_kept(part, keep):
            if path.is_dir():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)


def _not_kept(run: Run, keep: Keep) -> Iterator[Path]:
    yield from (run.checkpoints, run.baseline.checkpoints)
    if keep is Keep.nothing:
        yield from (run.student, run.baseline.student, run.path / "untouched")
        yield from sorted((run.path / "teacher_text").glob("*/part-*"))
