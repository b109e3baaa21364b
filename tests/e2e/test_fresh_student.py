"""A student whose weights are drawn: of the architecture and tokenizer of a folder, by the recipe's seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import potstill
from potstill.errors import ModelError
from potstill.models.loading import drawn
from potstill.run import Run
from tests import tiny
from tests.e2e.conftest import SMALL

OWN = {name: value for name, value in SMALL.items() if name not in ("teacher", "student.keep_layers")}


@pytest.fixture
def shape(workspace: Path) -> Path:
    """A folder with a config and a tokenizer, and no weights."""
    folder = tiny.save(tiny.llama(5, layers=2), workspace / "shape")
    (folder / "model.safetensors").unlink()
    return folder


def train(name: str, **settings: Any) -> Run:
    fresh = {"student.kind": "fresh", "student.model": "shape", "run": name, "budget.steps": 1}
    return potstill.train("sft", **(OWN | fresh | settings))


def test_weights_are_drawn_by_the_seed_and_leave_the_process_alone(shape: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = drawn(str(shape), 1).model.state_dict()
    assert torch.equal(torch.rand(4), expected)
    again, other = drawn(str(shape), 1).model.state_dict(), drawn(str(shape), 2).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    narrow = drawn(str(shape), 1, dtype=torch.bfloat16).model.state_dict()
    assert all(torch.equal(value.bfloat16(), narrow[name]) for name, value in first.items())


def test_a_fresh_student_is_trained_exported_and_told_of(shape: Path) -> None:
    run = train("first", seed=1)
    other = train("second", seed=2)
    before = [run.evaluations()["student_before"]["perplexity"] for run in (run, other)]
    assert before[0] != before[1]
    trained = load_file(run.student / "model.safetensors")
    untouched = drawn(str(shape), 1).model.state_dict()
    moved = max(float((trained[name] - untouched[name]).abs().max()) for name in trained)
    assert 0 < moved < 0.01  # one step away from what was drawn


def test_a_folder_without_weights_is_no_model_but_has_a_shape(shape: Path) -> None:
    with pytest.raises(ModelError, match=r"no \.safetensors weights in it(.|\n)*student\.kind=fresh"):
        potstill.train("sft", **(OWN | {"student": "shape", "run": "bad"}))
    assert not Path("runs/bad").exists()
