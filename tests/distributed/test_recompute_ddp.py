"""Layers computed again on two gloo processes: the losses and weights of one process that keeps all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.distributed.test_ddp import losses
from tests.e2e.conftest import SMALL, Command, as_arguments

STEPS = 4


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_two_processes_that_recompute_equal_one_that_does_not(workspace: Path, potstill: Command, kind: str) -> None:
    if kind == "t5":
        tiny.save(tiny.t5(1, layers=3, dropout=0.0), workspace / "pair")
    settings: dict[str, Any] = SMALL | {
        "teacher": "teacher" if kind == "llama" else "pair",
        "dtype": "float64",
        "budget.steps": STEPS,
        "student.freeze_embeddings": False,
        "checkpoint.every": STEPS,
        "evaluation.generate_examples": 1,
    }
    found = {}
    for name, processes, recompute in (("one", 1, False), ("two", 2, True)):
        arguments = as_arguments(settings | {"run": name, "gradient_checkpointing": recompute})
        done = potstill("train", "kd", *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        run = workspace / "runs" / name
        weights = load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "student" / "model.safetensors")
        found[name] = losses(run), weights
    (expected_losses, expected), (found_losses, weights) = found["one"], found["two"]
    assert len(expected_losses) == STEPS
    torch.testing.assert_close(found_losses, expected_losses, rtol=0, atol=1e-9)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-9, msg=key)
