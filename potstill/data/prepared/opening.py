"""A folder in the place of a file: rows that potstill prepared, or that MiniLLM processed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.data.datasets import Place
from potstill.data.prepared.arrow import ArrowRows
from potstill.data.prepared.card import CARD, check_files, check_settings, check_tokenizer, read_card
from potstill.data.prepared.minillm import open_records, sets_in
from potstill.data.prepared.splits import SPLITS, Prepared
from potstill.errors import DataError
from potstill.recipe import Data
from potstill.run import write_text

QUARANTINE = "quarantine.jsonl"
CORPUS = "corpus.json"


def folder_of(place: Place) -> Path | None:
    """The place, where it is a folder that rows can be read from; None for a file, a name, or any other folder.

    Raises: DataError for a corpus of text.
    """
    if not isinstance(place, Path) or not place.is_dir():
        return None
    if (place / CORPUS).is_file():
        cause = f"{place} is a corpus of text, whose blocks are no prompts and responses"
        raise DataError(cause, f"set plain_text={place}, or data to rows")
    return place if (place / CARD).is_file() or sets_in(place) else None


def open_folder(
    folder: Path, config: Data, tokenizer: Any, *, quarantine_file: Path | None = None, as_it_is: bool = False
) -> Prepared:
    """The rows of a folder, read from it as they are asked for. Nothing is tokenised.

    Args:
        config: a recipe's data section, which must ask for what is there.
        tokenizer: the student's.
        quarantine_file: where the bad rows that were met are listed.
        as_it_is: whatever ``config`` asks for: to look at rows, or to measure on them.
    Raises: DataError for other settings or another tokenizer than the folder's, or files that were changed.
    """
    if not (folder / CARD).is_file():
        return open_records(folder, config, tokenizer, quarantine_file=quarantine_file)
    card = read_card(folder)
    if not as_it_is:
        check_settings(folder, card, config)
    check_tokenizer(folder, card, tokenizer)
    check_files(folder, card)
    if lacking := [name for name in SPLITS if file_of(name) not in card.files]:
        raise DataError(f"{folder / CARD} names no {file_of(lacking[0])}", "prepare the rows again")
    if quarantine_file:
        _copy_quarantine(folder / QUARANTINE, quarantine_file)
    rows = {name: ArrowRows(folder / file_of(name), card.files[file_of(name)].rows) for name in SPLITS}
    return Prepared(rows["train"], rows["validation"], rows["heldout"], card.counts)


def file_of(split: str) -> str:
    """The name of a split's file."""
    return f"{split}.arrow"


def _copy_quarantine(source: Path, target: Path) -> None:
    if source.is_file():
        write_text(target, source.read_text(encoding="utf-8"))
    else:
        target.unlink(missing_ok=True)  # one that an earlier attempt left would be untrue
