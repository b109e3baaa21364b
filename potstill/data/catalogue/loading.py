"""Finding the files of a split, reading them, and saying what was read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from potstill.data.catalogue.dataset import Dataset, Loaded
from potstill.data.catalogue.item import Item
from potstill.data.reader import BadRow
from potstill.errors import DataError, nearest
from potstill.hashes import file_sha256

VARIABLE = "POTSTILL_DATA"
BESIDE = Path(__file__).resolve().parents[4] / "shared" / "data"  # the repository is parents[3]
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
SHOWN = 3  # bad rows named in a message
NOTHING = (None, "", ())


def data_root() -> Path:
    """The folder of data sets: $POTSTILL_DATA, else ../shared/data beside the repository. Raises: DataError."""
    root = _root()
    if not root.is_dir():
        raise DataError(f"there is no folder of data sets {root}", f"set {VARIABLE} to a folder that holds them")
    return root


def _root() -> Path:
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else BESIDE


def load_split(dataset: Dataset, split: str, folder: Path | None = None) -> Loaded:
    """Read a split whole.

    Of two rows with one id the second is bad: results are kept by id.

    Args:
        folder: the data set's own folder; by default looked for below the data root.
    Raises: DataError for a split or file that is not there, a missing part of several, or a file without one item.
    """
    files = files_of(dataset, split, folder)
    items, bad = _sorted((file, found) for file in files for found in dataset.read(file))
    if not items:
        named = "; ".join(f"{row.where}: {row.reason}" for row in bad[:SHOWN]) or "it has none"
        raise DataError(f"no row of {files[0]} can be used: {named}", _download(dataset, split))
    return Loaded(items, bad, files, {_within(file, files): file_sha256(file) for file in files})


def _sorted(rows: Iterable[tuple[Path, Item | BadRow]]) -> tuple[tuple[Item, ...], tuple[BadRow, ...]]:
    items: dict[str, Item] = {}
    bad: list[BadRow] = []
    for file, row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
        elif row.id in items:  # in two parts: readers see to those in one file
            bad.append(BadRow(file.name, f"duplicate id {row.id[:60]!r}, also in an earlier part", row.prompt[:200]))
        else:
            items[row.id] = row
    return tuple(items.values()), tuple(bad)


def _within(file: Path, files: tuple[Path, ...]) -> str:
    return file.name if len({other.name for other in files}) == len(files) else str(file)


# --- files ------------------------------------------------------------------------------------------------------------


def files_of(dataset: Dataset, split: str, folder: Path | None = None) -> tuple[Path, ...]:
    """The files that hold a split: those of the first name that is there. Raises: DataError with what to do."""
    if split not in dataset.splits:
        name = dataset.card.name
        fix = f"{nearest(split, dataset.splits)}It has {', '.join(dataset.splits)}"
        raise DataError(f"{name} has no split {split!r}", fix)
    folders = [Path(folder)] if folder is not None else [_root() / place for place in dataset.places]
    for place in folders:
        for name in dataset.splits[split]:
            if files := _matching(place, name):
                return files
    looked = " or ".join(str(place) for place in folders)
    there = "" if any(place.is_dir() for place in folders) else ", which is not there"
    raise DataError(f"no file of {dataset.card.name}, split {split}, in {looked}{there}", _download(dataset, split))


def _matching(folder: Path, names: str) -> tuple[Path, ...]:
    """The files of a name that may hold ``*`` or `` + ``; none where none is there. Raises: DataError for some."""
    parts = [(name, sorted(file for file in folder.glob(name) if file.is_file())) for name in names.split(" + ")]
    files = tuple(file for _, found in parts for file in found)
    if not files:
        return ()
    if absent := [name for name, found in parts if not found]:
        raise DataError(f"{folder} has {files[0].name} but not {', '.join(absent)}", "download the missing part")
    if (mark := SHARD.search(files[0].name)) and int(mark[1]) != len(files):
        cause = f"{folder} has {len(files)} of the {int(mark[1])} parts of {names}"
        raise DataError(cause, "download the missing parts, and keep no parts of another version beside them")
    return files


def _download(dataset: Dataset, split: str) -> str:
    names = ", ".join(dataset.splits[split])
    return (
        f"download it from {dataset.card.source} into a folder {dataset.places[0]} below {VARIABLE} "
        f"(now {_root()}), or name its folder; the files looked for are, in this order: {names}"
    )


# --- the card ---------------------------------------------------------------------------------------------------------


def card_of(dataset: Dataset, split: str, loaded: Loaded) -> dict[str, Any]:
    """The data card of a split as read: source, licence, files with their hashes, counts, and what its items have."""
    about = dataset.card
    filled = ("options", "answer", "group", "rationale", "content")
    return {
        "name": about.name,
        "split": split,
        "title": about.title,
        "task": about.task,
        "language": about.language,
        "source": about.source,
        "licence": about.licence,
        "notes": list(about.notes),
        "sha256": dict(loaded.sha256),
        "counts": loaded.counts,
        "published_rows": about.published.get(split),
        "groups": loaded.groups,
        "fields": [
            "id",
            "prompt",
            "references",
            *(f for f in filled if any(getattr(i, f) not in NOTHING for i in loaded.items)),
        ],
        "bad_rows": [f"{row.where}: {row.reason}" for row in loaded.bad[:SHOWN]],
    }


def card_text(card: dict[str, Any]) -> str:
    """A data card for reading: plain text, a line for each thing."""
    counts, published = card["counts"], card["published_rows"]
    size = f"{counts['items']:,} items, {counts['bad']:,} rows that cannot be used"
    if published is not None and published != counts["rows"]:
        size += f"; published with {published:,} rows, so this is not the whole split"
    lines = [
        f"{card['name']}, {card['split']}: {card['title']}",
        f"task: {card['task']} ({card['language']})",
        f"size: {size}",
        f"source: {card['source']}",
        f"licence: {card['licence']}",
        f"fields: {', '.join(card['fields'])}",
        *(f"file: {name} sha256 {digest}" for name, digest in card["sha256"].items()),
        *(f"note: {note}" for note in card["notes"]),
        *(f"bad row: {row}" for row in card["bad_rows"]),
    ]
    return "\n".join(lines) + "\n"
