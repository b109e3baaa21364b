"""Stopping a command that asks: SIGTERM and Ctrl-C end it with what it has so far, and how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from potstill.errors import Stopped


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it is no Exception, so that nothing on the way takes it for a failure."""


@contextmanager
def stoppable(how_far: Callable[[], str] = lambda: "with nothing lost") -> Iterator[None]:
    """What is inside may be stopped at any time: every answer is on disk before the next is waited for.

    One may stand in another: the inner tells. Outside the main thread, where Python delivers no signals, only what
    is raised inside is told.

    Args:
        how_far: follows "stopped" in the message; called when the signal has come.
    Raises: Stopped, with exit code 75 by SIGTERM and 130 by Ctrl-C.
    """
    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if listens else None
    try:
        yield
    except (Terminated, KeyboardInterrupt) as stop:
        code = 75 if isinstance(stop, Terminated) else 130
        raise Stopped(f"stopped {how_far()}", "the same command goes on", exit_code=code) from None
    finally:
        if listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
