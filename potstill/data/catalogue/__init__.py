"""Data sets by name: each with where it is from, which files hold it, and a reader that makes items of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.data.catalogue import choices, inference, instructions, maths, summaries
from potstill.data.catalogue.dataset import Card, Dataset, Loaded
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.loading import card_of, card_text, data_root, files_of, load_split
from potstill.errors import DataError, nearest

_ALL = (
    *(instructions.DOLLY, instructions.SELF_INST, instructions.VICUNA, instructions.SINST, instructions.UINST),
    *(inference.ANLI, inference.ESNLI),
    *(choices.CQA, maths.SVAMP, maths.GSM8K),
    *(summaries.CNN_DAILYMAIL, summaries.XSUM, summaries.SAMSUM),
)
DATASETS: dict[str, Dataset] = {dataset.card.name: dataset for dataset in _ALL}


def load(name: str, split: str, *, folder: Path | None = None) -> Loaded:
    """A split of a data set, whole: its items, and the rows that hold none with the reason.

    Args:
        folder: the data set's own folder; by default ``name`` below the data root.
    Raises: DataError for a name, split or file that is not there, saying what to download from where.
    """
    return load_split(_dataset(name), split, folder)


def is_there(name: str, split: str) -> bool:
    """Whether a file of the split is below the data root. Raises: DataError for an unknown name."""
    try:
        return bool(files_of(_dataset(name), split))
    except DataError:
        if name not in DATASETS:
            raise
        return False


def card(name: str, split: str, loaded: Loaded) -> dict[str, Any]:
    """The data card of a split as read; ``card_text`` makes it plain text. Raises: DataError for an unknown name."""
    return card_of(_dataset(name), split, loaded)


def splits_of(name: str) -> tuple[str, ...]:
    """The splits of a data set, here or not. Raises: DataError for an unknown name."""
    return tuple(_dataset(name).splits)


def _dataset(name: str) -> Dataset:
    if name not in DATASETS:
        fix = f"{nearest(name, DATASETS)}It is one of {', '.join(DATASETS)}"
        raise DataError(f"there is no data set called {name!r}", fix)
    return DATASETS[name]


__all__ = [
    "DATASETS",
    "Card",
    "Dataset",
    "Item",
    "Loaded",
    "card",
    "card_text",
    "data_root",
    "is_there",
    "load",
    "splits_of",
]
