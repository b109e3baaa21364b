"""A workspace with a tiny teacher and a few rows, and commands run in it as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]

# A run of seconds: everything a real one does, less of it.
SMALL = {
    "teacher": "teacher",
    "student.keep_layers": 2,
    "data": "rows.jsonl",
    "budget.steps": 8,
    "batch": 4,
    "checkpoint.every": 3,
    "evaluation.generate_examples": 2,
    "evaluation.max_new_tokens": 4,
    "dtype": "float32",
    "device": "cpu",
    "baseline": "none",
}


def as_arguments(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in settings.items()]


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.llama(1, layers=4), tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture
def workspace(tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``teacher/`` and ``rows.jsonl`` in it, no runs yet."""
    (tmp_path / "teacher").symlink_to(teacher_folder)
    tiny.data_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def potstill(workspace: Path) -> Command:
    """Run the command line in the workspace, as one process or as ``processes`` of them."""

    def call(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
        return run(list(arguments), workspace, processes)

    return call


@pytest.fixture
def torchrun(workspace: Path) -> Command:
    """Run the command line in the workspace as a user would, by two processes."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "potstill"]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, *launcher, *arguments]
        return subprocess.run(command, cwd=workspace, env=env, capture_output=True, text=True, timeout=200)

    return call
