"""A worker process of ``potstill sweep --jobs N``: takes run folders from its standard input and runs them.

One line of JSON in for each cell, one out when it has ended; all that a run prints goes to the worker's log. When the
input ends while a cell is at work, the sweep is gone: the worker stops as by SIGTERM, with everything saved.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.sweep.conduct import conduct


class Orders:
    """The lines of standard input, read by a thread so that their end is noticed while a cell is at work."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()
        self._is_busy = self._is_over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        with self._lock:
            self._is_over = True
            is_busy = self._is_busy
        self._lines.put("")
        if is_busy:
            os.kill(os.getpid(), signal.SIGTERM)

    def next(self) -> dict[str, Any] | None:
        """The next order; None where there will be none, or nobody is left to be answered."""
        self._is_busy = False
        line = self._lines.get()
        with self._lock:
            self._is_busy = not self._is_over
            return json.loads(line) if self._is_busy else None


def main() -> None:
    """Run what is ordered until the input ends, or a signal stops a cell."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print is for the log
    orders = Orders()
    while order := orders.next():
        print(f"\n=== {order['folder']}", file=sys.stderr, flush=True)
        outcome = conduct(Path(order["folder"]), allow_remote_code=order["allow_remote_code"])
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()
        if outcome.exit_code is not None:
            sys.exit(outcome.exit_code)


if __name__ == "__main__":
    main()
