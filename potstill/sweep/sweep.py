"""Runs what is left of a grid's cells, says how far it is, and writes the table, the figure and the page."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from potstill import run as runs
from potstill.errors import ConfigError, PotstillError, Stopped
from potstill.recipe import Recipe
from potstill.reporting.formats import duration, number, significant
from potstill.run import Run
from potstill.sweep import workers
from potstill.sweep.cells import Cell, Plan
from potstill.sweep.conduct import prepare
from potstill.sweep.folder import STUDENT, Folder, Keep, Status, prune, status_of
from potstill.sweep.results import write_results
from potstill.sweep.table import Table, tabulate
from potstill.sweep.workers import Ended
from potstill.training import runtime as runtimes
from potstill.training.signals import listening


@dataclass(frozen=True)
class Options:
    """How a sweep is run. ``jobs``: processes. ``retry``: whether cells that failed before are run again."""

    jobs: int = 1
    keep: Keep = Keep.student
    retry: bool = False
    allow_remote_code: bool = False


def sweep(plan: Plan, folder: Folder, options: Options) -> Table:
    """Run the cells that are left, and write the results.

    Args:
        plan: the grid and its cells.
        folder: where; it need not be there yet.
    Returns: the table, of all cells that are done; cells that failed are in it as such.
    Raises: ConfigError where another process works on the sweep; Stopped after a signal, with everything saved and
        the results so far written.
    """
    if "RANK" in os.environ:
        raise ConfigError("a sweep is one process that starts others", "run it without torchrun, with --jobs N")
    with folder.alone(), listening():
        runs.write_text(folder.grid_file, plan.grid.file.read_text(encoding="utf-8-sig"))
        try:
            _run(plan, folder, options)
        except Stopped as stopped:
            table = tabulate(plan, folder)
            write_results(table, plan, folder)
            raise _told(stopped, table) from None
        table = tabulate(plan, folder)
        write_results(table, plan, folder)
    return table


def _told(stopped: Stopped, table: Table) -> Stopped:
    """The same stop, with how far the sweep is and how it goes on."""
    cells = [cell for row in table.rows for cell in row.cells]
    done, begun = (sum(cell.status is status for cell in cells) for status in (Status.done, Status.begun))
    how_far = f"{done} of {len(cells)} cells are done{f', {begun} begun' if begun else ''}"
    # Its worker processes have saved, whatever this one was doing.
    cause = stopped.cause.replace("stopped outside training", "stopped")
    return Stopped(f"{cause}; {how_far}", "the same command goes on with what is left", exit_code=stopped.exit_code)


def left(plan: Plan, folder: Folder, *, retry: bool = False) -> list[Cell]:
    """The cells that a sweep would run now: half-done ones first."""
    records = folder.records()
    wanted = (Status.begun, Status.left, *([Status.failed] if retry else []))
    found = [cell for cell in plan.cells if status_of(cell, records) in wanted]
    return sorted(found, key=lambda cell: wanted.index(status_of(cell, records)))


def check_failed(table: Table) -> None:
    """Raises: PotstillError where cells have failed, with each cause once and the first cell that has it."""
    cells = [cell for row in table.rows for cell in row.cells]
    failed = [cell for cell in cells if cell.status is Status.failed]
    causes: dict[str, list[str]] = {}
    for cell in failed:
        causes.setdefault(cell.error or "unknown", []).append(cell.name)
    if failed:
        told = [f"{names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {why}" for why, names in causes.items()]
        raise PotstillError(
            "\n  ".join([f"{len(failed)} of {len(cells)} cells failed", *told]),
            "put right what they say; then the same command with --retry runs them again",
        )


# --- Running ----------------------------------------------------------------------------------------------------------


def _run(plan: Plan, folder: Folder, options: Options) -> None:
    records = folder.records()
    for cell in plan.cells:
        if status_of(cell, records) is Status.done:
            prune(folder.run(cell, records[cell.key]), options.keep)  # it may have been killed before it was
    todo = left(plan, folder, retry=options.retry)
    of_run = {folder.run(cell, records.get(cell.key)).path: cell for cell in todo}
    dtypes = _dtypes(todo, [record.dtype for record in records.values()])
    progress = Progress(plan, folder, todo, options.jobs)

    def begin(path: Path) -> None:
        prepare(Run(path), _settled(of_run[path].recipe, dtypes))

    with closing(_events(list(of_run), folder, options, begin)) as events:
        for event in events:
            if not isinstance(event, Ended):
                cell = of_run[event]
                folder.note(cell, Run(event), Status.begun, dtype=_settled(cell.recipe, dtypes).dtype)
                progress.begun(cell)
                continue
            _note_end(plan, folder, of_run[event.run], event, progress)
            if event.outcome.status is Status.done:
                prune(Run(event.run), options.keep)


def _note_end(plan: Plan, folder: Folder, cell: Cell, event: Ended, progress: Progress) -> None:
    """Write down and say how a cell ended. Raises: Stopped where a signal has ended it."""
    run, outcome = Run(event.run), event.outcome
    if outcome.exit_code is not None:
        raise Stopped(outcome.error or "stopped", exit_code=outcome.exit_code)
    figure = number(run.result.read(f"eval/{STUDENT}").get(plan.metric)) if outcome.status is Status.done else None
    seconds = round(event.seconds, 3)
    folder.note(cell, run, outcome.status, metric=plan.metric, figure=figure, seconds=seconds, error=outcome.error)
    progress.ended(event, cell, figure)


def _events(
    paths: Sequence[Path], folder: Folder, options: Options, begin: Callable[[Path], None]
) -> Generator[workers.Event, None, None]:
    """The runs' beginnings and ends."""
    if options.jobs == 1:
        return workers.in_turn(paths, begin, allow_remote_code=options.allow_remote_code)
    return workers.side_by_side(
        paths, begin, options.jobs, folder.log_file, allow_remote_code=options.allow_remote_code
    )


