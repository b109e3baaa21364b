"""A student cut in depth and in width: trained, stopped, resumed, measured again, tried without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import potstill
from potstill import api
from potstill.errors import ModelError
from potstill.models import width
from potstill.run import Run
from tests.e2e.conftest import SMALL

NARROW = {"student.keep_layers": 3, "student.keep_hidden": 12, "student.keep_mlp": 24, "student.keep_heads": 2}


def train(**settings: Any) -> Run:
    return potstill.train("kd", **(SMALL | NARROW | settings))


@pytest.mark.usefixtures("workspace")
def test_a_narrow_student_is_trained_and_its_untouched_self_found_again() -> None:
    run = train(run="first")
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in (run.student, "teacher"))
    found, of = width.sizes_of(student), width.sizes_of(teacher)
    assert (found.hidden, found.mlp, found.heads, found.head) == (12, 24, 2, of.head)
    assert len(student.model.layers) == 3
    before = run.evaluations()["student_before"]
    assert before["num_parameters"] == sum(p.numel() for p in student.parameters()) < before["num_parameters"] * 2
    heldout = {"evaluation.max_examples": before["num_examples"]}
    again = AutoModelForCausalLM.from_pretrained(potstill.api.run_models.model_named("first:untouched"))
    kept = width.Chosen.of_data(run.read("student")["kept_widths"])
    assert torch.equal(again.get_input_embeddings().weight, teacher.get_input_embeddings().weight[:, kept.hidden])
    assert (
        potstill.evaluate("first:untouched", data="rows.jsonl", answers=False, **heldout)["num_parameters"]
        == (before["num_parameters"])
    )


@pytest.mark.usefixtures("workspace")
def test_a_dry_run_has_the_sizes_of_what_would_be_cut() -> None:
    (tried,) = api.dry_run("kd", **(SMALL | NARROW))
    run = train(run="first")
    (student,) = (model for model in tried.models if model.role == "student")
    assert student.parameters == run.evaluations()["student_before"]["num_parameters"]


@pytest.mark.usefixtures("workspace")
def test_widths_that_cannot_be_are_refused_and_nothing_is_kept() -> None:
    with pytest.raises(ModelError, match="keep_hidden is 999 but the model has"):
        train(run="wide", **{"student.keep_hidden": 999})
    assert not Path("runs/wide").exists()
