"""What the models of a recipe take, stage by stage, counted on models that take nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from potstill import assembly
from potstill import recipe as schema
from potstill.checks.dry.models import Key, named_models
from potstill.checks.dry.naming import of_stage
from potstill.models.architectures import built
from potstill.models.layout import DECODER, ENCODER
from potstill.models.loading import config_of
from potstill.models.pruning import choose_layers, cut_layers
from potstill.models.width import cut_width, first_of

BYTES = {"float32": 4, "auto": 4, "bfloat16": 4, "float64": 8}  # of a student's weight, by what is computed in


@dataclass(frozen=True)
class Pair:
    """The models of a stage, without weights. ``source`` is what the student is made from; ``teacher`` is None where
    none is asked, and ``teachers`` are further ones by name. ``names`` are what the models are called, by role."""

    stage: schema.Stage
    student: Any
    source: Any
    teacher: Any | None
    names: dict[str, str]
    teachers: dict[str, Any] = field(default_factory=dict)

    def model(self, role: str) -> Any:
        """The model of a role in ``names``: student, teacher, or the name of a further teacher."""
        return {"student": self.student, "teacher": self.teacher}.get(role, self.teachers.get(role))


def pairs(recipe: schema.Recipe, models: Mapping[Key, Any]) -> Iterator[Pair]:
    """The student and the teacher of each stage; a student of an earlier stage is what that stage makes.

    Args:
        models: those that the recipe names, on the meta device.
    Raises: ModelError for layers that a model does not have.
    """
    made: dict[str, Any] = {}
    for at, stage in enumerate(recipe.stages):
        before = recipe.stages[at - 1].name if at else ""
        taught = {name: _teacher(one, before, made, models) for name, one in stage.all_teachers.items()}
        teacher = taught.pop(None, None)
        source = _source(stage, before, teacher, made, models)
        with of_stage(stage.name):
            student = _cut(source, stage.student) if isinstance(stage.student, schema.PrunedStudent) else source
        made[stage.name] = student
        further = {f"teacher {name}": model for name, model in taught.items()}
        yield Pair(stage, student, source, teacher, _names(stage, before), further)


def _teacher(asked: schema.AnyTeacher, before: str, made: Mapping[str, Any], models: Mapping[Key, Any]) -> Any:
    if isinstance(asked, schema.StageTeacher):
        return made[before if asked.stage == schema.PREVIOUS else asked.stage]
    return models[asked.model, asked.revision]


def _source(
    stage: schema.Stage, before: str, teacher: Any | None, made: Mapping[str, Any], models: Mapping[Key, Any]
) -> Any:
    match stage.student:
        case schema.PreviousStudent():
            return made[before]
        case schema.PrunedStudent(model=cut):
            return teacher if cut is None else models[cut, None]
        case (
            schema.PretrainedStudent(model=name, revision=revision) | schema.FreshStudent(model=name, revision=revision)
        ):
            return models[name, revision]


def _cut(model: Any, student: schema.PrunedStudent) -> Any:
    """The student as it will be, but for which layers: none of them has weights that could say."""
    kept = choose_layers(model, student.keep_layers, "even", (), keep_encoder=student.keep_encoder_layers)
    encoder = kept[ENCODER].layers if ENCODER in kept else None
    with torch.device("meta"):
        cut = cut_layers(model, kept[DECODER].layers, encoder)
        wanted = assembly.widths_of(student)
        return cut_width(cut, first_of(cut, wanted)) if wanted else cut


def _names(stage: schema.Stage, before: str) -> dict[str, str]:
    """What is cut from which, and which stage's student it is."""
    found: dict[str, str] = {}
    for name, teacher in stage.all_teachers.items():
        role = "teacher" if name is None else f"teacher {name}"
        if isinstance(teacher, schema.StageTeacher):
            found[role] = f"student of {before if teacher.stage == schema.PREVIOUS else teacher.stage}"
        else:
            found[role] = teacher.model
    match stage.student:
        case schema.PreviousStudent():
            found["student"] = f"student of {before}"
        case schema.PrunedStudent(model=cut):
            found["student"] = f"cut from {cut or found['teacher']}"
        case student:
            found["student"] = student.model
    return found


def count(model: Any) -> int:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def memory(pair: Pair, dtype: str) -> dict[str, int]:
    """Bytes of the student's weights, gradients and optimizer state, and of the teachers' weights.

    Args:
        dtype: the recipe's. With bfloat16 a student stays in float32 and a teacher does not; auto is taken for float32.
    """
    each, stage = BYTES[dtype], pair.stage
    embeddings = (pair.student.get_input_embeddings().weight, pair.student.get_output_embeddings().weight)
    frozen = {id(weight) for weight in embeddings} if stage.student.freeze_embeddings else set()
    trained = [p for p in pair.student.parameters() if id(p) not in frozen]
    sizes = {
        "student": each * count(pair.student),
        "gradients": each * sum(p.numel() for p in trained),
        "optimizer": each * sum(_state(p.shape, stage.optimizer.name) for p in trained),
    }
    teachers = {id(model): model for model in (pair.teacher, *pair.teachers.values()) if model is not None}
    if teachers:  # one that is named twice is in memory once
        sizes["teacher"] = (2 if dtype == "bfloat16" else each) * sum(map(count, teachers.values()))
    return sizes


def memory_of(recipe: schema.Recipe, allow_remote_code: bool) -> dict[str, int]:
    """``memory`` of a recipe of one stage, from the configs of its models alone. Raises: ModelError."""
    named = named_models(recipe.stage)
    configs = {key: config_of(key[0], revision=key[1], allow_remote_code=allow_remote_code) for key in named}
    models = {key: built(config, device="meta") for key, config in configs.items()}
    (pair,) = pairs(recipe, models)
    return memory(pair, recipe.dtype)


def _state(shape: torch.Size, optimizer: str) -> int:
    """Numbers that an optimizer keeps of a parameter: AdamW two of each, Adafactor a row and a column of a matrix."""
    if optimizer == "adamw":
        return 2 * shape.numel()
    return shape.numel() if len(shape) < 2 else shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel()
