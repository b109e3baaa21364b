"""Work on batches in this process or several, with the results in the order of the batches either way."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from potstill.errors import PotstillError

Batch = TypeVar("Batch")
Result = TypeVar("Result")
AHEAD = 3  # batches waiting for each worker: an endless source is not read further than that


def in_order(work: Callable[[Batch], Result], batches: Iterable[Batch], workers: int) -> Generator[Result]:
    """``work(batch)`` for each batch, in order.

    Args:
        work: can be pickled, and is sent to each worker once; so can its batches and results.
        workers: with 1 it is done in this process. More are started afresh, so that a script that asks for more has to
            keep its work under ``if __name__ == "__main__":``. They end with the process that started them.
    Raises: PotstillError where a worker dies; what ``work`` raises.
    """
    return (work(batch) for batch in batches) if workers == 1 else _parallel(work, batches, workers)


def _parallel(work: Callable[[Batch], Result], batches: Iterable[Batch], workers: int) -> Generator[Result]:
    # Spawned: a fork of a process with threads, and torch has them, may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(work,))
    waiting: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_do, batch))
            if len(waiting) == AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        cause = "a worker process was ended from outside, for lack of memory perhaps"
        raise PotstillError(cause, "try again with fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# --- in a worker ------------------------------------------------------------------------------------------------------

_mine: Callable[[Any], Any] | None = None  # what this worker does


def _start(work: Callable[[Any], Any]) -> None:
    global _mine
    _mine = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for each process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(batch: Any) -> Any:
    assert _mine is not None
    return _mine(batch)
