"""Two gloo processes train an encoder-decoder model as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.distributed.test_rollouts_ddp import lines_of
from tests.e2e.conftest import SMALL, as_arguments
from tests.processes import run

STEPS = 3
SETTINGS: dict[str, Any] = SMALL | {
    "dtype": "float64",
    "budget.steps": STEPS,
    "student.freeze_embeddings": False,
    "checkpoint.every": STEPS,
    "evaluation.max_examples": 2,
    "evaluation.generate_examples": 1,
    "optimizer.learning_rate": 1e-2,
}
# A BART: T5's norms compute in float32, whose rounding is not the same in other micro-batches.
METHODS: dict[str, dict[str, Any]] = {
    "minillm": {"max_new_tokens": 6, "batches_per_rollout": 2, "whiten": True, "teacher": "bart"},
    "kd": {"teacher": "t5"},
}
TOLERANCE = {"minillm": 1e-9, "kd": 1e-6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seq2seq")
    tiny.save(tiny.bart(1, layers=3), folder / "bart")
    tiny.save(tiny.t5(1, layers=3), folder / "t5")
    tiny.data_file(folder)
    for name, processes, micro in (("one", 1, 4), ("two", 2, 1)):
        for method, own in METHODS.items():
            settings = SETTINGS | own | {"run": f"{name}-{method}", "batch.micro_size": micro}
            done = run(["train", method, *as_arguments(settings)], folder, processes)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(trained: Path, method: str) -> None:
    one, two = (trained / "runs" / f"{name}-{method}" for name in ("one", "two"))
    expected, found = lines_of(one), lines_of(two)
    assert len(expected) == STEPS
    for key in ("train/loss", "optim/grad_norm", "data/response_tokens"):
        torch.testing.assert_close(
            [m[key] for m in found], [m[key] for m in expected], rtol=0, atol=TOLERANCE[method], msg=key
        )
    weights, others = (
        load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "student" / "model.safetensors") for run in (one, two)
    )
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(others[key], value, rtol=0, atol=10 * TOLERANCE[method], msg=key)
