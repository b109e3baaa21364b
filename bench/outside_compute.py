"""B9: what a step does beside computing: drawing and collating rows, reading the cache, metrics, progress.

Seconds on the wall, for waiting counts; of the real training loop, from the end of one update to the beginning of the
next forward, and of every reading of the cache in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from bench import caches, workload
from bench.measuring import Effort
from bench.results import Result
from potstill import recipe_io
from potstill.recipes import METHODS
from potstill.run import Run
from potstill.teachers.local import LocalTeacher
from potstill.training.runtime import start
from potstill.training.signals import StopRequest
from potstill.training.trainer import Job, fit

FORM = "50 draws"
SHARE = 0.03
ROWS = 8  # two batches: from the third step on all is read


def measure(effort: Effort) -> list[Result]:
    """Seconds outside of computing, against those of whole steps."""
    outside, whole = _timed(steps=3 if effort.quick else 2 + 2 * effort.repeats)
    return [Result("B9", "outside of computing", "s", outside, "a cached step", whole, "limit", 1 / SHARE)]


def _timed(steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each step after the first epoch: seconds outside of computing, and all of them."""
    models = workload.models()
    clock = _Clock()
    source = workload.data(models.tokenizer, workload.rows(models.tokenizer, ROWS))
    settings = {
        "batch": workload.ROWS,
        "budget.steps": steps,
        "checkpoint.every": steps,
        "checkpoint.best_by": "perplexity",
    }
    stage = recipe_io.load("kd", settings, methods=METHODS).stage
    with TemporaryDirectory() as folder:
        stream = workload.stream(source, caches.cached(FORM, models, Path(folder) / "cache"), caches.SIGNALS[FORM])
        timed = replace(
            stream,
            source=_Timed(stream.source, "next", clock.to_the_first_forward),
            teacher=_Timed(stream.teacher, "signal", clock.reading),
        )
        job = Job(
            stage=stage, run=Run(Path(folder)), runtime=start("cpu", "float32"), student=models.student,
            teachers=[LocalTeacher(models.teacher)], tokenizer=models.tokenizer, streams=[timed],
            validate=lambda: {"perplexity": 1.0}, examples_per_epoch=ROWS, seed=1, stop=StopRequest(), label="B9",
        )  # fmt: skip
        hook = register_optimizer_step_post_hook(lambda *_: clock.updated())
        try:
            fit(job)
        finally:
            hook.remove()
    first_epoch = ROWS // workload.ROWS - 1  # its first step is not on the clock
    return tuple(clock.outside[first_epoch:]), tuple(clock.whole[first_epoch:])


class _Clock:
    """Times between updates, and what of them was no computing. The first step has none before it and is left out."""

    def __init__(self) -> None:
        self.outside: list[float] = []
        self.whole: list[float] = []
        self._last: float | None = None
        self._spent = 0.0

    def updated(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.outside.append(self._spent)
            self.whole.append(now - self._last)
        self._last, self._spent = now, 0.0

    def to_the_first_forward(self, _: float, ended: float) -> None:
        """A batch was drawn: all since the update was no computing."""
        self._spent += ended - (self._last if self._last is not None else ended)

    def reading(self, begun: float, ended: float) -> None:
        self._spent += ended - begun


class _Timed:
    """Anything, one of whose methods is timed."""

    def __init__(self, of: Any, method: str, told: Callable[[float, float], None]):
        self._of, self._method, self._told = of, method, told

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        return self._call(found) if name == self._method else found

    def _call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            given = method(*arguments)
            self._told(begun, time.perf_counter())
            return given

        return timed
