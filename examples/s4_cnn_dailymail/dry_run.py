"""The full-size steps without weights or a network: recipes resolved, models built from shapes alone, sizes told."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from articles import window_of
from steps import STEPS, recipe_of
from transformers import AutoModelForCausalLM, GPT2Config

from potstill import recipe_io
from potstill.assembly import teacher_of
from potstill.recipe import PretrainedStudent, Recipe, Stage, rollout_of

# As published with each model (Radford et al. 2019); GPT2Config's defaults are the small one's.
SHAPES: dict[str, dict[str, Any]] = {"gpt2": {}, "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}
BYTES = 4  # of a float32
GIB = 2**30


def show() -> Iterator[str]:
    """A recipe and its sizes, step by step."""
    for number, step in enumerate(STEPS, 1):
        recipe = recipe_of(step, {})
        yield f"# --- step {number} of {len(STEPS)}: {step} " + "-" * 60
        yield recipe_io.dump(recipe).rstrip()
        yield "\n".join(f"# {name}: {value}" for name, value in sizes(recipe).items()) + "\n"


def sizes(recipe: Recipe) -> dict[str, str]:
    """Parameters, tokens and memory of a step, as text."""
    stage = recipe.stage
    student = num_parameters(_student(stage))
    teacher = num_parameters(teacher_of(stage)[0]) if stage.teacher else 0
    tokens = tokens_per_step(stage)
    memory = BYTES * (4 * student + teacher)  # weights, gradients and AdamW's two averages; a teacher has only weights
    return {
        "student": f"{_student(stage)}, {student:,} parameters",
        "teacher": f"{teacher_of(stage)[0]}, {teacher:,} parameters" if stage.teacher else "none",
        "tokens per step, at most": ", ".join(f"{name} {count:,}" for name, count in tokens.items()),
        "tokens in all, at most": f"{sum(tokens.values()) * (stage.budget.steps or 0):,}",
        "memory in float32, activations and caches not counted": f"{memory / GIB:.2f} GiB",
    }


def tokens_per_step(stage: Stage) -> dict[str, int]:
    """The most tokens, prompts included, that a step of each stream runs over."""
    window = window_of(stage.data)
    return {
        stream.name: stage.batch.size
        * (stage.data.max_prompt_tokens + rollout.max_new_tokens if (rollout := rollout_of(stream.source)) else window)
        for stream in stage.streams
    }


@cache
def num_parameters(name: str) -> int:
    """Parameters of a model, or of the student of the run that is named; tied ones count once."""
    if name not in SHAPES:
        return num_parameters(_student(recipe_of(name.split("/")[1], {}).stage))
    model: Any
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(**SHAPES[name]))
    return sum(parameter.numel() for parameter in model.parameters())


def _student(stage: Stage) -> str:
    assert isinstance(stage.student, PretrainedStudent)  # all of them are
    return stage.student.model
