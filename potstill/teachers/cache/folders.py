"""Cache folders as a person looks at them: what is in one, whether it is whole, and which may go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import CacheError
from potstill.run import remove_folder
from potstill.teachers.cache.parts import Part
from potstill.teachers.cache.store import CARD, read_card

DAY_S = 86_400.0


@dataclass(frozen=True)
class Told:
    """A cache folder. ``last_used_s`` is seconds since a run opened it; ``seconds`` what its rows took a teacher."""

    folder: str
    teacher: str
    key: dict[str, Any]
    rows: int
    response_tokens: int
    bytes: int
    parts: int
    unfinished_parts: int
    seconds: float
    last_used_s: float

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.response_tokens)


def find(places: list[Path]) -> list[Path]:
    """The cache folders among these and right inside them, in order. Raises: CacheError where one is none."""
    found: list[Path] = []
    for place in places:
        own = [place] if (place / CARD).is_file() else sorted(file.parent for file in place.glob(f"*/{CARD}"))
        if not own and not place.is_dir():
            raise CacheError(f"there is no folder {place}", "name a cache's folder, or one that has some")
        found += own
    return found


def told(folder: Path) -> Told:
    """What is in a cache folder. Raises: CacheError where it is none."""
    card, parts = read_card(folder), list(parts_of(folder))
    records = [part.records for part in parts]
    return Told(
        folder=str(folder),
        teacher=str(card.get("teacher", "")),
        key=card["key"],
        rows=sum(map(len, records)),
        response_tokens=sum(int(found["positions"].sum()) for found in records),
        bytes=sum(part.num_bytes for part in parts),
        parts=len(parts),
        unfinished_parts=sum(not part.is_sealed for part in parts),
        seconds=sum(float(found["microseconds"].sum()) for found in records) / 1e6,
        last_used_s=max(0.0, time.time() - (folder / CARD).stat().st_mtime),
    )


def damage(folder: Path) -> Iterator[str]:
    """What is wrong with a cache folder, file by file; nothing where all is as it was written."""
    read_card(folder)
    for part in parts_of(folder):
        yield from part.damage()
    for seal in sorted(folder.glob("*-*.json")):
        if not seal.with_suffix(".index").exists():
            yield f"{seal.with_suffix('.index')} is missing"


def unused(folders: list[Path], days: float) -> list[Path]:
    """Those that no run has opened for so many days."""
    return [folder for folder in folders if told(folder).last_used_s >= days * DAY_S]


def remove(folder: Path) -> int:
    """Remove a cache folder; the bytes it had. Raises: CacheError where it is none."""
    size = told(folder).bytes
    remove_folder(folder)
    return size


def parts_of(folder: Path) -> Iterator[Part]:
    """All parts, finished or not."""
    return (Part(index.with_suffix("")) for index in sorted(folder.glob("*.index")))
