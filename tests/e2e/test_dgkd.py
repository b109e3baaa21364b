"""Densely guided distillation from the command to the student: who taught, what is kept of it, and a run that died."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill.run import Run
from tests import tiny
from tests.e2e.conftest import ROOT

STEPS, DROP = 6, 0.5
SMALL: dict[str, Any] = {
    "teacher": "teacher",
    "assistants": [4, 3],
    "learner": 2,
    "drop": DROP,
    "direct": "none",
    "gate": False,
    "device": "cpu",
    "dtype": "float32",
    "all.data": "rows.jsonl",
    "all.budget.steps": STEPS,
    "all.batch": 4,
    "all.checkpoint": {"every": 2, "best_by": "perplexity"},
    "all.optimizer.learning_rate": 1e-2,
    "all.evaluation": {"max_examples": 3, "generate_examples": 2, "max_new_tokens": 4, "leave_out": "samples"},
}
TERMS = {f"train/{stream}/forward_kl_nats" for stream in ("data", "data_assistant", "data_teacher")}


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def figures(run: Run) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in run.metrics()]


def place(folder: Path) -> Path:
    tiny.save(tiny.llama(1, layers=5), folder / "teacher")
    tiny.data_file(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the recipe was run once."""
    folder, before = place(tmp_path_factory.mktemp("dense")), Path.cwd()
    os.chdir(folder)
    try:
        potstill.train("dgkd", run="dense", **SMALL)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(whole)
    return Run(Path("runs/dense"))


def test_the_student_is_taught_by_all_and_what_taught_is_written_down(run: Run) -> None:
    _, second, student = run.stages
    models = student.read("models")
    assert models.keys() == {"student", "teacher", "teachers.assistant", "teachers.teacher"}
    assert len(set(models.values())) == 3  # the student is cut from the nearest
    assert models["student"] == models["teacher"]
    assert (models["teachers.assistant"], models["teachers.teacher"]) == tuple(
        second.read("models")[name] for name in ("teacher", "teachers.teacher")
    )
    card = (student.student / "README.md").read_text(encoding="utf-8")
    assert "further teachers: `runs/dense/stages/1-assistant/student`, `teacher`" in card
    assert "0.333333 x `forward_kl` of `data_assistant`" in card


def test_a_dropped_teachers_value_is_absent_and_every_step_has_one(run: Run) -> None:
    lines = [line for line in run.stages[-1].metrics() if "train/loss" in line]
    there = [TERMS & line.keys() for line in lines]
    assert len(there) == STEPS
    assert all(there)
    assert any(found < TERMS for found in there)
    assert len(set(map(frozenset, there))) > 1
    for line, found in zip(lines, there, strict=True):
        assert line["train/loss"] == pytest.approx(sum(line[name] for name in found) / 3, rel=1e-6)


def test_teachers_are_what_they_were_before_they_taught(run: Run, tmp_path: Path) -> None:
    tiny.save(tiny.llama(1, layers=5), tmp_path / "again")
    assert sha(Path("teacher")) == sha(tmp_path / "again")
    for stage, planned in zip(run.stages, run.read("stages"), strict=True):
        assert potstill.stages.student_sha256(stage.student) == planned["student_sha256"]  # taken before it taught


def test_a_chains_first_stage_is_taken_over_and_a_changed_further_teacher_makes_a_stage_anew(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {key: value for key, value in SMALL.items() if key != "drop"}
    potstill.train("teacher_assistant", run="chain", **shared)
    assert "stage assistant is taken from runs/dense/stages/1-assistant" in capsys.readouterr().err
    taken = [stage["taken_from"] for stage in Run(Path("runs/chain")).read("stages")]
    assert [bool(one) for one in taken] == [True, False, False]


def test_another_further_teacher_is_another_stage(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings and the same nearest teacher; the folder of the further one has other weights."""
    shutil.copytree(".", tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    tiny.save(tiny.llama(3, layers=5), Path("other"))
    settings = SMALL | {"student.teachers.teacher": "other"}
    one = potstill.train("dgkd", run="one", **settings)
    assert [bool(stage["taken_from"]) for stage in one.read("stages")] == [True, True, False]
    same = potstill.train("dgkd", run="same", **settings)
    assert [bool(stage["taken_from"]) for stage in same.read("stages")] == [True, True, True]
    shutil.rmtree("other")
    tiny.save(tiny.llama(4, layers=5), Path("other"))
    changed = potstill.train("dgkd", run="changed", **settings)
    assert [bool(stage["taken_from"]) for stage in changed.read("stages")] == [True, True, False]
    assert sha(changed.student) != sha(one.student)


KILLED = """
import os, signal
import potstill
import potstill.training.checkpoint as checkpoint

own, count = checkpoint.Writer.commit, [0]
def dying(*arguments):
    # The second checkpoint is not written, two steps after the first.
    count[0] += 1
    if count[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    own(*arguments)

checkpoint.Writer.commit = dying
potstill.train("runs/dense/stages/3-student/recipe.yaml", run="alone")
"""


def test_killed_where_a_stream_may_be_dropped_and_resumed_it_is_bitwise_the_same(run: Run) -> None:
    """The last stage by itself, by the recipe in its folder."""
    expected = sha(run.stages[-1].student), figures(run.stages[-1])
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    killed = Run(Path("runs/alone"))
    assert [path.name for path in killed.checkpoints.glob("step-*")] == ["step-000002"]
    potstill.resume("alone")
    assert (sha(killed.student), figures(killed)) == expected
