"""Runs that save memory are the runs that do not, to the last bit where the weights are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import potstill
from potstill import recipe_io, stages
from potstill.recipe import Teacher
from potstill.recipes import METHODS
from potstill.run import Run
from tests import tiny
from tests.e2e.conftest import SMALL

STEPS = {"budget.steps": 2, "checkpoint.every": 2, "evaluation.max_examples": 2, "evaluation.generate_examples": 1}


def trained(workspace: Path, method: str, name: str, **settings: Any) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The run's figures but for its times, and its student."""
    potstill.train(method, run=name, **(SMALL | STEPS | settings))
    run = Run(workspace / "runs" / name)
    timed = ("time/", "source/")
    lines = [{key: value for key, value in line.items() if not key.startswith(timed)} for line in run.metrics()]
    evals = [run.read(f"eval/{model}") for model in ("teacher", "student_before", "student_after")]
    figures = [{key: value for key, value in one.items() if key.endswith(("_nats", "perplexity"))} for one in evals]
    return [*lines, *figures], load_file(run.student / "model.safetensors")


SAVING: dict[str, dict[str, Any]] = {
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "without dropout": {"gradient_checkpointing": True, "dropout": False},
    "offload": {"teacher.offload": "cpu"},
    "device": {"teacher.device": "cpu"},
    "device_map": {"teacher.device_map": {"": "cpu"}},
}


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_distillation_is_the_same(workspace: Path, kind: str) -> None:
    pytest.importorskip("accelerate")
    tiny.save(tiny.llama(1, layers=4) if kind == "llama" else tiny.t5(1, layers=3), workspace / "model")
    expected = trained(workspace, "kd", "plain", teacher="model")
    for name in SAVING if kind == "llama" else ("gradient_checkpointing", "offload"):
        settings = SAVING[name]
        figures, student = trained(workspace, "kd", name.replace(" ", "-"), teacher="model", **settings)
        # A T5 without dropout, recomputed, differs in the last bit of its states in a run, for a reason not yet found.
        near = kind == "t5" and "gradient_checkpointing" in settings
        assert [pytest.approx(line, rel=1e-4) for line in figures] == expected[0] if near else figures == expected[0], (
            name
        )
        for key, value in expected[1].items():
            torch.testing.assert_close(student[key], value, rtol=0, atol=1e-5 if near else 0, msg=f"{name}: {key}")


def test_what_both_models_write_is_the_same(workspace: Path) -> None:
    """Token by token by student and teacher, while the one is recomputed in training and the other off its device."""
    pytest.importorskip("accelerate")
    settings = {"batch": 2, "num_updates_per_batch": 2, "batches_per_rollout": 2, "max_new_tokens": 6}
    saving = {"gradient_checkpointing": True, "teacher.offload": "cpu"}
    expected, student = trained(workspace, "minillm", "plain", **settings)
    figures, ours = trained(workspace, "minillm", "saving", **settings, **saving)
    assert figures == expected
    assert all(torch.equal(ours[key], value) for key, value in student.items())


def test_a_student_of_an_earlier_stage_is_held_as_its_recipe_says(workspace: Path) -> None:
    recipe = recipe_io.load("teacher_assistant", {"student.teacher.dtype": "bfloat16"}, methods=METHODS)
    at = next(index for index, stage in enumerate(recipe.stages) if stage.name == "student")
    run = Run(workspace / "runs" / "chain")
    teacher = stages.resolved(recipe, at, run).stage.teacher
    assert isinstance(teacher, Teacher)
    assert teacher.dtype == "bfloat16"
    assert "1-" in teacher.model  # the folder of the stage before
