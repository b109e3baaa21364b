"""Documents to token ids in this process or several, in the order of the documents either way."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeAlias

import numpy as np

from potstill.data.indexed.layout import Ids
from potstill.data.reader import BadRow
from potstill.errors import PotstillError

Tokenised: TypeAlias = Ids | BadRow
Batch: TypeAlias = list[str | BadRow]
BATCH_DOCUMENTS, BATCH_CHARS = 64, 250_000
AHEAD = 3  # batches waiting for each worker: an endless source is not read further than that


def tokenised(documents: Iterable[str | BadRow], tokenizer: Any, workers: int) -> Generator[list[Tokenised]]:
    """The ids of each document, int64 of shape (tokens,), in batches; bad rows stay in their places.

    Raises: PotstillError where a worker dies.
    """
    batches = _batches(documents)
    return (encode(batch, tokenizer) for batch in batches) if workers == 1 else _parallel(batches, tokenizer, workers)


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


# --- processes --------------------------------------------------------------------------------------------------------

_mine: Any = None  # a worker's tokenizer


def _parallel(batches: Iterator[Batch], tokenizer: Any, workers: int) -> Generator[list[Tokenised]]:
    # Spawned: a fork of a process with threads, and torch has them, may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(tokenizer,))
    waiting: deque[Future[list[Tokenised]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode_mine, batch))
            if len(waiting) == AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        cause = "a process that tokenised was ended from outside, for lack of memory perhaps"
        raise PotstillError(cause, "try again with fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(tokenizer: Any) -> None:
    global _mine
    _mine = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for each process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_mine(batch: Batch) -> list[Tokenised]:
    return encode(batch, _mine)