def _dtypes(cells: Sequence[Cell], before: Sequence[str | None]) -> dict[str, str]:
    """What ``dtype: auto`` is on each device, once for all cells: it is measured, and cells are to be alike."""
    devices = {cell.recipe.device for cell in cells if cell.recipe.dtype == "auto"}
    known = next((dtype for dtype in before if dtype), None)
    return {device: known or str(runtimes.start(device, "auto").dtype).removeprefix("torch.") for device in devices}


def _settled(recipe: Recipe, dtypes: Mapping[str, str]) -> Recipe:
    """The recipe without a run name, which is a folder's under runs/, and with its precision settled."""
    dtype = dtypes.get(recipe.device, recipe.dtype) if recipe.dtype == "auto" else recipe.dtype
    return recipe.model_copy(update={"run": None, "dtype": dtype})


# --- What a person watching sees --------------------------------------------------------------------------------------


class Progress:
    """Lines on standard error: which cell, how it went, how long what is left will take at the speed so far."""

    def __init__(self, plan: Plan, folder: Folder, todo: Sequence[Cell], jobs: int):
        records = folder.records()
        done = [record for cell in plan.cells if (record := records.get(cell.key)) and record.status is Status.done]
        self._seconds = [record.seconds for record in done if record.seconds]
        self._total, self._left, self._jobs = len(plan.cells), len(todo), jobs
        self._metric, self._began = plan.metric, time.monotonic()
        _say(f"{len(done)} of {self._total} cells are done, {len(todo)} to run; results in {folder.path}")

    def begun(self, cell: Cell) -> None:
        _say(f"cell {cell.name}: begins")

    def ended(self, event: Ended, cell: Cell, figure: float | None) -> None:
        self._left -= 1
        how = f"failed: {event.outcome.error}"
        if event.outcome.status is Status.done:
            self._seconds.append(event.seconds)
            how = f"done, {self._metric} {significant(figure)}"
        rest = f"{self._left} to run"
        if self._left and self._seconds:
            rest += f", about {duration(self._left * fmean(self._seconds) / self._jobs)}"
        spent = duration(time.monotonic() - self._began)
        _say(f"cell {cell.name}: {how} ({duration(event.seconds)}); {rest}; {spent} so far")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
