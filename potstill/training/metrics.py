"""The run's own log, one JSON line a step, and what a person watching sees."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

LINE_EVERY_S = 10.0  # where there is no terminal


class MetricsLog:
    """metrics.jsonl: appended to, never rewritten, cut back to a checkpoint's length when a run goes on from there."""

    def __init__(self, file: Path | None, length: int = 0):
        """Open ``file`` cut to ``length`` bytes; None, on all processes but the main one, keeps nothing."""
        self._handle: TextIO | None = None
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        self._handle = open(file, "a", encoding="utf-8")  # noqa: SIM115 - closed on exit
        self._handle.truncate(length)

    def write(self, line: dict[str, Any]) -> None:
        """Add a line. A figure that is not finite is written as null, which every JSON reader takes."""
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        if self._handle:
            self._handle.write(json.dumps(clean) + "\n")

    def flush(self) -> int:
        """Wait until all lines are on disk, and return the file's length in bytes."""
        if not self._handle:
            return 0
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return os.fstat(self._handle.fileno()).st_size

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle:
            self._handle.close()


class Progress:
    """A bar with loss, speed and time left on a terminal; a plain line now and then where there is none."""

    def __init__(self, label: str, *, quiet: bool = False):
        self.label = label
        self.quiet = quiet
        self._last_line = -math.inf
        self._bar: Any = _bar(label) if sys.stderr.isatty() and not quiet else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, done: float, loss: float, tokens_per_s: float, seconds: float) -> None:
        """Tell how far training is.

        Args:
            step: just finished.
            done: share of the budget, 0 to 1.
            loss: of this step. tokens_per_s: of this step. seconds: of training so far.
        """
        status = f"step {step}  loss {loss:.3f}  {tokens_per_s:.0f} tok/s"
        if self._bar:
            self._bar.update(0, completed=done, status=status)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S or done >= 1:
            self._last_line = time.monotonic()
            left = max(0.0, seconds * (1 - done) / done) if done > 0 else math.nan
            self._say(f"{self.label}: {status}  {100 * min(done, 1):.0f}%  {left:.0f} s left")

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


def _bar(label: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = RichProgress(*columns, TextColumn("{task.fields[status]}"), console=Console(stderr=True))
    bar.add_task(label, total=1.0, status="")
    return bar
