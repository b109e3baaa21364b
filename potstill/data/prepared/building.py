"""From files of rows to a folder of tokenised ones, with a card that says what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.data import datasets
from potstill.data.examples import Tokenised
from potstill.data.gathering import gather
from potstill.data.indexed.staging import staging, sync
from potstill.data.prepare import encode
from potstill.data.prepared.arrow import ArrowRows, write_arrow
from potstill.data.prepared.card import CARD, Card, file_card, settings_of, tokenizer_of
from potstill.data.prepared.opening import QUARANTINE, file_of
from potstill.data.prepared.splits import SPLITS
from potstill.data.quarantine import write_quarantine
from potstill.errors import DataError
from potstill.recipe import Data
from potstill.run import write_text


def prepare_rows(config: Data, tokenizer: Any, folder: str | Path, *, workers: int = 1) -> Card:
    """Write train.arrow, validation.arrow and heldout.arrow, the bad rows, and a card rows.json; returns the card.

    A recipe that names the folder in ``data`` trains on what it would have had from the files themselves. The folder
    has its name only when all of it is written. The same files and settings give the same bytes, for any number of
    workers. The rows' text is in memory meanwhile, as in a run; their ids are not.

    Args:
        config: the data section of a recipe, with a file or a named split in ``path``.
        tokenizer: a transformers tokenizer: the student's.
        folder: one that does not exist, or is empty.
        workers: processes that tokenise, started afresh: a script that asks for more than one has to keep its work
            under ``if __name__ == "__main__":``.
    Raises: DataError as ``prepare`` does, and for a folder with content.
    """
    target = Path(folder)
    if workers < 1:
        raise DataError(f"{workers} workers cannot tokenise", "give at least 1")
    for place in (datasets.train_place(config), datasets.heldout_place(config)):
        if isinstance(place, Path) and place.is_dir():
            raise DataError(f"{place} is a folder, and rows are prepared from files", "name a file of rows")
    with staging(target) as work:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            cause = f"{target} exists already, and prepared rows are never overwritten"
            raise DataError(cause, "remove it, or name another")
        built = work / "rows"
        built.mkdir()
        card = _write(built, config, tokenizer, workers)
        os.rename(built, target)
        sync(target.parent)
    return card


def _write(built: Path, config: Data, tokenizer: Any, workers: int) -> Card:
    gathered = gather(config, tokenizer)
    write_quarantine(built / QUARANTINE, gathered.bad)

    def keep(split: str, rows: Iterator[Tokenised]) -> Sequence[Tokenised]:
        file = built / file_of(split)
        count = write_arrow(file, rows, groups="group" in config.fields)
        return ArrowRows(file, count)

    made = encode(gathered, config, tokenizer, keep, workers=workers)
    sizes = {file_of(split): len(getattr(made, split)) for split in SPLITS}
    card = Card(
        settings=settings_of(config),
        tokenizer=tokenizer_of(tokenizer, gathered.template),
        files={name: file_card(built / name, rows) for name, rows in sizes.items()},
        counts=made.counts,
    )
    write_text(built / CARD, card.model_dump_json(indent=2) + "\n")
    sync(built)
    return card
