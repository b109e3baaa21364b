"""Data by name: ``starter`` is potstill's own rows, ``cqa:train`` a split of a named data set; else it is a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from potstill.data.catalogue import DATASETS
from potstill.errors import DataError, nearest
from potstill.recipe import Data

STARTER = "starter"
NAMES = (STARTER,)
_STARTER_FOLDER = Path(__file__).parent / "starter"
_NAMED = re.compile(r"([a-z][a-z0-9_]+):([a-z0-9_]+)")


@dataclass(frozen=True)
class Named:
    """A split of a named data set."""

    name: str
    split: str

    def __str__(self) -> str:
        return f"{self.name}:{self.split}"


Place = Path | Named


def train_place(config: Data) -> Place:
    """Where the train rows are. Raises: DataError where there is no such name, or no starter rows."""
    return _starter("train") if config.path == STARTER else place_of(config.path)


def heldout_place(config: Data) -> Place | None:
    """Where the held-out rows are, or None where they are to be set aside from the train rows."""
    if config.heldout == STARTER or (config.heldout is None and config.path == STARTER):
        return _starter("heldout")
    return None if config.heldout is None else place_of(config.heldout)


def shown(place: Place) -> str:
    """The place as a run folder names it: without the one where potstill is installed."""
    if isinstance(place, Path) and place.parent == _STARTER_FOLDER:
        return f"{STARTER}/{place.name}"
    return str(place)


def place_shown(text: str) -> Place:
    """The place that ``shown`` has named. Raises: DataError as ``place_of``."""
    folder, _, file = text.partition("/")
    return _STARTER_FOLDER / file if folder == STARTER and file else place_of(text)


def place_of(text: str) -> Place:
    """The named split or the path that a text means. Raises: DataError for a split of a data set that is not known."""
    found = _NAMED.fullmatch(text)
    if found is None or Path(text).exists():
        return Path(text).expanduser()
    if found[1] not in DATASETS:
        fix = f"{nearest(found[1], DATASETS)}it is one of {', '.join(DATASETS)}, or name a file"
        raise DataError(f"there is no data set {found[1]!r}", fix)
    return Named(found[1], found[2])


def _starter(split: str) -> Path:
    file = _STARTER_FOLDER / f"{split}.jsonl"
    if not file.is_file():
        raise DataError("the starter rows are not in this installation", "install potstill again, or name a file")
    return file
