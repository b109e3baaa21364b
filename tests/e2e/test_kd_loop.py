"""The flat teaching loop and the framework make the same losses: the framework adds nothing hidden."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from potstill.run import Run
from tests import tiny
from tests.e2e.conftest import ROOT, SMALL, Command, as_arguments

STEPS = 20


def test_same_losses_to_1e9_in_float64_over_20_steps(workspace: Path, potstill: Command) -> None:
    # The teacher, too, is made in a process of its own: which one it is must not depend on what has run here before.
    (workspace / "teacher").unlink()
    made = "from pathlib import Path; from tests import tiny; tiny.save(tiny.llama(1, layers=4), Path('teacher'))"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", made], cwd=workspace, env=env, check=True, capture_output=True)
    (workspace / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(44)[40:]))
    keep = [0, 1, 3]
    settings = {"dtype": "float64", "budget.steps": STEPS, "batch": 8, "student.keep_layers": keep, "seed": 5}
    # In a process of its own with one thread, as the loop is: what a process has done before may decide in what order a
    # library adds up, and Adam makes more of that where a gradient is nearly 0.
    potstill("train", "kd", *as_arguments(SMALL | settings | {"data.heldout": "test.jsonl"}))
    run = Run(workspace / "runs" / "kd-1")
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
