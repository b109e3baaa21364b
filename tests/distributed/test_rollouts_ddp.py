"""Two gloo processes write the same text, and learn the same from it, as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import SMALL, as_arguments
from tests.processes import run

STEPS = 6
SETTINGS = SMALL | {
    "dtype": "float64",
    "budget.steps": STEPS,
    "student.freeze_embeddings": False,
    "checkpoint.every": STEPS,
    "evaluation.max_examples": 2,
    "evaluation.generate_examples": 1,
    "optimizer.learning_rate": 1e-2,
}
METHODS: dict[str, dict[str, Any]] = {
    "gkd": {"student_share": 1.0, "rollout.max_new_tokens": 6},
    "minillm": {"max_new_tokens": 6, "batches_per_rollout": 2, "num_updates_per_batch": 2, "whiten": True},
    "seqkd": {"max_new_tokens": 6, "samples_per_prompt": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """The runs of all methods by one process and by two, which take their rows in other micro-batches."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("rollouts")
    (folder / "teacher").symlink_to(teacher_folder)
    tiny.data_file(folder)
    for name, processes, micro in (("one", 1, 4), ("two", 2, 1)):
        for method, own in METHODS.items():
            settings = SETTINGS | own | {"run": f"{name}-{method}", "batch.micro_size": micro}
            done = run(["train", method, *as_arguments(settings)], folder, processes)
            assert done.returncode == 0, done.stderr
    return folder


def lines_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one_to_1e9_in_float64(trained: Path, method: str) -> None:
    one, two = (trained / "runs" / f"{name}-{method}" for name in ("one", "two"))
    expected, found = lines_of(one), lines_of(two)
    assert len(expected) == STEPS
    for key in ("train/loss", "optim/grad_norm", "data/response_tokens"):
        torch.testing.assert_close([m[key] for m in found], [m[key] for m in expected], rtol=0, atol=1e-9, msg=key)
    weights, others = (
        load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "student" / "model.safetensors") for run in (one, two)
    )
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(others[key], value, rtol=0, atol=1e-9, msg=key)


def test_each_process_keeps_its_own_rollout(trained: Path) -> None:
    """The checkpoint of the sixth step is in the middle of a rollout of four."""
    folder = trained / "runs" / "two-minillm" / "checkpoints" / f"step-{STEPS:06d}"
    states = [torch.load(file, weights_only=True) for file in sorted(folder.glob("**/process-*.pt"))]
    assert len(states) == 2
    ids = [
        {name for batch in state["sources"]["rollouts"]["rollout"] for part in batch for name in part["example_ids"]}
        for state in states
    ]
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]


def test_two_processes_keep_the_teachers_text_in_two_parts(trained: Path) -> None:
    def text(run: str) -> set[tuple[str, int, str]]:
        files = (trained / "runs" / run / "teacher_text" / "teacher_text").glob("part-*.jsonl")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return {(line["id"], line["sample"], str(line["ids"])) for line in lines if "id" in line}

    assert text("two-seqkd") == text("one-seqkd")
    assert len(text("one-seqkd")) == STEPS * 4
