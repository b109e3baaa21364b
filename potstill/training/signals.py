"""Stopping well: the first SIGTERM or Ctrl-C finishes the step and saves, the second stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from potstill.errors import Stopped
from potstill.training.runtime import Runtime

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


class StopRequest:
    """What the user asked for: an exit code once a signal has come, None before."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._in_loop = False

    @contextmanager
    def at_end_of_step(self) -> Iterator[None]:
        """A training loop that promises to look after every step: a signal waits for it instead of interrupting."""
        self._in_loop = True
        try:
            yield
        finally:
            self._in_loop = False

    def agreed(self, runtime: Runtime) -> int | None:
        """The exit code that any process was asked for, the same answer on all of them."""
        terminated, interrupted = runtime.sum([self.exit_code == 75, self.exit_code == 130])
        return 130 if interrupted else 75 if terminated else None

    def stopped(self, when: str, exit_code: int) -> Stopped:
        return Stopped(f"stopped {when}, with everything saved", "go on with `potstill resume`", exit_code=exit_code)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        again = self.exit_code is not None
        self.exit_code = EXIT_CODES[signal.Signals(number)]
        if again:
            # Not an exception: whatever is running must not get to finish first. The last checkpoint stands.
            os._exit(self.exit_code)
        if not self._in_loop:
            raise self.stopped("outside training", self.exit_code)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Listen for SIGTERM and Ctrl-C; outside the main thread, where Python delivers no signals, do nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
