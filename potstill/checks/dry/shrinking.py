"""A recipe as it is, but for how much of it there is: small models, a few rows, one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from potstill import recipe as schema
from potstill.checks.dry.models import LAYERS, Key, layers_of_stacks
from potstill.checks.dry.sizes import Pair
from potstill.features.layers import layer_pairs
from potstill.models.layout import DECODER, ENCODER
from potstill.recipe import Data, DatasetSource

BATCH, NEW_TOKENS, MEASURED = 2, 8, 2  # sequences; tokens of what is written; rows that are measured
Layers: TypeAlias = Mapping[str, int]  # of each stack
Text: TypeAlias = Callable[[schema.Stage, DatasetSource], DatasetSource]


def shrunken(
    recipe: schema.Recipe,
    places: Mapping[Key, Path],
    full: Sequence[Pair],
    rows: Callable[[schema.Stage], Data],
    text: Text,
) -> schema.Recipe:
    """The recipe to be tried.

    Args:
        places: the folder of each model's small one.
        full: the models of each stage at full size.
        rows: gives the data of a stage. text: gives the plain text of a stream.
    """
    stages = []
    for stage, pair in zip(recipe.stages, full, strict=True):
        less = {
            **_models(pair, {key: str(place) for key, place in places.items()}),
            "data": rows(stage),
            "streams": tuple(_stream(pair, stream, text) for stream in stage.streams),
            "batch": schema.Batching(size=min(BATCH, stage.batch.size), micro_size=_micro(stage.batch)),
            "budget": schema.Budget(steps=1),
            "gate": False,  # random weights are no better than others
            "evaluation": _evaluation(stage.evaluation),
        }
        stages.append(stage.model_copy(update=less))
    return recipe.model_copy(update={"stages": tuple(stages), "run": None})


def narrowed(recipe: schema.Recipe, narrower: int) -> schema.Recipe:
    """The recipe with the widths of its cut students divided as those of its models are; heads keep their number."""

    def less(student: schema.Student) -> schema.Student:
        if not isinstance(student, schema.PrunedStudent):
            return student
        widths = {name: getattr(student, name) for name in ("keep_hidden", "keep_mlp")}
        return student.model_copy(update={name: width and max(1, width // narrower) for name, width in widths.items()})

    stages = tuple(stage.model_copy(update={"student": less(stage.student)}) for stage in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def _micro(batch: schema.Batching) -> Any:
    return batch.micro_size if batch.micro_size == "auto" else min(BATCH, batch.micro_size)


def _models(pair: Pair, places: Mapping[Key, str]) -> dict[str, Any]:
    stage = pair.stage
    found: dict[str, Any] = {}
    small = {name: _teacher(teacher, places) for name, teacher in stage.all_teachers.items()}
    found |= {"teacher": small.pop(None, None), "teachers": small}
    match stage.student:
        case schema.PretrainedStudent() | schema.FreshStudent():
            folder = places[stage.student.model, stage.student.revision]
            found["student"] = stage.student.model_copy(update={"model": folder, "revision": None})
        case schema.PrunedStudent(model=name):
            again = name is None and isinstance(stage.teacher, schema.StageTeacher)
            of, kept = layers_of_stacks(pair.source), layers_of_stacks(pair.student)
            less = _kept(stage.student, of, kept, again=again)
            found["student"] = stage.student.model_copy(update={"model": name and places[name, None], **less})
    if stage.adapter:
        few = stage.adapter.model_copy(update={"rank": 1})  # no wider than the narrowest of the small layers
        found["student"] = found.get("student", stage.student).model_copy(update={"adapter": few})
    return found


def _teacher(teacher: schema.AnyTeacher, places: Mapping[Key, str]) -> schema.AnyTeacher:
    """The teacher as it is tried: a small one, held plainly."""
    plain = schema.Holding().held
    match teacher:
        case schema.Teacher(model=name, revision=revision):
            return teacher.model_copy(update={"model": places[name, revision], "revision": None} | plain)
        case schema.StageTeacher():
            return teacher.model_copy(update=plain)
    return teacher


def _kept(student: schema.PrunedStudent, of: Layers, kept: Layers, *, again: bool) -> dict[str, Any]:
    """What is cut at full size is cut here too: to one layer, of two. ``again``: what an earlier stage may have cut."""
    found: dict[str, Any] = {"keep_layers": _few(student.keep_layers, of[DECODER], kept[DECODER], again)}
    if student.keep_encoder_layers is not None:
        found["keep_encoder_layers"] = _few(student.keep_encoder_layers, of[ENCODER], kept[ENCODER], again)
    return found


def _few(setting: int | tuple[int, ...], of: int, kept: int, again: bool) -> int | tuple[int, ...]:
    few = min(LAYERS, of) if kept == of and not again else 1
    return few if isinstance(setting, int) else tuple(range(few))


def _stream(pair: Pair, stream: schema.Stream, text: Text) -> schema.Stream:
    source: Any = stream.source
    stage = pair.stage
    match source:
        case DatasetSource():
            source = text(stage, source)
        case schema.RolloutSource():
            source = _rollout(source)
        case _:
            source = source.model_copy(update={"rollout": _rollout(source.rollout)})
    return stream.model_copy(update={"source": source, "terms": tuple(_term(pair, stream, t) for t in stream.terms)})


def _term(pair: Pair, stream: schema.Stream, term: schema.Term) -> schema.Term:
    """A term that looks inside is tried at the last layers. Raises: ConfigError for layers that are not there."""
    spec = term.objective
    if not isinstance(spec, schema.FeatureSection):
        return term
    teacher = pair.model("teacher" if stream.teacher is None else f"teacher {stream.teacher}")
    ours, theirs = (layers_of_stacks(model)[DECODER] for model in (pair.student, teacher))
    layer_pairs(spec.layers, ours, theirs, lambda: torch.ones(theirs))
    less: dict[str, Any] = {"layers": schema.LastLayers(count=1)}
    if isinstance(spec, schema.StateSection) and isinstance(spec.channels, schema.SelectedChannels):
        less["channels"] = spec.channels.model_copy(update={"file": None, "rows": MEASURED})  # the file is of the whole
    if isinstance(spec, schema.RelationDivergence):
        less["heads"] = None
    return term.model_copy(update={"objective": spec.model_copy(update=less)})


def _rollout(rollout: schema.RolloutSource) -> schema.RolloutSource:
    """Few tokens, written here; none filtered out, since nothing that random weights write is finished."""
    less = {"max_new_tokens": min(NEW_TOKENS, rollout.max_new_tokens), "engine": "local", "filters": ()}
    return rollout.model_copy(update=less if rollout.policy.name == "teacher" else less | {"filters": rollout.filters})


def _evaluation(asked: schema.Evaluation) -> schema.Evaluation:
    less = {"max_examples": MEASURED, "generate_examples": MEASURED, "batch_size": MEASURED}
    less["max_new_tokens"] = NEW_TOKENS
    return asked.model_copy(update={name: min(most, getattr(asked, name)) for name, most in less.items()})
