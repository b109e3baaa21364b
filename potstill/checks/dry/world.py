"""The small world in which a recipe is tried: what is here of it, and what stands in for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from potstill import assembly, stages
from potstill import recipe as schema
from potstill.checks.dry import data
from potstill.checks.dry.models import LAYERS, Blueprint, Key, blueprint, named_models, save_small, small_config
from potstill.checks.dry.naming import of_stage
from potstill.checks.dry.shrinking import narrowed, shrunken
from potstill.checks.dry.sizes import Pair, memory, pairs, told_of
from potstill.checks.dry.tokenizers import Chosen, tokenizers_of
from potstill.errors import ConfigError
from potstill.models.architectures import built
from potstill.models.devices import device_named

MOST_BYTES = int(5.4 * 2**30)  # of a stage's models, gradients and optimizer: activations are little beside them
NARROWER = (1, 2, 4, 8, 16)  # what widths are divided by: the first with which all of it fits, or the last
StoodIn = dict[str, list[tuple[str, str]]]  # by stage: what is not as the recipe has it, and what takes its place


@dataclass(frozen=True)
class World:
    """What is tried: a smaller ``recipe``. ``pairs`` are the models of its stages at full size, without weights, and
    ``called`` is what the recipe calls each folder."""

    recipe: schema.Recipe
    pairs: tuple[Pair, ...]
    stood_in: StoodIn
    called: dict[str, str]


@dataclass(frozen=True)
class Store:
    """Rows and text for the stages: theirs, or files in ``folder``. ``tokenizers`` are by stage."""

    folder: Path
    tokenizers: Mapping[str, Chosen]
    stood_in: StoodIn = field(default_factory=dict)

    def rows(self, stage: schema.Stage) -> schema.Data:
        with of_stage(stage.name):
            return data.rows_for(
                stage, self.folder, own_tokenizer=self.tokenizers[stage.name].own, say=partial(self.note, stage)
            )

    def text(self, stage: schema.Stage, source: schema.DatasetSource) -> schema.DatasetSource:
        return data.text_for(source, self.tokenizers[stage.name], self.folder, say=partial(self.note, stage))

    def note(self, stage: schema.Stage, what: str, by: str) -> None:
        """Remember what stands in for what."""
        self.stood_in.setdefault(stage.name, []).append((what, by))


def build(recipe: schema.Recipe, folder: Path, allow_remote_code: bool) -> World:
    """Write the small models and the rows that stand in for others, and shrink the recipe to them.

    Args:
        folder: where all of it is written. The others: as for ``dry_run``.
    Raises: ModelError, DataError, naming the stage.
    """
    prints = _blueprints(recipe, allow_remote_code)
    full = tuple(pairs(recipe, {key: one.model for key, one in prints.items()}))
    chat = any("chat" in (stage.data.template, stage.data.format) for stage in recipe.stages)
    tokenizers = tokenizers_of(prints.values(), chat=chat)
    of_stages = {
        alone.stage.name: tokenizers[assembly.source_of(alone.stage)[0]] for alone in stages.beforehand(recipe)
    }

    store = Store(folder, of_stages)
    places = {key: folder / f"model-{at}" for at, key in enumerate(prints)}
    small = shrunken(recipe, places, full, store.rows, store.text)
    configs, narrower = _fitting(small, prints, places)
    for at, (key, one) in enumerate(prints.items()):
        save_small(one, configs[key], tokenizers[one.name].tokenizer, places[key], seed=recipe.seed + at)
    for stage in recipe.stages:
        for what, by in _of_models(stage, prints, tokenizers, narrower):
            store.note(stage, what, by)
    small = _placed(narrowed(small, narrower), recipe, store)
    return World(small, full, store.stood_in, {str(place): key[0] for key, place in places.items()})


def _blueprints(recipe: schema.Recipe, allow_remote_code: bool) -> dict[Key, Blueprint]:
    prints: dict[Key, Blueprint] = {}
    for stage in recipe.stages:
        for key in named_models(stage):
            with of_stage(stage.name):
                prints[key] = prints.get(key) or blueprint(key, allow_remote_code)
    return prints


def _fitting(
    small: schema.Recipe, prints: Mapping[Key, Blueprint], places: Mapping[Key, Path]
) -> tuple[dict[Key, Any], int]:
    """The configs of the small models, and what their widths are divided by: no more than it takes to fit."""
    for narrower in NARROWER:
        configs = {key: small_config(one.model, narrower) for key, one in prints.items()}
        models: dict[Key, Any] = {
            (str(places[key]), None): built(config, device="meta") for key, config in configs.items()
        }
        tried = pairs(narrowed(small, narrower), models)
        if max(_peak(memory(pair, small.dtype)) for pair in tried) <= MOST_BYTES:
            break
    return configs, narrower


def _peak(sizes: Mapping[str, int]) -> int:
    """Bytes at the worst moment: in a step, or when a student is written and read again beside itself."""
    return sum(sizes.values()) + max(0, sizes["student"] - sizes["optimizer"])


def _of_models(
    stage: schema.Stage, prints: Mapping[Key, Blueprint], tokenizers: Mapping[str, Chosen], narrower: int
) -> list[tuple[str, str]]:
    """What stands in for the models that a stage names."""
    found = []
    for key in named_models(stage):
        one = prints[key]
        layers = " and ".join(f"{min(LAYERS, count)} of {count} {stack}" for stack, count in one.layers.items())
        width = f", at 1/{narrower} of the width" if narrower > 1 else ""
        found.append((f"weights of {one.name}", f"random ones: {layers} layers{width}"))
        if one.folder is None:
            found.append((f"config of {one.name}", "the table of known architectures"))
        if not tokenizers[one.name].own:
            found.append((f"tokenizer of {one.name}", tokenizers[one.name].what))
    if held := told_of(stage):
        found.append((f"teacher with {held}", "the same beside the student, in its precision"))
    return found


def _placed(small: schema.Recipe, recipe: schema.Recipe, store: Store) -> schema.Recipe:
    """The recipe on a device that is here; what vllm would write is written by potstill's own sampler."""
    for stage in recipe.stages:
        rollouts = filter(None, (schema.rollout_of(stream.source) for stream in stage.streams))
        if any(rollout.engine == "vllm" for rollout in rollouts):
            store.note(stage, "engine vllm", "engine local")
    try:
        device_named(recipe.device)
    except ConfigError:
        for stage in recipe.stages:
            store.note(stage, f"device {recipe.device}", "cpu")
        return small.model_copy(update={"device": "cpu"})
    return small
