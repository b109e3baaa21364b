"""The flat teaching loop and the framework make the same losses: the framework adds nothing hidden."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import potstill
from tests import tiny
from tests.e2e.conftest import ROOT, SMALL

STEPS = 20


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the loop has: several add up in another order, which Adam makes more of where a gradient is nearly 0."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_same_losses_to_1e9_in_float64_over_20_steps(workspace: Path, one_thread: None) -> None:
    (workspace / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(44)[40:]))
    keep = [0, 1, 3]
    settings = {"dtype": "float64", "budget.steps": STEPS, "batch": 8, "student.keep_layers": keep, "seed": 5}
    run = potstill.train("kd", **SMALL | settings | {"data.heldout": "test.jsonl"})
    framework = [line["train/loss"] for line in run.metrics() if "train/loss" in line]

    command = [
        sys.executable, str(ROOT / "examples" / "kd_loop.py"), "--teacher", "teacher", "--data", "rows.jsonl",
        "--keep", *map(str, keep), "--steps", str(STEPS), "--batch", "8", "--seed", "5", "--dtype", "float64",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=workspace, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    flat = [json.loads(line)["loss"] for line in done.stdout.splitlines()]
    assert len(flat) == STEPS
    torch.testing.assert_close(flat, framework, rtol=0, atol=1e-9)
    assert flat[-1] < flat[0]


def test_the_teaching_copy_stays_short() -> None:
    assert len((ROOT / "examples" / "kd_loop.py").read_text().splitlines()) <= 120
