"""A cache folder: its key, and the rows of all its parts that this run may see.

A run sees the rows that were there when it was opened, and those that its own processes have written in earlier steps.
So what is read and what is asked does not depend on what other runs, or other processes within a step, happen to do;
and a run that goes on from a checkpoint sees what it saw then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from potstill.errors import CacheError
from potstill.run import write_text
from potstill.teachers.cache.parts import MAX_BYTES, MAX_ROWS, Part, Writer

CARD = "cache.json"
MERGE = 2**16  # new rows that are looked up one by one before they are sorted among the others
LOCATION = np.dtype([("high", "<u8"), ("low", "<u8"), ("part", "<u4"), ("row", "<u4")])


class Store:
    """The rows of a cache folder, by their digests.

    Args:
        folder: of the cache; made where it is not there.
        key: what the rows depend on beside themselves.
        writer: a name for what this run writes, the same on all processes: ``new_writer()`` on one of them.
        about: what a person wants to know of a new folder, and nothing depends on.
        rank, world_size: of this process.
        max_bytes: of a part's rows.
    Raises: CacheError where the folder has another key, naming what differs.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        writer: str,
        *,
        about: Mapping[str, Any] = {},
        rank: int = 0,
        world_size: int = 1,
        max_bytes: int = MAX_BYTES,
    ):
        self.folder = folder
        self.writer = writer
        self._rank, self._world_size, self._max_bytes = rank, world_size, max_bytes
        self._step = 0
        self._number = 0  # of the part that is written next
        self._open: Writer | None = None
        self._failed = False
        _settle_key(folder, key, about)
        self._parts: list[Part] = []
        self._places: dict[str, int] = {}  # of parts, by name
        self._visible: dict[str, int] = {}  # rows of each part
        self._sorted: NDArray[Any] = np.empty(0, LOCATION)
        self._high: NDArray[Any] = np.empty(0, "<u8")  # of _sorted, in one piece: a search would copy it each time
        self._new: dict[bytes, tuple[int, int]] = {}
        self._charged: set[tuple[int, int]] = set()
        self._writers = {writer}  # of this run: it has another each time that it goes on from a checkpoint
        for index in sorted(folder.glob("*.index")):
            self._open_part(index.stem)
        self._show({})

    # --- Reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows that may be seen, those that stand there twice counted twice."""
        return sum(self._visible.values())

    def __contains__(self, digest: bytes) -> bool:
        return self._find(digest) is not None

    def read(self, digest: bytes) -> memoryview | None:
        """What is kept of a row; None of one that is not there, or is damaged."""
        found = self._find(digest)
        return None if found is None else self._parts[found[0]].read(found[1])

    def charge(self, digest: bytes) -> float:
        """Seconds that a teacher took for a row before this run; 0 for one of this run, and the second time."""
        found = self._find(digest)
        if found is None or found in self._charged or _writer_of(self._parts[found[0]].name) in self._writers:
            return 0.0
        self._charged.add(found)
        return float(self._parts[found[0]].records[found[1]]["microseconds"]) / 1e6

    def next_step(self) -> None:
        """Another step begins: rows that other processes of this run have written before it may be seen."""
        self._step += 1
        self._look_around(self._step)

    def _find(self, digest: bytes) -> tuple[int, int] | None:
        if (new := self._new.get(digest)) is not None:
            return new
        high, low = (int(half) for half in np.frombuffer(digest, "<u8"))
        at = int(np.searchsorted(self._high, np.uint64(high)))
        while at < len(self._high) and self._high[at] == high:
            if self._sorted["low"][at] == low:
                return int(self._sorted["part"][at]), int(self._sorted["row"][at])
            at += 1
        return None

    # --- Writing ------------------------------------------------------------------------------------------------------

    @property
    def can_write(self) -> bool:
        """Whether the disk has refused nothing yet."""
        return not self._failed

    def add(self, digest: bytes, row: bytes, *, positions: int, seconds: float) -> None:
        """Keep a row that this run has asked for.

        Raises: OSError where the disk refuses, once: after that nothing is written.
        """
        if self._failed:
            return
        try:
            self._add(digest, row, positions, seconds)
        except OSError:
            self._failed = True
            raise

    def close(self) -> None:
        """Finish what is being written. Where the disk refuses, it stays unfinished, and is read all the same."""
        with suppress(OSError):
            self._finish_part()

    def _add(self, digest: bytes, row: bytes, positions: int, seconds: float) -> None:
        if self._open is None:
            self._begin()
        assert self._open is not None
        self._open.add(digest, row, positions=positions, step=self._step, microseconds=round(seconds * 1e6))
        part = self._places[self._open.path.name]
        self._parts[part].refresh()
        self._new[digest] = (part, self._open.count - 1)
        self._visible[self._parts[part].name] = self._open.count
        if len(self._new) >= MERGE:
            self._merge()
        if self._open.end >= self._max_bytes or self._open.count >= MAX_ROWS:
            self._finish_part()

    def _begin(self) -> None:
        path = self.folder / f"{self.writer}-{self._rank:05d}-{self._number:05d}"
        self._open = Writer(path)
        self._number += 1
        self._visible[path.name] = 0
        self._open_part(path.name)

    def _finish_part(self) -> None:
        part, self._open = self._open, None  # first: its files are closed whatever becomes of the rest
        if part is not None:
            part.close()

    # --- What may be seen ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How many rows of each part this run has come to, at the end of a step; they are on the disk."""
        if self._open is not None:
            with suppress(OSError):  # a disk that refuses says so at the next row; what it lost is asked again
                self._open.sync()
        self._look_around(self._step + 1)
        charged = [(self._parts[part].name, row) for part, row in self._charged]
        told = {"visible": dict(self._visible), "step": self._step, "charged": charged}
        return told | {"writers": sorted(self._writers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See what was seen when the state was taken, and nothing that was written since."""
        self._step = state["step"]
        self._writers |= set(state["writers"])
        self._charged = {(self._places[name], row) for name, row in state["charged"] if name in self._places}
        self._show({name: state["visible"].get(name, 0) for name in self._places})

    def _open_part(self, name: str) -> int:
        """Open a part of which nothing is seen yet; its place among all parts."""
        self._places[name] = len(self._parts)
        self._parts.append(Part(self.folder / name))
        return self._places[name]

    def _show(self, limits: Mapping[str, int]) -> None:
        """Let the first rows of each part be seen, all of them where there is no limit, and no others."""
        shown = []
        for place, part in enumerate(self._parts):
            records = part.records[: limits.get(part.name)]
            self._visible[part.name] = len(records)
            shown.append(_locations(records, place))
        self._new = {}
        self._sort(shown)

    def _look_around(self, step: int) -> None:
        """See what the other processes of this run have written before a step."""
        for rank in (rank for rank in range(self._world_size) if rank != self._rank):
            for name in _numbered(self.folder, f"{self.writer}-{rank:05d}"):
                place = self._places[name] if name in self._places else self._open_part(name)
                self._parts[place].refresh()
                records = self._parts[place].records
                before = int((records["step"] < step).sum())
                for at in range(self._visible.get(name, 0), before):
                    self._new[records[at]["digest"].tobytes()] = (place, at)
                self._visible[name] = before

    def _merge(self) -> None:
        """Sort the new rows among the others."""
        new = np.empty(len(self._new), LOCATION)
        for at, (digest, (part, row)) in enumerate(self._new.items()):
            new[at] = (*np.frombuffer(digest, "<u8"), part, row)
        self._new = {}
        self._sort([self._sorted, new])

    def _sort(self, locations: Sequence[NDArray[Any]]) -> None:
        """Have these places, and no others, to search among."""
        together = np.concatenate([np.empty(0, LOCATION), *locations])
        self._sorted = together[np.argsort(together["high"], kind="stable")]
        self._high = np.ascontiguousarray(self._sorted["high"])


def new_writer() -> str:
    """A name that no other run has for what it writes."""
    return token_hex(6)


def _writer_of(part: str) -> str:
    """Who wrote a part, by its name."""
    return part.rsplit("-", 2)[0]


def _locations(records: NDArray[Any], part: int) -> NDArray[Any]:
    """Where the first rows of a part are, by their digests."""
    found = np.empty(len(records), LOCATION)
    found["high"], found["low"] = records["digest"][:, 0], records["digest"][:, 1]
    found["part"], found["row"] = part, np.arange(len(records))
    return found


def _numbered(folder: Path, prefix: str) -> list[str]:
    """The parts of a process, in the order in which they were written."""
    names: list[str] = []
    while (folder / f"{prefix}-{len(names):05d}.index").exists():
        names.append(f"{prefix}-{len(names):05d}")
    return names


# --- The key ----------------------------------------------------------------------------------------------------------


def _settle_key(folder: Path, key: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the key of a new folder, or compare it with that of one that is there. Raises: CacheError."""
    try:
        _write_key(folder, key, about)
    except OSError as error:
        if (folder / CARD).exists():  # it can be read, and its rows are as good; what is missing is asked
            check_key(folder, key)
            return
        raise CacheError(
            f"{folder} cannot be written: {error.strerror or error}",
            "set teacher.cache.folder to a place that can, or teacher.cache to never",
        ) from error


def _write_key(folder: Path, key: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (folder / CARD).exists():
            check_key(folder, key)
            os.utime(folder / CARD)  # when it was last used
        elif any(folder.glob("*.index")):
            raise CacheError(f"{folder} has rows and no {CARD}", "name another folder, or remove this one")
        else:
            write_text(folder / CARD, json.dumps({**about, "key": dict(key)}, indent=2) + "\n")


def check_key(folder: Path, key: Mapping[str, Any]) -> None:
    """Refuse a cache of another key. Raises: CacheError, naming what differs."""
    then = read_card(folder)["key"]
    differing = sorted(name for name in then.keys() | key.keys() if then.get(name) != key.get(name))
    if not differing:
        return
    told = "; ".join(f"{name} is {_short(key.get(name))}, and {_short(then.get(name))} there" for name in differing)
    whose = read_card(folder).get("teacher", "another teacher")
    raise CacheError(
        f"{folder} is the cache of something else, made with {whose}: {told}",
        "set teacher.cache.folder to another folder, or leave it out and each cache gets one of its own",
    )


def _short(value: Any) -> str:
    """A value of a key, of a hash as much as tells it from others."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def read_card(folder: Path) -> dict[str, Any]:
    """What a cache folder says of itself, its key by the name ``key``. Raises: CacheError where it is none."""
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("key"), dict):
        raise CacheError(f"{folder} is no cache: it has no {CARD} that can be read", "name a folder that has one")
    return found
