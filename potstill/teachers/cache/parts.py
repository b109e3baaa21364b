"""A part of a cache: two files that grow at their ends and are never changed before it.

    NAME.rows    what is kept of each row, back to back
    NAME.index   a record of fixed size for each row, written after it: what it is, where it lies, its checksum
    NAME.json    once the part is finished: counts, and the SHA-256 of both files

So a kill at any byte leaves whole rows and a tail that no record speaks of. A row is mapped into memory when it is
read, and compared with its checksum: one that is not what was written is as good as none.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.hashes import file_sha256
from potstill.run import write_text

RECORD = np.dtype(
    [
        ("digest", "<u8", 2),
        ("offset", "<u8"),  # in bytes
        ("size", "<u4"),  # in bytes
        ("positions", "<u4"),  # response tokens
        ("step", "<u4"),  # of the run that wrote it; 0 of one that was built by itself
        ("microseconds", "<u4"),  # that the teacher took for it
        ("crc", "<u4"),
    ]
)
MAX_BYTES = 2**28  # of rows; then another part is begun
MAX_ROWS = 2**14  # likewise


class Part:
    """A part that is read. It may be growing: ``refresh`` looks for records that were added."""

    def __init__(self, path: Path):
        self.path = path  # without a suffix
        self._room: NDArray[Any] = np.empty(0, RECORD)  # for records, and for some that may come
        self._count = 0
        self._map: mmap.mmap | None = None
        self.refresh()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def records(self) -> NDArray[Any]:
        return self._room[: self._count]

    @property
    def rows_file(self) -> Path:
        return self.path.with_suffix(".rows")

    @property
    def index_file(self) -> Path:
        return self.path.with_suffix(".index")

    @property
    def seal(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def is_sealed(self) -> bool:
        return self.seal.exists()

    def refresh(self) -> None:
        """Read the records that are new. One that is half written, or whose row is, does not count."""
        known = self._count
        if not self.index_file.exists() or not self.rows_file.exists():
            return
        count = self.index_file.stat().st_size // RECORD.itemsize - known
        if count <= 0:
            return
        new = np.fromfile(self.index_file, RECORD, count, offset=known * RECORD.itemsize)
        there = new["offset"] + new["size"] <= self.rows_file.stat().st_size
        new = new[: int(there.argmin()) if not there.all() else len(new)]
        self._extend(new)

    def _extend(self, new: NDArray[Any]) -> None:
        """Add records; room is made for twice as many, so that one more costs the same however many there are."""
        end = self._count + len(new)
        if end > len(self._room):
            room = np.empty(max(end, 2 * len(self._room)), RECORD)
            room[: self._count] = self.records
            self._room = room
        self._room[self._count : end] = new
        self._count = end

    def read(self, at: int) -> memoryview | None:
        """What is kept of a row; None where it is not what was written."""
        record = self.records[at]
        start, size = int(record["offset"]), int(record["size"])
        if size == 0:
            return memoryview(b"")
        if self._map is None or len(self._map) < start + size:  # it has grown since
            try:
                with open(self.rows_file, "rb") as handle:
                    self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # it is gone, or is empty now
                return None
        row = memoryview(self._map)[start : start + size]
        return row if len(row) == size and zlib.crc32(row) == int(record["crc"]) else None

    def damage(self) -> list[str]:
        """What is wrong with it: nothing where every row is as written, and both files are as they were sealed."""
        found = []
        if self.is_sealed:
            sealed = json.loads(self.seal.read_text(encoding="utf-8"))
            if lost := sealed["rows"] - len(self.records):
                found.append(f"{self.path}: {lost} of {sealed['rows']} rows are gone")
            for file in (self.rows_file, self.index_file):
                if not file.exists():
                    found.append(f"{file} is missing")
                elif file_sha256(file) != sealed["sha256"][file.suffix.removeprefix(".")]:
                    found.append(f"{file} is not what it was when it was finished")
        bad = sum(self.read(at) is None for at in range(len(self.records)))
        if bad:
            found.append(f"{self.rows_file}: {bad} of {len(self.records)} rows are not what was written")
        return found

    @property
    def num_bytes(self) -> int:
        files = (self.rows_file, self.index_file)
        return sum(file.stat().st_size for file in files if file.exists())


class Writer:
    """Appends rows to a new part. A row that could not be written whole leaves no record."""

    def __init__(self, path: Path):
        self.path = path
        self.end = 0
        self.count = 0
        self._rows = os.open(path.with_suffix(".rows"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._index = os.open(path.with_suffix(".index"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def add(self, digest: bytes, row: bytes, *, positions: int, step: int, microseconds: int) -> None:
        """Append one row. Raises: OSError where the disk refuses; the part is as it was before."""
        record = np.zeros(1, RECORD)
        record["digest"] = np.frombuffer(digest, "<u8")
        for name, value in {"offset": self.end, "size": len(row), "positions": positions, "step": step}.items():
            record[name] = value
        record["microseconds"] = min(microseconds, 2**32 - 1)
        record["crc"] = zlib.crc32(row)
        # The row first, each where it belongs: what a failed write has left there is written over.
        _write(self._rows, row, self.end)
        _write(self._index, record.tobytes(), self.count * RECORD.itemsize)
        self.end += len(row)
        self.count += 1

    def sync(self) -> None:
        """Have what was written on the disk before going on."""
        os.fsync(self._rows)
        os.fsync(self._index)

    def close(self) -> None:
        """Finish the part: cut off what no record speaks of, and write down what it is. An empty one goes.

        Raises: OSError where the disk refuses; both files are closed all the same, and can be read.
        """
        try:
            os.ftruncate(self._rows, self.end)
            os.ftruncate(self._index, self.count * RECORD.itemsize)
            self.sync()
        finally:
            os.close(self._rows)
            os.close(self._index)
        files = {suffix: self.path.with_suffix(f".{suffix}") for suffix in ("rows", "index")}
        if self.count == 0:
            for file in files.values():
                file.unlink()
            return
        hashes = {suffix: file_sha256(file) for suffix, file in files.items()}
        told = {"rows": self.count, "bytes": self.end, "sha256": hashes}
        write_text(self.path.with_suffix(".json"), json.dumps(told, indent=2) + "\n")


def _write(descriptor: int, data: bytes, at: int) -> None:
    """All of it, or an OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
