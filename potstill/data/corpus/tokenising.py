"""Documents to token ids in this process or several, in the order of the documents either way."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from potstill.data.indexed.layout import Ids
from potstill.data.parallel import in_order
from potstill.data.reader import BadRow

Tokenised: TypeAlias = Ids | BadRow
Batch: TypeAlias = list[str | BadRow]
BATCH_DOCUMENTS, BATCH_CHARS = 64, 250_000


def tokenised(documents: Iterable[str | BadRow], tokenizer: Any, workers: int) -> Generator[list[Tokenised]]:
    """The ids of each document, int64 of shape (tokens,), in batches; bad rows stay in their places.

    Raises: PotstillError where a worker dies.
    """
    return in_order(partial(encode, tokenizer=tokenizer), _batches(documents), workers)


def _batches(documents: Iterable[str | BadRow]) -> Iterator[Batch]:
    waiting = iter(documents)
    while batch := next_batch(waiting):
        yield batch


def next_batch(documents: Iterator[str | BadRow]) -> Batch:
    """The next documents, as many as are tokenised at once, and none read beyond them; empty at the end."""
    batch: Batch = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document) if isinstance(document, str) else 0
        if len(batch) == BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            break
    return batch


def encode(batch: Batch, tokenizer: Any) -> list[Tokenised]:
    """The ids of each document, int64 of shape (tokens,); bad rows stay in their places."""
    texts = [document for document in batch if isinstance(document, str)]
    options = {"add_special_tokens": False, "padding": False, "truncation": False, "verbose": False}
    rows = iter(tokenizer(texts, **options)["input_ids"] if texts else [])
    return [np.array(next(rows), np.int64) if isinstance(one, str) else one for one in batch]
