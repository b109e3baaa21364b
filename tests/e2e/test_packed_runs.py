"""Whole runs whose rows are laid end to end: those of padded rows up to rounding, and two of them bit for bit alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import potstill
from potstill.run import Run
from tests.e2e.conftest import SMALL

STEPS = {"budget.steps": 3, "checkpoint.every": 3, "evaluation.max_examples": 4, "evaluation.generate_examples": 1}
METHODS: dict[str, dict[str, Any]] = {
    "kd": {"batch": 6, "batch.micro_size": 3, "ce_weight": 0.3},
    "minillm": {"batch": 2, "num_updates_per_batch": 2, "batches_per_rollout": 2, "max_new_tokens": 6},
    "feature_kd": {"batch": 4, "gradient_checkpointing": True},
}


def trained(workspace: Path, method: str, name: str, **settings: Any) -> tuple[Run, list[dict[str, float]]]:
    """A run and its figures but for its times."""
    potstill.train(method, run=name, **(SMALL | STEPS | {"dtype": "float64"} | METHODS[method] | settings))
    run = Run(workspace / "runs" / name)
    lines = [{k: v for k, v in line.items() if not k.startswith(("time/", "source/"))} for line in run.metrics()]
    assert sum("train/loss" in line for line in lines) == 3
    return run, lines


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / "step-000003" / "student" / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_that_of_padded_rows(workspace: Path, method: str) -> None:
    (padded, expected), (packed, found) = (
        trained(workspace, method, name, packing=name) for name in ("never", "always")
    )
    flops = [[line.pop("compute/flops") for line in lines if "compute/flops" in line] for lines in (found, expected)]
    assert 0 < flops[0][-1] < flops[1][-1]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-7, abs=1e-9)
    theirs = weights(padded)
    for key, value in weights(packed).items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-8, msg=key)


def test_two_runs_are_alike_bit_for_bit(workspace: Path) -> None:
    (first, expected), (second, found) = (trained(workspace, "kd", name, packing="always") for name in ("one", "two"))
    assert found == expected
    assert all(torch.equal(value, weights(first)[key]) for key, value in weights(second).items())


def test_rows_that_were_to_be_laid_end_to_end_and_cannot_be_are_told(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workspace / "teacher" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"attn_implementation": "eager"}
    file.write_text(json.dumps(config), encoding="utf-8")
    trained(workspace, "kd", "padded", packing="always")
    told = capsys.readouterr().err
    assert "packing is always, and the teacher reads padded rows: its attention is eager" in told
    assert told.count("packing is always") == 2  # the student was cut from it
