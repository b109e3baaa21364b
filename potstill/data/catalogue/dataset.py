"""What is known of a data set before a file of it is opened, and what was read when one was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from potstill.data.catalogue.item import Item
from potstill.data.reader import BadRow


@dataclass(frozen=True)
class Card:
    """Where a data set is from and what it is for.

    Args:
        source: the address to download it from.
        licence: as its publishers state it.
        task: what is asked, in a sentence.
        notes: what goes wrong with this data set if one does not know it.
        published: rows by split, as published; a copy with another number is not the whole split.
    """

    name: str
    title: str
    source: str
    licence: str
    task: str
    notes: tuple[str, ...] = ()
    published: Mapping[str, int] = field(default_factory=dict)
    language: str = "English"


@dataclass(frozen=True)
class Dataset:
    """A data set by name: which files hold its splits, and how one of them is read.

    Args:
        splits: for each split the file names looked for, in this order, below the data set's folder. A name may hold
            ``*``, and several files that belong together are joined by `` + ``.
        read: the items of one file in its order; a row that holds none is a BadRow with the reason.
        folders: places below the data root where its folder may be; by default its name.
        framed: its prompts have a frame of their own, and so want no chat template.
    """

    card: Card
    splits: Mapping[str, tuple[str, ...]]
    read: Callable[[Path], Iterator[Item | BadRow]]
    folders: tuple[str, ...] = ()
    framed: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        return self.folders or (self.card.name,)


@dataclass(frozen=True)
class Loaded:
    """A split as read: its items and the rows that hold none, both in the file's order.

    ``sha256`` has the hash of each file, in hexadecimal, by its name.
    """

    items: tuple[Item, ...]
    bad: tuple[BadRow, ...]
    files: tuple[Path, ...]
    sha256: Mapping[str, str]

    @property
    def file(self) -> Path:
        """The file; of several parts the first."""
        return self.files[0]

    @property
    def counts(self) -> dict[str, int]:
        """``rows``, ``items``, ``bad``, and of the items those with a reference and with a rationale."""
        return {
            "rows": len(self.items) + len(self.bad),
            "items": len(self.items),
            "bad": len(self.bad),
            "with_reference": sum(bool(item.references) for item in self.items),
            "with_rationale": sum(item.rationale is not None for item in self.items),
        }

    @property
    def groups(self) -> dict[str, int]:
        """Items in each group, without those that have none."""
        return dict(sorted(Counter(item.group for item in self.items if item.group).items()))
