"""A sweep of tiny models: in one process and in two, killed and gone on with, failed, stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import PotstillError, Stopped
from potstill.run import Run
from potstill.sweep.cells import Plan, plan
from potstill.sweep.folder import Folder, Keep, Status
from potstill.sweep.sweep import Options, check_failed, sweep
from potstill.sweep.table import Table
from tests import tiny
from tests.e2e.conftest import ROOT, SMALL

AXES: dict[str, Any] = {"optimizer.learning_rate": [0.001, 0.01], "seed": [1, 2]}
STEPS, EVERY = 8, 3


def grid(folder: Path, axes: dict[str, Any] = AXES, name: str = "grid", **settings: Any) -> Plan:
    """A grid file in ``folder``: JSON is YAML."""
    shared = {key: value for key, value in (SMALL | settings).items() if key not in axes}
    content = {"method": "kd", "set": shared, "axes": axes, "metric": "perplexity"}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(content))
    return plan(file)


def in_folder(name: str = "grid") -> Folder:
    return Folder(Path("sweeps") / name)


def weights(run: Run) -> str:
    return hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()


def figures(table: Table, keep_weights: bool = True) -> list[Any]:
    """All that two sweeps of the same cells have alike."""
    cells = [cell for row in table.rows for cell in row.cells]
    return [(cell.name, cell.value, cell.tokens, weights(cell.run) if keep_weights else "") for cell in cells]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> list[Any]:
    """Names, figures and weights of the grid's cells from a sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "teacher").symlink_to(teacher_folder)
    tiny.data_file(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return figures(sweep(grid(folder), in_folder(), Options()))
    finally:
        os.chdir(before)


def start(*arguments: str, patch: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own, with ``patch`` run before it."""
    code = textwrap.dedent(patch) + "\nfrom potstill.cli import main\nmain()\n"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, "sweep", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(holds: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_give_the_same_figures_and_weights(workspace: Path, undisturbed: list[Any]) -> None:
    planned, folder = grid(workspace), in_folder()
    table = sweep(planned, folder, Options(jobs=2))
    assert figures(table) == undisturbed
    assert len({value for _, value, _, _ in undisturbed}) == 4
    lines = [json.loads(line) for line in folder.journal_file.read_text().splitlines()]
    assert [line["status"] for line in lines].count("done") == 4
    logs = [(folder.path / "logs" / f"worker-{number}.log").read_text() for number in (1, 2)]
    assert sum(log.count("=== ") for log in logs) == 4
    assert all("=== " in log and "measuring student after" in log for log in logs)
    assert not list(folder.path.glob("runs/*/checkpoints"))
    mended = sweep(planned, folder, Options(jobs=2, keep=Keep.nothing))
    assert figures(mended, keep_weights=False) == [(*told, "") for *told, _ in undisturbed]
    assert not list(folder.path.rglob("*.safetensors"))


DIE_IN_THE_SECOND_CELL = """
    import os, signal
    import potstill.training.checkpoint as checkpoint
    commit, count = checkpoint.Writer.commit, [0]
    def dying(self):
        count[0] += 1
        if count[0] == 5:  # three checkpoints of the first cell, one of the second, and not the next
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(self)
    checkpoint.Writer.commit = dying
"""


def test_killed_and_started_again_it_does_what_is_left(
    workspace: Path, undisturbed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    planned, folder = grid(workspace), in_folder()
    process = start("grid.yaml", patch=DIE_IN_THE_SECOND_CELL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == -signal.SIGKILL, errors
    first, second, third, fourth = (folder.run(cell) for cell in planned.cells)
    before = {file: file.stat().st_mtime_ns for file in first.path.rglob("*") if file.is_file()}
    assert first.eval_file("student_after") in before
    assert [path.name for path in second.checkpoints.glob("step-*")] == ["step-000003"]
    assert not third.path.exists()
    records = folder.records()
    assert [records[cell.key].status for cell in planned.cells[:2]] == [Status.done, Status.begun]

    table = sweep(planned, folder, Options())
    said = capsys.readouterr().err
    assert "1 of 4 cells are done, 3 to run" in said
    assert f"going on from {second.checkpoints / 'step-000003'}" in said
    assert figures(table) == undisturbed  # the half-done one too, to the last bit
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert [line["step"] for line in second.metrics() if "train/loss" in line] == list(range(1, STEPS + 1))
    begun = [json.loads(line)["run"] for line in folder.journal_file.read_text().splitlines() if '"begun"' in line]
    assert begun == [run.path.name for run in (first, second, second, third, fourth)]


LONG = {"budget.steps": 4000, "checkpoint.every": 2000}


def test_a_worker_saves_and_stops_when_the_sweep_is_killed(workspace: Path) -> None:
    planned, folder = grid(workspace, {"seed": [1]}, **LONG), in_folder()
    process, run = start("grid.yaml", "--jobs", "2"), folder.run(planned.cells[0])
    until(lambda: len(run.metrics()) > 1 or process.poll() is not None)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    until(lambda: bool(list(run.checkpoints.glob("step-*"))))
    (saved,) = run.checkpoints.glob("step-*")
    until(lambda: run.metrics()[-1]["step"] == int(saved.name.removeprefix("step-")))
    assert 1 <= run.metrics()[-1]["step"] < LONG["checkpoint.every"]
    assert [record.status for record in folder.records().values()] == [Status.begun]


def test_sigterm_stops_a_sweep_and_its_worker_with_everything_saved(workspace: Path) -> None:
    planned, folder = grid(workspace, {"seed": [1]}, **LONG), in_folder()
    process, run = start("grid.yaml", "--jobs", "2"), folder.run(planned.cells[0])
    until(lambda: len(run.metrics()) > 1 or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "error: stopped, with everything saved; 0 of 1 cells are done, 1 begun" in errors
    assert "the same command goes on with what is left" in errors
    assert "Traceback" not in errors
    (saved,) = run.checkpoints.glob("step-*")  # before the command ended
    assert run.metrics()[-1]["step"] == int(saved.name.removeprefix("step-"))
    assert "not finished yet" in (folder.path / "table.md").read_text()


def test_ctrl_c_in_a_cell_of_this_process_and_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    from potstill.training import trainer

    advance, steps = trainer._advance, [0]

    def then_signal(state: Any, *arguments: Any) -> None:
        advance(state, *arguments)
        steps[0] += 1
        if steps[0] == STEPS + 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "_advance", then_signal)
    planned, folder = grid(workspace, AXES | {"optimizer.learning_rate": [0.001]}), in_folder()
    with pytest.raises(Stopped, match="stopped after step 5") as caught:
        sweep(planned, folder, Options())
    assert caught.value.exit_code == 130
    assert caught.value.cause.endswith("; 1 of 2 cells are done, 1 begun")
    assert "seed 2 not finished yet" in (folder.path / "table.md").read_text()
    assert figures(sweep(planned, folder, Options())) == undisturbed[:2]
    assert steps[0] == 2 * STEPS  # none was done twice


def test_a_cell_that_fails_stops_no_other_and_is_run_again_when_asked(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned, folder = grid(workspace, {"data": ["gone.jsonl", "rows.jsonl"]}), in_folder()
    table = sweep(planned, folder, Options())
    failed, done = (row.cells[0] for row in table.rows)
    assert (failed.status, done.status) == (Status.failed, Status.done)
    with pytest.raises(PotstillError, match=r"1 of 2 cells failed") as caught:
        check_failed(table)
    assert caught.value.exit_code == 1
    assert "gone.jsonl" in str(caught.value)
    assert "--retry" in str(caught.value)
    (workspace / "gone.jsonl").write_text((workspace / "rows.jsonl").read_text())
    capsys.readouterr()
    assert sweep(planned, folder, Options()).rows[0].cells[0].status is Status.failed
    assert "begins" not in capsys.readouterr().err
    table = sweep(planned, folder, Options(retry=True))
    check_failed(table)
    assert table.rows[0].mean.mean == table.rows[1].mean.mean  # the same rows


def test_the_command(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from potstill import cli

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potstill", "sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    grid(workspace, {"seed": [1, 2]}, "small")
    Path("wrong.yaml").write_text(Path("small.yaml").read_text().replace('"perplexity"', '"perplexityy"'))
    code, out, _ = call("small.yaml", "--dry-run")
    assert (code, out.count("left"), "2 cells: 2 left" in out) == (0, 3, True)
    assert not Path("sweeps").exists()
    code, _, err = call("wrong.yaml", "--name", "first")  # a figure that nobody measures: told before anything runs
    assert (code, err.count(": begins")) == (2, 0)
    assert "metric: perplexityy is no figure that a run measures" in err
    assert "Did you mean 'perplexity'?" in err
    assert not Path("sweeps").exists()
    code, out, err = call("small.yaml", "--name", "first", "--format", "json")
    assert (code, err.count(": begins")) == (0, 2)
    assert [row["n"] for row in json.loads(out)["rows"]] == [2]
    assert (Path("sweeps") / "first" / "grid.yaml").read_text() == Path("small.yaml").read_text()
    code, out, _ = call("small.yaml", "--name", "first", "--dry-run", "--format", "json")
    assert json.loads(out)["counts"] == {"left": 0, "begun": 0, "done": 2, "failed": 0}
    for words, said in ((["gone.yaml"], "file not found"), (["small.yaml", "--name", "a/b"], "cannot be called")):
        code, _, err = call(*words)
        assert (code, said in err) == (2, True)
