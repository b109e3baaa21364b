"""Two gloo processes train the same adapter as one, beside a base that teaches and stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.distributed.test_ddp import losses
from tests.e2e.conftest import SMALL, Command, as_arguments

pytest.importorskip("peft", reason="needs the extra adapters")

STEPS = 6


def test_two_processes_equal_one_to_1e9_in_float64(workspace: Path, potstill: Command) -> None:
    tiny.save(tiny.llama(2, layers=3), workspace / "other")
    own = {
        "student": "other",
        "student.adapter": "lora",
        "student.adapter.rank": 4,
        "teacher": "base",
        "ce_weight": 0.5,
    }
    settings = {name: value for name, value in SMALL.items() if name != "student.keep_layers"} | own
    settings |= {"dtype": "float64", "budget.steps": STEPS, "batch.size": 6, "checkpoint.every": STEPS}
    settings |= {"optimizer.learning_rate": 1e-2, "evaluation.generate_examples": 1}
    found = {}
    for name, processes, micro in (("one", 1, 6), ("two", 2, 3)):
        arguments = as_arguments(settings | {"run": name, "batch.micro_size": micro})
        done = potstill("train", "kd", *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        run = workspace / "runs" / name
        saved = run / "checkpoints" / f"step-{STEPS:06d}" / "student" / "adapter_model.safetensors"
        found[name] = losses(run), load_file(saved), load_file(run / "student" / "model.safetensors")
    (expected_losses, expected, merged), (found_losses, weights, others) = found["one"], found["two"]
    assert len(expected_losses) == STEPS
    torch.testing.assert_close(found_losses, expected_losses, rtol=0, atol=1e-9)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-9, msg=key)
    assert any(value.abs().max() > 1e-3 for key, value in expected.items() if "lora_B" in key)
    for key, value in merged.items():
        torch.testing.assert_close(others[key], value, rtol=0, atol=1e-6, msg=key)
