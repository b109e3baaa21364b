"""What a recipe will take on this machine: time, memory, disk and operations, from a few steps that are measured.

Every stage is set up as a run sets it up, from its own models and rows, in a folder that is removed. Then a few steps
are taken, one batch is measured, some tokens are written and one checkpoint is saved, each by the code that a run has
for it. How often a run does what is in the recipe and its rows, and the rest is arithmetic.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

from potstill import recipe as schema
from potstill import stages
from potstill.bench import say
from potstill.checks.dry.naming import of_stage
from potstill.checks.planning.measured import measure
from potstill.checks.planning.predicted import predicted
from potstill.checks.planning.results import Plan, StagePlan
from potstill.checks.scratch import scratch
from potstill.errors import ConfigError, Stopped
from potstill.run import Run, remove_folder
from potstill.stages import Part
from potstill.training.signals import StopRequest, listening


def plan(recipe: schema.Recipe, *, allow_remote_code: bool = False) -> Plan:
    """Plan every stage of a recipe, whose models and rows are on this machine.

    Args:
        recipe: what would be done. allow_remote_code: let models run Python that comes with them.
    Raises: as training does, naming the stage where there are several; ConfigError for several processes; Stopped
        after a signal.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a plan is of one process", "leave torchrun out")
    # A stage that another run has made would be taken over; what it takes is asked all the same.
    anew = recipe.model_copy(update={"reuse_stages": False})
    with listening() as stop, scratch("plan") as folder:
        run = Run(folder / "run")
        run.path.mkdir()
        try:
            found: list[StagePlan] = []
            for part in stages.parts(anew, run, lambda _: None):
                with of_stage(part.recipe.stage.name) if len(recipe.stages) > 1 else nullcontext():
                    found.append(_stage(part, stop, allow_remote_code, is_first=not found))
            return Plan(tuple(found))
        except Stopped as stopped:
            cause = "the plan was stopped, and nothing of it is kept"
            raise Stopped(cause, "start it again", exit_code=stopped.exit_code) from None


def _stage(part: Part, stop: StopRequest, allow_remote_code: bool, *, is_first: bool) -> StagePlan:
    """One stage, whose student and operations are left in its folder for the stages after it."""
    begun = time.perf_counter()
    measured = measure(part.recipe, part.run, stop, allow_remote_code)
    found = predicted(measured, time.perf_counter() - begun, is_first=is_first)
    remove_folder(part.run.path / "probe")
    part.run.write("cost", {"flops": found.flops})
    say(f"planned {found.stage} in {found.probe_seconds:.0f} s")
    return found
