"""Data by name: ``starter`` is the rows that come with potstill; anything else is a path."""

from __future__ import annotations

from pathlib import Path

from potstill.errors import DataError
from potstill.recipe import Data

STARTER = "starter"
NAMES = (STARTER,)
_STARTER_FOLDER = Path(__file__).parent / "starter"


def train_file(config: Data) -> Path:
    """The file of the train rows. Raises: DataError where the starter rows were not installed."""
    return _starter("train") if config.path == STARTER else Path(config.path).expanduser()


def heldout_file(config: Data) -> Path | None:
    """The file of the held-out rows, or None where they are to be set aside from the train rows."""
    if config.heldout == STARTER or (config.heldout is None and config.path == STARTER):
        return _starter("heldout")
    return Path(config.heldout).expanduser() if config.heldout is not None else None


def shown(file: Path) -> str:
    """The file as a run folder names it: without the place where potstill is installed."""
    return f"{STARTER}/{file.name}" if file.parent == _STARTER_FOLDER else str(file)


def _starter(split: str) -> Path:
    file = _STARTER_FOLDER / f"{split}.jsonl"
    if not file.is_file():
        raise DataError("the starter rows are not in this installation", "install potstill again, or set data.path")
    return file
