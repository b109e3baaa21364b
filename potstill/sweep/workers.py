"""Cells one after another in this process, or side by side in processes of their own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from potstill.run import make_folder
from potstill.sweep.conduct import Outcome, conduct
from potstill.sweep.folder import Status


@dataclass(frozen=True)
class Ended:
    """A run folder's run has ended. ``seconds``: that it took."""

    run: Path
    outcome: Outcome
    seconds: float


Event = Path | Ended  # a run begins, or has ended


def in_turn(
    runs: Sequence[Path], begin: Callable[[Path], None], *, allow_remote_code: bool
) -> Generator[Event, None, None]:
    """Run folders one after another in this process: models and imports are paid for once.

    Args:
        begin: makes a run's folder ready, right before it runs.
    """
    for run in runs:
        begin(run)
        yield run
        begun = time.perf_counter()
        yield Ended(run, conduct(run, allow_remote_code=allow_remote_code), time.perf_counter() - begun)


def side_by_side(
    runs: Sequence[Path],
    begin: Callable[[Path], None],
    jobs: int,
    log: Callable[[int], Path],
    *,
    allow_remote_code: bool,
) -> Generator[Event, None, None]:
    """Run folders in ``jobs`` processes, each taking the next one when it is free.

    Closing the generator, or an exception that comes while it waits, has the processes stop as by SIGTERM, and waits
    until they have saved.

    Args:
        begin: makes a run's folder ready, right before it runs; called by a thread.
        log: the file for what a worker prints, by its number from 1.
    """
    events: queue.Queue[Event | BaseException | None] = queue.Queue()
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for run in runs:
        waiting.put(run)
    workers = [Worker(log(at + 1), jobs, allow_remote_code) for at in range(min(jobs, len(runs)))]
    threads = [threading.Thread(target=_serve, args=(one, waiting, events, begin), daemon=True) for one in workers]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            event = events.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
    finally:
        while not waiting.empty():
            with suppress(queue.Empty):
                waiting.get_nowait()
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.wait()


class Worker:
    """A worker process, started when it is first needed and again after it was killed."""

    def __init__(self, log: Path, jobs: int, allow_remote_code: bool):
        self.log = log
        self._jobs = jobs
        self._allow_remote_code = allow_remote_code
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._starting = threading.Lock()

    def run(self, folder: Path) -> Outcome:
        """Have a run folder run, and wait for it."""
        process = self._started()
        if process is None:
            return Outcome(Status.begun, "stopped before it began", exit_code=75)
        assert process.stdin
        assert process.stdout
        order = {"folder": str(folder), "allow_remote_code": self._allow_remote_code}
        with suppress(BrokenPipeError, ValueError):  # it is gone, or its input was closed by ``stop``
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        if line := process.stdout.readline():
            told = json.loads(line)
            return Outcome(Status(told["status"]), told["error"], told["exit_code"])
        code = process.wait()
        self._process = None
        if self._stopping.is_set():
            return Outcome(Status.begun, "stopped", exit_code=75)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Outcome(Status.failed, f"its process {how} (see the end of {self.log})")

    def stop(self) -> None:
        """End its input: an idle process ends, one at work stops as by SIGTERM, with everything saved."""
        with self._starting:
            self._stopping.set()
            if self._process and self._process.stdin:
                with suppress(BrokenPipeError):
                    self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the process has ended."""
        if self._process:
            self._process.wait()

    def _started(self) -> subprocess.Popen[str] | None:
        with self._starting:
            if self._process is None and not self._stopping.is_set():
                self._process = self._start()
            return None if self._stopping.is_set() else self._process

    def _start(self) -> subprocess.Popen[str]:
        """A process of a session of its own: Ctrl-C reaches the sweep alone, which then asks its workers to stop."""
        make_folder(self.log.parent)
        threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        with open(self.log, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "potstill.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"} | os.environ,
            )


def _serve(
    worker: Worker,
    waiting: queue.SimpleQueue[Path],
    events: queue.Queue[Event | BaseException | None],
    begin: Callable[[Path], None],
) -> None:
    """Give a worker one run after another until there are none, and tell what happens."""
    try:
        while True:
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                break
            begin(run)
            events.put(run)
            begun = time.perf_counter()
            outcome = worker.run(run)
            events.put(Ended(run, outcome, time.perf_counter() - begun))
            if outcome.exit_code is not None:
                break
    except BaseException as error:
        events.put(error)
    events.put(None)
