"""From source files to a folder of packed blocks with a card that says what is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

from potstill.data.corpus.packing import Counts, packed
from potstill.data.corpus.reading import Paths, source_files, texts
from potstill.data.indexed import dtype_for, write_indexed
from potstill.data.indexed.layout import Ids
from potstill.data.indexed.staging import staging, sync
from potstill.data.quarantine import SHOWN
from potstill.data.reader import BadRow
from potstill.errors import DataError
from potstill.hashes import file_sha256
from potstill.run import write_text

CARD = "corpus.json"
QUARANTINE = "quarantine.jsonl"


def build_corpus(
    paths: Paths,
    tokenizer: Any,
    folder: str | Path,
    *,
    field: str = "text",
    whole_files: bool = False,
    block_size: int = 512,
    num_blocks: int | None = None,
    dev_blocks: int = 0,
    workers: int = 1,
    max_bad_rows: float = 0.01,
) -> dict[str, Any]:
    """Write ``train_0.bin`` and ``.idx`` and on, with ``dev_blocks`` also ``valid``, and a card; returns the card.

    The folder has its name only when all of it is written: a build that was killed leaves a hidden one that nothing
    reads and the next build empties. The same files and settings give the same bytes, for any number of workers.

    Args:
        paths, field, whole_files: as for ``documents``.
        tokenizer: a transformers tokenizer.
        folder: one that does not exist, or is empty.
        num_blocks: train blocks at most. dev_blocks: the first so many blocks are ``valid``.
        max_bad_rows: the share of rows that may be bad; they are listed in quarantine.jsonl.
    Raises: DataError for sources that cannot be read, too many bad rows, too little text, or a folder with content.
    """
    sources, target = source_files(paths), Path(folder)
    if dev_blocks < 0 or (num_blocks is not None and num_blocks < 1):
        cause = f"a corpus of {num_blocks} train blocks and {dev_blocks} valid ones cannot be made"
        raise DataError(cause, "give num_blocks of at least 1, and dev_blocks of at least 0")
    with staging(target) as work:
        _refuse_content(target)
        built = work / "corpus"
        built.mkdir()
        counts, bad = Counts(), _Bad(built / QUARANTINE, max_bad_rows)
        blocks = packed(
            texts(sources, field, whole_files=whole_files),
            tokenizer,
            block_size,
            num_blocks=None if num_blocks is None else num_blocks + dev_blocks,
            workers=workers,
            counts=counts,
            on_bad=bad.add,
        )
        with closing(blocks), bad:
            sizes = _write_splits(built, blocks, dev_blocks, len(tokenizer))
        bad.judge(counts)
        if not sizes["train"]:
            cause = f"{counts.tokens:,} tokens of text are too few for {dev_blocks} valid blocks and one to train on"
            raise DataError(cause, "give more text, or ask for fewer or smaller blocks")
        card = {
            "kind": "potstill corpus 1",
            "settings": {"field": field, "whole_files": whole_files, "num_blocks": num_blocks},
            "block_size": block_size,
            **(asdict(counts) | {"blocks": sizes}),
            "dtype": dtype_for(len(tokenizer)).name,
            "tokenizer": tokenizer_card(tokenizer),
            "sources": [_source(file) for file in sources],
        }
        write_text(built / CARD, json.dumps(card, indent=2) + "\n")
        sync(built)
        os.rename(built, target)
        sync(target.parent)
    return card


def _refuse_content(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} exists already, and a corpus is never overwritten", "remove it, or name another")


def _write_splits(folder: Path, blocks: Iterator[Ids], dev_blocks: int, vocab_size: int) -> dict[str, int]:
    """Write the first blocks as valid and the rest as train; how many there are of each."""
    sizes = {"train": 0, "valid": 0}
    for split, limit in (("valid", dev_blocks), ("train", None)):
        records = ([block] for block in islice(blocks, limit))
        if first := next(records, None):
            sizes[split] = write_indexed(folder / split, chain([first], records), vocab_size).num_records
    return sizes


class _Bad:
    """Bad rows as they come: on disk all of them, in memory the few that a message names."""

    def __init__(self, file: Path, max_share: float):
        self.file, self.max_share = file, max_share
        self.shown: list[BadRow] = []

    def __enter__(self) -> None:
        self._handle = open(self.file, "w", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        if not self.shown:
            self.file.unlink()

    def add(self, row: BadRow) -> None:
        self._handle.write(json.dumps(vars(row)) + "\n")
        if len(self.shown) < SHOWN:
            self.shown.append(row)

    def judge(self, counts: Counts) -> None:
        """Raise DataError where the share of bad rows is above the limit."""
        rows = counts.bad_rows + counts.documents + counts.documents_with_eos
        if counts.bad_rows <= self.max_share * rows:
            return
        found = f"{counts.bad_rows} of the {rows} rows ({counts.bad_rows / rows:.1%}) cannot be used"
        named = "; ".join(f"{row.where}: {row.reason}" for row in self.shown)
        cause = f"{found}, and max_bad_rows={self.max_share:g}: {named}"
        raise DataError(cause, "name the field of the text, mend the rows, or raise max_bad_rows")


# --- the card ---------------------------------------------------------------------------------------------------------


def _source(file: Path) -> dict[str, Any]:
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}


def tokenizer_card(tokenizer: Any) -> dict[str, Any]:
    """Which tokenizer it is: its name, and a hash of what turns text into ids.

    Padding and truncation are no part of the hash: they are set by use and change no ids here.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(core.to_str()) if core is not None else {"vocab": tokenizer.get_vocab()}
    text = json.dumps({key: parts[key] for key in parts if key not in ("padding", "truncation")}, sort_keys=True)
    name = str(tokenizer.name_or_path or "")
    return {
        "name": Path(name).name if Path(name).exists() else name,  # not where it lies on this machine
        "sha256": sha256(text.encode()).hexdigest(),
        "vocab_size": len(tokenizer),
        "eos_id": tokenizer.eos_token_id,
    }
