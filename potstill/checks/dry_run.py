"""A recipe tried on this machine, be its models and data here or not: every stage, whole, with one step of training.

Each model is counted at full size from its config, without memory. Then models of the same make, with random weights,
the real width and vocabulary and two layers in each stack, go the ordinary way through every stage, on a few rows, in a
folder that is removed. Nothing is downloaded, and nothing is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from potstill import recipe as schema
from potstill import stage, stages
from potstill.checks.dry.models import layers_of_stacks
from potstill.checks.dry.naming import of_stage
from potstill.checks.dry.sizes import Pair, count, memory
from potstill.checks.dry.world import World, build
from potstill.checks.scratch import scratch
from potstill.errors import ConfigError, Stopped
from potstill.run import Run, remove_folder
from potstill.training.signals import listening


@dataclass(frozen=True)
class Sized:
    """A model of a stage at full size. ``layers`` are by stack."""

    role: str
    name: str
    parameters: int
    layers: dict[str, int]


@dataclass(frozen=True)
class Tried:
    """A stage that was tried.

    ``memory`` is in bytes at full size, by what takes it; ``stood_in`` says what was not as the recipe has it and what
    took its place; ``terms`` are the values of the loss's terms at the step, by their names in the metrics.
    """

    stage: str
    method: str
    models: tuple[Sized, ...]
    memory: dict[str, int]
    stood_in: tuple[tuple[str, str], ...]
    loss: float
    terms: dict[str, float]
    seconds: float


def dry_run(recipe: schema.Recipe, conclude: Callable[[Run], None], *, allow_remote_code: bool = False) -> list[Tried]:
    """Try every stage of a recipe.

    Args:
        recipe: what would be done.
        conclude: called with each run when it is finished, as ``stages.parts`` does.
        allow_remote_code: let models run Python that comes with them.
    Returns: the stages, in order.
    Raises: ModelError for a model that is not here and of no known architecture; DataError, ConfigError and the others
        as training does, naming the stage; Stopped after a signal.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a dry run is of one process", "leave torchrun out")
    with listening(), scratch("dry-run") as folder:
        try:
            world = build(recipe, folder, allow_remote_code)
            return _tried(world, Run(folder / "run"), recipe.dtype, conclude, allow_remote_code)
        except Stopped as stopped:
            cause = "the dry run was stopped, and nothing of it is kept"
            raise Stopped(cause, "start it again", exit_code=stopped.exit_code) from None


def _tried(world: World, run: Run, dtype: str, conclude: Callable[[Run], None], allow_remote_code: bool) -> list[Tried]:
    def concluding(finished: Run) -> None:
        conclude(finished)
        remove_folder(finished.checkpoints)  # a later stage takes the student, and models are large

    run.path.mkdir()
    tried = []
    for part, pair in zip(stages.parts(world.recipe, run, concluding), world.pairs, strict=True):
        begun = time.perf_counter()
        with of_stage(part.recipe.stage.name, world.called):
            stage.run(part.recipe, part.run, allow_remote_code=allow_remote_code)
        seconds = time.perf_counter() - begun
        losses = _losses(part.run)
        tried.append(
            Tried(
                stage=part.recipe.stage.name,
                method=part.recipe.method,
                models=tuple(_sized(pair)),
                memory=memory(pair, dtype),
                stood_in=tuple(world.stood_in.get(part.recipe.stage.name, ())),
                loss=losses.pop("loss"),
                terms=losses,
                seconds=round(seconds, 2),
            )
        )
    return tried


def _losses(run: Run) -> dict[str, float]:
    """What the step's loss was, and its terms."""
    line = next(line for line in run.metrics() if "train/loss" in line)
    return {key.removeprefix("train/"): value for key, value in line.items() if key.startswith("train/")}


def _sized(pair: Pair) -> Iterator[Sized]:
    for role, name in pair.names.items():
        model = pair.model(role)
        yield Sized(role, name, count(model), layers_of_stacks(model))
