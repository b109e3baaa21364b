"""Runs whose terms are compiled: the same students but for rounding, and the same to the last bit when resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import potstill
from potstill import bench, recipe_io
from potstill.data.examples import Tokenised
from potstill.objectives.compiled import Compiled
from potstill.recipes import METHODS
from potstill.run import Run
from potstill.training import compiling, trainer
from potstill.training.compiling import Verdict
from potstill.training.runtime import Runtime
from tests.e2e.conftest import SMALL
from tests.killing import parting

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")

# As many response tokens in a step as make a whole block.
COMPILED = SMALL | {"batch": 16, "ce_weight": 0.5, "signal": {"name": "sampled", "draws": 5}}


def written(run: Run) -> str:
    return recipe_io.load(run.recipe_file, methods={}).compile


def told(run: Run) -> tuple[str, list[dict[str, float]]]:
    """Its figures without times; the student is the one of the last of them."""
    lines = [{key: value for key, value in line.items() if "time/" not in key} for line in run.metrics()]
    return (run.student / "model.safetensors").read_bytes().hex(), lines


@pytest.fixture
def in_one(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each block that was offered, whether a compiled function took it."""
    taken: list[bool] = []
    call = Compiled.__call__

    def noted(self: Compiled, *arguments: Any) -> Any:
        found = call(self, *arguments)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(Compiled, "__call__", noted)
    return taken


def test_a_student_is_the_same_but_for_rounding(workspace: Path, in_one: list[bool]) -> None:
    never = potstill.train("kd", **COMPILED, compile="never", run="never")
    assert in_one == []
    always = potstill.train("kd", **COMPILED, compile="always", run="always")
    assert len(in_one) >= 8
    assert all(in_one)
    assert (written(never), written(always)) == ("never", "always")
    for one, other in zip(never.metrics(), always.metrics(), strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {key for key in one if "time/" in key}:
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key


def test_auto_settles_it_and_a_resumed_run_keeps_to_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_one: list[bool]
) -> None:
    monkeypatch.setattr(bench, "verdict", lambda *_: Verdict(pays=True, why="terms are compiled, in a test"))
    whole = potstill.train("kd", **COMPILED, run="whole")
    assert "terms are compiled, in a test" in capsys.readouterr().err
    assert written(whole) == "always"

    fit = trainer._advance

    def stop_at_five(state: Any, *arguments: Any) -> None:
        fit(state, *arguments)
        if state.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_advance", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        potstill.train("kd", **COMPILED, run="stopped")
    monkeypatch.setattr(trainer, "_advance", fit)
    monkeypatch.setattr(bench, "verdict", lambda *_: pytest.fail("it was settled when the run was begun"))
    del in_one[:]
    resumed = potstill.resume("stopped")
    assert in_one
    assert all(in_one)
    assert not parting(told(resumed), told(whole))


@pytest.mark.parametrize("was", ["always", "never", "auto"])
def test_a_stage_that_was_begun_keeps_to_what_its_own_recipe_says(tmp_path: Path, was: str) -> None:
    """Of several stages each has settled its own, while the recipe of all of them still says auto."""
    begun = Run(tmp_path / "stage")
    begun.path.mkdir()
    begun.metrics_file.write_text("")
    auto = recipe_io.load("kd", methods=METHODS)
    begun.recipe_file.write_text(recipe_io.dump(auto.model_copy(update={"compile": was})))
    runtime = Runtime(torch.device("cpu"), torch.float32)
    nothing: Any = None  # no rows and no models: they are not asked
    settled = bench._with_compiling(auto, begun, runtime, nothing, nothing, allow_remote_code=False)
    assert settled.compile == ("always" if was == "always" else "never")


def test_processes_settle_it_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The main one measures for its share of the train rows; another measures nothing, and does as it is told."""
    auto = recipe_io.load("kd", methods=METHODS)
    rows = [Tokenised(str(at), (1,), (2,) * 5, "", "", truncated=False) for at in range(40)]
    longer = [replace(row, response_ids=(2,) * 9) for row in rows[:4]]
    data: Any = SimpleNamespace(train=rows, validation=longer, heldout=longer)
    teaching: Any = SimpleNamespace(vocab_size=70)
    asked: list[Any] = []

    def measured(streams: Any, vocab_size: int, positions: float, at_once: int, runtime: Runtime) -> Verdict:
        asked.append((streams, vocab_size, (positions, at_once)))
        return Verdict(pays=True)

    def broadcast(box: list[Any]) -> None:
        if box[0] is None:
            box[0] = Verdict(pays=True)

    monkeypatch.setattr(bench, "verdict", measured)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    for rank in (0, 1):
        runtime = Runtime(torch.device("cpu"), torch.float32, rank=rank, world_size=2)
        settled = bench._with_compiling(auto, Run(tmp_path / "run"), runtime, data, teaching, allow_remote_code=False)
        assert settled.compile == "always"
        assert len(asked) == 1
    assert asked == [(auto.stage.streams, 70, compiling.positions_of(auto.stage, rows, 2))]
    assert asked[0][2][0] > 0


def test_a_short_run_is_not_compiled(workspace: Path, in_one: list[bool]) -> None:
    assert written(potstill.train("kd", **SMALL, run="short")) == "never"
    assert in_one == []


def test_a_run_without_a_compiler_is_finished_and_says_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no working C++ compiler found\nin g++")

    monkeypatch.setattr("torch._inductor.compile", no_compiler)
    potstill.train("kd", **COMPILED, compile="always", run="without")
    said = capsys.readouterr().err
    assert "terms of the stream data are left to autograd: no working C++ compiler found\nwhere it is a" in said
    assert said.index("are left to autograd") < said.index("kd: step 1")
    cost = json.loads((Path("runs/without") / "cost.json").read_text())
    assert cost["compiled_blocks"] == 0


def test_a_run_with_nothing_to_compile_says_so(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = COMPILED | {"batch": 4, "budget.steps": 2}  # some hundred response tokens
    potstill.train("kd", **few, compile="always", run="few")
    needed = "it takes 128 response tokens in a micro-batch, all of which every term counts"
    assert f"nothing of the stream data was compiled: {needed}" in capsys.readouterr().err
    potstill.train("taid", **SMALL | {"batch": 16, "budget.steps": 2}, compile="always", run="changing")
    assert "terms of the stream data are left to autograd: they change from step to step" in capsys.readouterr().err


def test_compiling_is_not_training(workspace: Path, in_one: list[bool]) -> None:
    """Functions are there before the first step is, and take no time from it."""
    potstill.train("kd", **COMPILED | {"budget.steps": 3}, compile="always", run="timed")
    cost = json.loads((Path("runs/timed") / "cost.json").read_text())
    assert cost["compiled_blocks"] >= 3
    assert 0 < cost["training_s"] < cost["compiling_s"]
