"""Blocks of token ids: documents one after another, each ended, cut to one length."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from potstill.data.corpus.tokenising import Tokenised, tokenised
from potstill.data.indexed.layout import Ids
from potstill.data.reader import BadRow
from potstill.errors import DataError

OnBad: TypeAlias = Callable[[BadRow], None]


@dataclass
class Counts:
    """What packing met so far. tokens = blocks x block_size + dropped_tokens, once it has come to its end."""

    documents: int = 0  # that gave tokens
    bad_rows: int = 0
    documents_with_eos: int = 0  # left out: the end of a sequence stood inside them
    tokens: int = 0  # the end-of-sequence ids between documents included
    blocks: int = 0
    dropped_tokens: int = 0  # what was over after the last block
    read_to_end: bool = False


def refuse(row: BadRow) -> None:
    raise DataError(f"{row.where}: {row.reason}", "mend or remove the row")


def packed(
    documents: Iterable[str | BadRow],
    tokenizer: Any,
    block_size: int,
    *,
    num_blocks: int | None = None,
    workers: int = 1,
    counts: Counts | None = None,
    on_bad: OnBad = refuse,
) -> Generator[Ids]:
    """Blocks of ids, int64 of shape (block_size,): each document's tokens and the end-of-sequence id, cut to length.

    The order is that of the documents, and the blocks and counts are the same for any number of workers. What is left
    after the last block is dropped and counted. A document with the end-of-sequence id inside is left out and counted:
    a model would learn to begin anew in the middle of it.

    Args:
        documents: text; a ``BadRow`` among them is counted and given to ``on_bad``, by default a refusal.
        tokenizer: a transformers tokenizer; it adds no special tokens.
        num_blocks: stop after so many, without reading on.
        workers: processes that tokenise; with 1 it is done in this one. They are started afresh, so that a script that
            asks for more has to keep its work under ``if __name__ == "__main__":``.
        counts: filled as the blocks are taken.
    Raises: DataError for a tokenizer without an end-of-sequence token, a block under 2 tokens, or no workers.
    """
    check_tokenizer(tokenizer)
    if block_size < 2 or workers < 1 or (num_blocks is not None and num_blocks < 1):
        cause = f"blocks of {block_size} tokens, {num_blocks} of them, by {workers} workers cannot be made"
        raise DataError(cause, "give a block_size of at least 2, workers of at least 1, num_blocks of at least 1")
    found = counts if counts is not None else Counts()
    return _blocks(
        tokenised(documents, tokenizer, workers), tokenizer.eos_token_id, block_size, num_blocks, found, on_bad
    )


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse one that cannot end a document. Raises: DataError."""
    if tokenizer.eos_token_id is None:
        cause = "the tokenizer has no end-of-sequence token to put between documents"
        raise DataError(cause, "set eos_token in its tokenizer_config.json, or choose another")


def _blocks(
    batches: Generator[list[Tokenised]], eos_id: int, size: int, limit: int | None, counts: Counts, on_bad: OnBad
) -> Generator[Ids]:
    rest: Ids = np.empty(0, np.int64)
    with closing(batches):  # and so the processes, where it stops early
        for batch in batches:
            rest = np.concatenate([rest, *ended(batch, eos_id, counts, on_bad)])
            counts.dropped_tokens = len(rest)
            start = 0
            for start in range(size, len(rest) + 1, size):
                counts.blocks += 1
                counts.dropped_tokens = len(rest) - start
                yield rest[start - size : start]
                if counts.blocks == limit:
                    return
            rest = rest[start:]
    counts.read_to_end = True


def ended(batch: list[Tokenised], eos_id: int, counts: Counts, on_bad: OnBad) -> Iterator[Ids]:
    """The ids of each document that can be used, and its end; those that cannot are counted."""
    for ids in batch:
        if isinstance(ids, BadRow):
            counts.bad_rows += 1
            on_bad(ids)
        elif eos_id in ids:
            counts.documents_with_eos += 1
        elif len(ids):
            counts.documents += 1
            counts.tokens += len(ids) + 1
            yield np.append(ids, eos_id)
