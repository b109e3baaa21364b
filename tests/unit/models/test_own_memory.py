"""A student does not live in its file: what becomes of the file, and where in it a weight begins, is nothing to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from potstill import assembly
from potstill.recipe import Stage
from potstill.training.checkpoint import Checkpoint
from potstill.training.runtime import Runtime
from tests import tiny

RUNTIME = Runtime(torch.device("cpu"), torch.float32)


def zeroed(file: Path) -> None:
    """Write zeros over the numbers of a file where they are, as saving into the same place does."""
    with file.open("r+b") as handle:
        header = int.from_bytes(handle.read(8), "little")
        handle.seek(8 + header)
        handle.write(bytes(file.stat().st_size - 8 - header))
    with safe_open(file, "pt") as read:
        assert not any(read.get_tensor(name).any() for name in read.keys())  # noqa: SIM118 - not a mapping


@pytest.mark.parametrize("resumed", [False, True])
def test_a_student_outlives_its_file(resumed: bool, tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(4), tmp_path / "step-000005" / "student")
    stage = Stage.model_validate(
        {
            "student": {"kind": "pretrained", "model": str(folder)},
            "streams": [{"signal": "none", "terms": [{"objective": "cross_entropy"}]}],
            "budget": {"steps": 1},
        }
    )
    at = Checkpoint(folder.parent) if resumed else None
    model = assembly.build_student(stage, RUNTIME, None, (), False, at).family.model
    zeroed(folder / "model.safetensors")
    for weight, saved in zip(model.parameters(), tiny.llama(4).parameters(), strict=True):
        assert torch.equal(weight, saved)
        assert weight.data_ptr() % 64 == 0  # as torch lays all that it makes itself
