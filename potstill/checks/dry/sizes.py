"""What the models of a recipe take, stage by stage, counted on models that take nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from potstill import assembly
from potstill import recipe as schema
from potstill.checks.dry.models import Key, named_models
from potstill.checks.dry.naming import of_stage
from potstill.models import adapters
from potstill.models.architectures import built
from potstill.models.layout import DECODER, ENCODER
from potstill.models.loading import config_of
from potstill.models.pruning import choose_layers, cut_layers
from potstill.models.width import cut_width, first_of

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int8_dynamic": 8, "llm_int8": 8, "nf4": 4}  # scales are left out
BYTES = {"float32": 4, "auto": 4, "bfloat16": 4, "float64": 8}  # of a student's weight, by what is computed in
# Of a weight in fewer bits, with a scale for each 64 of them, itself in 8 bits, or for each row.
BYTES_OF_QUANTISED = {"none": 0.0, "nf4": 0.516, "int8": 1.0}


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
    Raises: ModelError for layers that a model does not have, or that are narrower than an adapter's rank.
    """
    made: dict[str, Any] = {}
    for at, stage in enumerate(recipe.stages):
        before = recipe.stages[at - 1].name if at else ""
        taught = {name: _teacher(stage, one, before, made, models) for name, one in stage.all_teachers.items()}
        teacher = taught.pop(None, None)
        source = _source(stage, before, teacher, made, models)
        with of_stage(stage.name):
            student = _cut(source, stage.student) if isinstance(stage.student, schema.PrunedStudent) else source
            if stage.adapter:
                adapters.chosen_layers(student, stage.adapter)
        made[stage.name] = student
        further = {f"teacher {name}": model for name, model in taught.items()}
        yield Pair(stage, student, source, teacher, _names(stage, before), further)


def _teacher(
    stage: schema.Stage, asked: schema.AnyTeacher, before: str, made: Mapping[str, Any], models: Mapping[Key, Any]
) -> Any:
    match asked:
        case schema.StageTeacher(stage=name):
            return made[before if name == schema.PREVIOUS else name]
        case schema.Teacher(model=name, revision=revision):
            return models[name, revision]
    return _source(stage, before, None, made, models)


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
        match teacher:
            case schema.StageTeacher(stage=asked):
                found[role] = f"student of {before if asked == schema.PREVIOUS else asked}"
            case schema.Teacher(model=model):
                found[role] = model
            case schema.BaseTeacher():
                found[role] = "the student without its adapter"
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
    """Bytes of the student's weights, gradients and optimizer state, and of the teachers' weights as they are held,
    wherever that is.

    Args:
        dtype: the recipe's. With bfloat16 a student stays in float32 and a teacher does not; auto is taken for float32.
    """
    each, stage = BYTES[dtype], pair.stage
    if stage.adapter:
        return _memory_of_adapter(pair, stage.adapter, dtype)
    embeddings = (pair.student.get_input_embeddings().weight, pair.student.get_output_embeddings().weight)
    frozen = {id(weight) for weight in embeddings} if stage.student.freeze_embeddings else set()
    trained = [p for p in pair.student.parameters() if id(p) not in frozen]
    sizes = {
        "student": each * count(pair.student),
        "gradients": each * sum(p.numel() for p in trained),
        "optimizer": each * sum(_state(p.shape, stage.optimizer.name) for p in trained),
    }
    return sizes | _memory_of_teacher(pair, dtype)


def _memory_of_teacher(pair: Pair, dtype: str) -> dict[str, int]:
    """Of those with weights of their own; one that is named twice is in memory once."""
    each = 2 if dtype == "bfloat16" else BYTES[dtype]
    models = {None: pair.teacher} | {name.removeprefix("teacher "): model for name, model in pair.teachers.items()}
    sizes: dict[tuple[int, str], int] = {}
    for name, model in models.items():
        asked = pair.stage.all_teachers.get(name) or schema.Holding()
        if model is not None and not isinstance(asked, schema.BaseTeacher):
            sizes[id(model), str(asked.held)] = _held(model, asked, each)
    return {"teacher": sum(sizes.values())} if sizes else {}


def _held(model: Any, held: schema.Holding, each: int) -> int:
    """Bytes of a teacher's weights: ``each`` of a weight, unless it is held in another precision or in fewer bits."""
    each = each if held.dtype == "auto" else BITS[held.dtype] // 8
    head, bits = model.get_output_embeddings(), BITS.get(held.quantise)
    matrices = (one for one in model.modules() if one is not head and isinstance(one, nn.Linear | Conv1D))
    fewer = 0 if bits is None else sum(one.weight.numel() for one in matrices)
    return each * (count(model) - fewer) + fewer * (bits or 0) // 8


def told_of(stage: schema.Stage) -> str:
    """Where a teacher is held and in what, where that is not beside its student; the student's device has a copy of
    its head where it is on another. Empty where nothing is set."""
    if stage.teacher is None or isinstance(stage.teacher, schema.BaseTeacher) or stage.teacher.is_plain:
        return ""
    held = {name: value for name, value in stage.teacher.held.items() if value not in (None, "auto", "none")}
    return ", ".join(f"{name} {value}" for name, value in held.items())


def _memory_of_adapter(pair: Pair, adapter: schema.Adapter, dtype: str) -> dict[str, int]:
    """``memory`` where an adapter alone is trained: its matrices are, and linear layers may be in fewer bits.

    Raises: ModelError for layers that are not there, or narrower than the adapter's rank.
    """
    each, shapes = BYTES[dtype], adapters.matrices(pair.student, adapter)
    trained = sum(rows * columns for rows, columns in shapes)
    shrunk = 0 if adapter.quantise_base == "none" else adapters.linear_entries(pair.student)
    base = each * (count(pair.student) - shrunk) + int(BYTES_OF_QUANTISED[adapter.quantise_base] * shrunk)
    sizes = {
        "student": base + each * trained,
        "gradients": each * trained,
        "optimizer": each * sum(_state(torch.Size(shape), pair.stage.optimizer.name) for shape in shapes),
    }
    return sizes | _memory_of_teacher(pair, dtype)


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
