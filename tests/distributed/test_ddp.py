"""Two gloo processes make the same losses and the same weights as one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import SMALL, Command, as_arguments

STEPS = 20


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


LOSSES: dict[str, dict[str, Any]] = {
    "forward_kl": {"ce_weight": 0.3},
    "packed": {"packing": "always"},
    # What looks at both models first, and what adapts to the loss.
    "selective_taid": {
        "divergence": {"name": "interpolated_forward_kl", "t": {"name": "taid", "rate": 0.05}},
        "weighting": {"name": "top_fraction", "fraction": 0.4, "score": "forward_kl"},
    },
}


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_equal_one_to_1e9_in_float64(
    workspace: Path, potstill: Command, torchrun: Command, loss: str
) -> None:
    settings = (
        SMALL
        | LOSSES[loss]
        | {
            "dtype": "float64",
            "budget.steps": STEPS,
            "batch.size": 6,
            "student.freeze_embeddings": False,
            "checkpoint.every": STEPS,
            "evaluation.generate_examples": 1,
        }
    )
    found = {}
    for name, processes, micro in (("one", 1, 6), ("one-split", 1, 2), ("two", 2, 3)):
        arguments = as_arguments(settings | {"run": name, "batch.micro_size": micro})
        by_torchrun = processes > 1 and loss == "forward_kl"
        train = torchrun if by_torchrun else partial(potstill, processes=processes)
        done = train("train", "kd", *arguments)
        assert done.returncode == 0, done.stderr
        run = workspace / "runs" / name
        found[name] = (
            losses(run),
            load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "student" / "model.safetensors"),
        )
    expected_losses, expected_weights = found["one"]
    assert len(expected_losses) == STEPS
    for name in ("one-split", "two"):
        found_losses, weights = found[name]
        torch.testing.assert_close(found_losses, expected_losses, rtol=0, atol=1e-9)
        assert weights.keys() == expected_weights.keys()
        for key, value in expected_weights.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}")


def test_a_batch_that_does_not_divide_is_refused(torchrun: Command) -> None:
    done = torchrun("train", "kd", *as_arguments(SMALL | {"batch.size": 5}))
    assert done.returncode != 0
    assert "batch.size is 5, which 2 processes cannot share equally" in done.stderr
    assert 'Traceback (most recent call last):\n  File "' not in done.stderr.split("error:")[0]
