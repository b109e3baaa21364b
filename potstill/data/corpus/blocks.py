"""The blocks of a folder as rows to train on, made when they are asked for: memory holds none of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data.corpus.building import CARD, tokenizer_card
from potstill.data.examples import Tokenised
from potstill.data.indexed import IndexedTokens
from potstill.data.indexed.layout import CHUNK, Ids, read_layout
from potstill.data.indexed.reader import find_shards, named
from potstill.data.lazy import LazyRows
from potstill.errors import DataError

LOOKED_AT = 64  # blocks read when a folder is opened


def block_row(name: str, number: int, ids: Ids) -> Tokenised:
    """A block as a row, all of whose tokens but the first are predicted.

    Args:
        name: of the text. number: of the block, from 1. ids: of shape (tokens,), at least 2.
    """
    first, *rest = ids.tolist()
    return Tokenised(f"{name}, block {number}", (first,), tuple(rest), "", "", truncated=True)


def holds_blocks(path: Path) -> bool:
    """Whether this is a folder of token ids rather than of text."""
    return path.is_dir() and ((path / CARD).exists() or any(path.glob("*.idx")))


class CorpusBlocks(LazyRows):
    """The blocks of ``build_corpus``, or those that MiniLLM made, as rows.

    Every length is checked when the folder is opened, and the ids of some blocks; those of others when they are read.

    Args:
        folder: of train_0.bin, train_0.idx and on; potstill's has a corpus.json beside them.
        tokenizer: of the student: the one that the blocks were made with.
        block_tokens: ids in each block.
    Raises: DataError for blocks of another tokenizer or length, records that are no blocks, or broken files.
    """

    def __init__(self, folder: str | Path, tokenizer: Any, block_tokens: int, *, split: str = "train"):
        self._name = Path(folder).name
        self._folder = Path(folder)
        _check_card(self._folder / CARD, tokenizer)
        self._tokens = IndexedTokens(folder, split, vocab_size=len(tokenizer))
        self._check_lengths(split, block_tokens)
        for number in np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self)), dtype=np.int64):
            self._ids(int(number))
        self._tokens.expect_random_reads()

    def __len__(self) -> int:
        return len(self._tokens)

    def row(self, index: int) -> Tokenised:
        return block_row(self._name, index + 1, self._ids(index))

    def _ids(self, index: int) -> Ids:
        ids = self._tokens[index]
        if (ids == self._tokens.separator).any():
            cause = f"{self._folder}: record {index} holds a prompt and its response, not a block of text"
            raise DataError(cause, "name a folder of plain text, made by `potstill data prepare`")
        return ids

    def _check_lengths(self, split: str, block_tokens: int) -> None:
        shortest, longest = record_lengths(self._folder, split)
        if not len(self):
            raise DataError(f"{self._folder}: there are no blocks in it", "prepare it again, of more text")
        if shortest != longest:
            cause = f"{self._folder}: its records have {shortest} to {longest} ids, and blocks have one length"
            raise DataError(cause, "prepare the text again with `potstill data prepare`")
        if shortest != block_tokens:
            cause = f"{self._folder} has blocks of {shortest} tokens, and source.block_tokens of the stream is "
            fix = f"set source.block_tokens to {shortest}, or prepare the text again with --block-size {block_tokens}"
            raise DataError(f"{cause}{block_tokens}", fix)


def record_lengths(folder: Path, split: str) -> tuple[int, int]:
    """Ids in the shortest and in the longest record of all shards; zeros where there are none.

    The index is read in pieces: that of 10 GB of blocks takes some megabytes on disk and none of them in memory.
    """
    shortest, longest = [], []
    for prefix in find_shards(folder, split):
        idx = named(prefix, ".idx")
        layout = read_layout(idx)
        for start in range(0, layout.num_records, CHUNK):
            count = min(CHUNK, layout.num_records - start)
            sizes = np.fromfile(idx, "<i4", count, offset=layout.sizes_at + 4 * start)
            shortest.append(int(sizes.min()))
            longest.append(int(sizes.max()))
    return min(shortest, default=0), max(longest, default=0)


def _check_card(file: Path, tokenizer: Any) -> None:
    """Refuse another tokenizer than the card names. MiniLLM's folders have no card, and ids alone are looked at."""
    if not file.exists():
        return
    try:
        made = json.loads(file.read_text(encoding="utf-8"))["tokenizer"]
        name, sha256 = str(made["name"]), str(made["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not the card of a corpus", "prepare the text again, or remove the card") from error
    now = tokenizer_card(tokenizer)
    if sha256 != now["sha256"]:
        mine = f"{now['name'] or 'the student'} ({len(tokenizer):,} tokens)"
        cause = f"{file.parent} was made with the tokenizer of {name or 'another model'}, and the student has {mine}"
        raise DataError(
            f"{cause}: the two turn text into different ids",
            "prepare the text again with `potstill data prepare --model` and the student",
        )
