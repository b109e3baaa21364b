"""SIGTERM and Ctrl-C finish the step and save; a second one stops at once; broken checkpoints are passed over."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import potstill
from potstill.errors import CheckpointError, ConfigError, DataError
from potstill.run import Run
from tests import tiny
from tests.e2e.conftest import ROOT, SMALL, as_arguments

LONG = SMALL | {"budget.steps": 4000, "checkpoint.every": 2000, "run": "long"}


def sha(run: Run) -> str:
    return hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()


def started(workspace: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    """A run in a process of its own that has taken its first steps."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "potstill", "train", "kd", *as_arguments(settings)]
    process = subprocess.Popen(
        command, cwd=workspace, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while "step 1" not in process.stderr.readline():  # type: ignore[union-attr]
        assert process.poll() is None
        assert time.monotonic() < deadline
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_one_signal_finishes_the_step_and_saves(workspace: Path, number: int, code: int) -> None:
    process = started(workspace, LONG)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "with everything saved" in errors
    assert "potstill resume" in errors
    assert "Traceback" not in errors
    run = Run(workspace / "runs" / "long")
    (saved,) = run.checkpoints.glob("step-*")
    assert run.metrics()[-1]["step"] == int(saved.name.removeprefix("step-"))


def test_a_second_signal_stops_at_once(workspace: Path) -> None:
    process = started(workspace, LONG | {"batch": 40, "batch.size": 36})
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - begun < 20  # seconds of a machine with much else to do


def interrupted(workspace: Path, monkeypatch: pytest.MonkeyPatch, at_step: int, **settings: Any) -> Run:
    """A run asked to stop at a step, as by SIGTERM."""
    from potstill.training import trainer

    advance = trainer._advance

    def then_signal(state: Any, *arguments: Any) -> None:
        advance(state, *arguments)
        if state.step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "_advance", then_signal)
    with pytest.raises(potstill.PotstillError, match=f"stopped after step {at_step}"):
        potstill.train("kd", **SMALL | settings, run="stopped")
    monkeypatch.setattr(trainer, "_advance", advance)
    return Run(Path("runs/stopped"))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_resumed_is_bitwise_the_uninterrupted_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    (workspace / "teacher").unlink()
    tiny.save(tiny.llama(1, layers=4).to(getattr(torch, stored)), workspace / "teacher")
    whole = potstill.train("kd", **SMALL, run="whole")
    stopped = potstill.resume(interrupted(workspace, monkeypatch, at_step=5))
    assert sha(stopped) == sha(whole)
    assert next(iter(load_file(stopped.student / "model.safetensors").values())).dtype == getattr(torch, stored)
    timeless = [[{k: v for k, v in line.items() if "time/" not in k} for line in r.metrics()] for r in (whole, stopped)]
    assert timeless[0] == timeless[1]


def test_dropout_goes_on_with_the_same_draws(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "teacher").unlink()
    tiny.save(tiny.gpt2(1, layers=4, dropout=0.3), workspace / "teacher")
    whole = potstill.train("kd", **SMALL, run="whole")
    assert sha(potstill.resume(interrupted(workspace, monkeypatch, at_step=5))) == sha(whole)


SCHEDULED: list[dict[str, Any]] = [
    {"divergence": {"name": "interpolated_forward_kl", "t": {"name": "taid", "rate": 0.3, "momentum": 0.5}}},
    {"ce_weight": 0.5, "streams.0.terms.1.coefficient": {"name": "linear", "start": 0, "end": 1}},
    {"weighting": {"name": "top_fraction", "fraction": 0.4}, "signal": "logits"},
    {"signal": {"name": "sampled", "draws": 5}},
]


