"""Two gloo processes make the same losses and weights as one, with several teachers of which some sit a step out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import tiny
from tests.e2e.conftest import SMALL, Command, as_arguments

STEPS = 8


def stream(name: str, teacher: str | None, coefficient: float) -> dict[str, Any]:
    terms = [{"objective": "forward_kl", "coefficient": coefficient}]
    return {"name": name, "teacher": teacher, "signal": "logits", "drop": 0.5, "terms": terms}


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith("train/")} for line in lines if "train/loss" in line]


def test_two_processes_equal_one_and_drop_the_same_streams(workspace: Path, potstill: Command) -> None:
    tiny.save(tiny.llama(7, layers=3), workspace / "second")
    settings = SMALL | {
        "teachers.second": "second",
        "streams": [stream("near", None, 0.7), stream("far", "second", 0.3)],
        "dtype": "float64",
        "budget.steps": STEPS,
        "batch.size": 6,
        "student.freeze_embeddings": False,
        "checkpoint.every": STEPS,
        "evaluation.generate_examples": 1,
        "evaluation.leave_out": ["samples", "untouched"],
    }
    found = {}
    for name, processes, micro in (("one", 1, 6), ("two", 2, 3)):
        arguments = as_arguments(settings | {"run": name, "batch.micro_size": micro})
        done = potstill("train", "kd", *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        run = workspace / "runs" / name
        weights = run / "checkpoints" / f"step-{STEPS:06d}" / "student" / "model.safetensors"
        found[name] = metrics(run), load_file(weights)
    one, two = found["one"], found["two"]
    assert [line.keys() for line in one[0]] == [line.keys() for line in two[0]]
    assert {len(line) for line in one[0]} == {2, 3}  # the loss, and one stream or both
    for ours, theirs in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-9)
    for key, value in one[1].items():
        torch.testing.assert_close(two[1][key], value, rtol=0, atol=1e-9, msg=key)
