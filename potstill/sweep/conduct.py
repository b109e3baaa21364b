"""One cell's run, from wherever it is to its end, and how that went."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from potstill import api, recipe_io
from potstill import run as runs
from potstill.errors import PotstillError, Stopped
from potstill.recipe import Recipe
from potstill.run import Run
from potstill.sweep.folder import Status

PATIENCE_S = 60.0  # for the process of a killed sweep to finish its step, save and let go
TRACE = "error.txt"


@dataclass(frozen=True)
class Outcome:
    """How a cell's run ended: done; failed, with a cause; or stopped by a signal, with everything saved."""

    status: Status
    error: str | None = None
    exit_code: int | None = None  # of a stopped one


def prepare(run: Run, recipe: Recipe) -> None:
    """Make the run's folder, with its recipe; one in which training has begun is left as it is."""
    if not (run.recipe_file.is_file() and runs.has_trained(run.path)):
        runs.write_text(run.recipe_file, recipe_io.dump(recipe))


def conduct(folder: Path, *, allow_remote_code: bool) -> Outcome:
    """Run a prepared run folder to its end: from its first step, or on from its newest checkpoint.

    Whatever it fails of is told, and the traceback of what no message explains is kept in ``error.txt``, so that one
    cell stops no other.
    """
    trace = folder / TRACE
    try:
        _wait_for(folder)
        api.resume(Run(folder), allow_remote_code=allow_remote_code)
    except Stopped as stopped:
        return Outcome(Status.begun, stopped.cause, stopped.exit_code)
    except PotstillError as error:
        fix = f" ({error.fix})" if error.fix else ""
        return Outcome(Status.failed, " ".join(f"{error.cause}{fix}".split()))
    except Exception as error:
        runs.write_text(trace, traceback.format_exc())
        said = " ".join(str(error).split())[:300]
        return Outcome(Status.failed, f"{type(error).__name__}: {said} (see {trace})")
    finally:
        gc.collect()
    trace.unlink(missing_ok=True)
    return Outcome(Status.done)


def _wait_for(folder: Path) -> None:
    """Wait a while for a run that another process still holds; the run itself refuses if it goes on."""
    try:
        with FileLock(folder / runs.LOCK, timeout=PATIENCE_S):
            pass
    except Timeout:
        return