@pytest.mark.parametrize("settings", SCHEDULED, ids=["adaptive", "scheduled", "weighted", "drawn"])
def test_schedules_weights_and_draws_go_on_where_they_were(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    whole = potstill.train("kd", **SMALL | settings, run="whole")
    stopped = potstill.resume(interrupted(workspace, monkeypatch, at_step=5, **settings))
    assert sha(stopped) == sha(whole)
    timeless = [[{k: v for k, v in line.items() if "time/" not in k} for line in r.metrics()] for r in (whole, stopped)]
    assert timeless[0] == timeless[1]
    changing = {key for line in whole.metrics() for key in line if key.startswith("schedule/")}
    assert len(changing) == (settings in SCHEDULED[:2])
    for key in changing:
        values = [line[key] for line in whole.metrics() if key in line]
        assert values == sorted(set(values))


@pytest.mark.parametrize("damage", ["flip", "remove"])
@pytest.mark.parametrize("name", ["student/model.safetensors", "state/optimizer.pt", "state/process-00000.pt"])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    whole = potstill.train("kd", **SMALL, run="whole")
    run = interrupted(workspace, monkeypatch, at_step=7)  # checkpoints at 6 and at 7
    file = run.checkpoints / "step-000007" / name
    if damage == "remove":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(content)
    potstill.resume(run)
    said = capsys.readouterr().err
    assert f"skipping checkpoint step-000007: {name}" in said
    assert "going on from runs/stopped/checkpoints/step-000006" in said
    assert sha(run) == sha(whole)


def test_where_no_checkpoint_is_whole_the_run_is_not_started_again_in_silence(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(workspace, monkeypatch, at_step=5)
    for path in run.checkpoints.glob("step-*"):
        (path / "state" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        potstill.resume(run)


def test_a_best_checkpoint_that_was_damaged_is_not_exported(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.training import trainer

    def first(state: trainer.State, name: str, value: float, error: float) -> None:
        state.best_step = state.best_step or state.step  # the first validated step, 3, stays the best

    monkeypatch.setattr(trainer, "choose", first)
    run = interrupted(workspace, monkeypatch, at_step=7)
    file = run.checkpoints / "step-000003" / "student" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-000003: student/model.safetensors is damaged"):
        potstill.resume(run)
    assert not run.student.exists()


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = potstill.train("kd", **SMALL, run="whole")
    save = torch.save

    def no_room(content: Any, file: Path) -> None:
        if "step-000006" in str(file):
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", no_room)
    with pytest.raises(CheckpointError, match=r"step-000006 could not be written: .*No space left.*\n  fix: make room"):
        potstill.train("kd", **SMALL, run="full")
    run = Run(Path("runs/full"))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["best", "step-000003"]
    monkeypatch.setattr(torch, "save", save)
    assert sha(potstill.resume(run)) == sha(whole)


def test_other_settings_are_refused_with_what_differs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(workspace, monkeypatch, at_step=5)
    run.recipe_file.write_text(run.recipe_file.read_text().replace("steps: 8", "steps: 9"))
    with pytest.raises(CheckpointError, match=r"budget\.steps differ"):
        potstill.resume(run)


def test_other_rows_are_refused_and_nothing_is_written(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the table would compare a student on some rows with itself on others."""
    run = interrupted(workspace, monkeypatch, at_step=5)
    before = (run.path / "data.json").read_text()
    rows = (workspace / "rows.jsonl").read_text().splitlines(keepends=True)
    (workspace / "rows.jsonl").write_text("".join(rows[:-5]))
    with pytest.raises(DataError, match=r"rows\.jsonl is not what it was when .* was begun") as caught:
        potstill.resume(run)
    assert "bring the file back" in str(caught.value)
    assert (run.path / "data.json").read_text() == before
    (workspace / "rows.jsonl").write_text("".join(rows))
    potstill.resume(run)
    assert run.report_file.exists()


def test_resuming_a_finished_run_changes_nothing(workspace: Path) -> None:
    run = potstill.train("kd", **SMALL)
    before, lines = sha(run), run.metrics_file.read_text()
    potstill.resume(run)
    assert (sha(run), run.metrics_file.read_text()) == (before, lines)


def test_two_commands_cannot_work_in_one_run(workspace: Path) -> None:
    from filelock import FileLock

    run = potstill.train("kd", **SMALL)
    with FileLock(run.path / ".lock"), pytest.raises(ConfigError, match="another process is at work in it"):
        potstill.resume(run)
