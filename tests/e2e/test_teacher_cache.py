"""Runs whose teacher's words are kept: the same student as with a live one, after a kill and by two processes too."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import potstill as package
from potstill.errors import CacheError, ConfigError
from potstill.teachers.local import LocalTeacher
from tests import tiny
from tests.e2e.conftest import SMALL, Command, as_arguments
from tests.killing import Server, parting, prepare, result

# 34 rows are trained on, four at a time: the second epoch begins in the ninth step.
STEPS, SECOND_EPOCH = 14, 9
QUICK = SMALL | {
    "budget.steps": STEPS,
    "checkpoint.every": 2,
    "evaluation.max_examples": 2,
    "evaluation.generate_examples": 1,
    "evaluation.leave_out": ["samples", "untouched"],
    "optimizer.learning_rate": 1e-2,
    "student.freeze_embeddings": False,
}
EXACT = {"teacher.cache": {"when": "auto", "form": "states"}}


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "student" / "model.safetensors").read_bytes()).hexdigest()


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def train(name: str, **settings: Any) -> Path:
    return package.train("kd", run=name, **(QUICK | settings)).path


def test_states_kept_as_they_are_make_the_same_student_bitwise(workspace: Path) -> None:
    """Row by row, so that the live teacher reads each in the company in which it was kept: none."""
    live = train("live", **{"batch.micro_size": 1})
    kept = train("kept", **{"batch.micro_size": 1}, **EXACT)
    assert sha256(kept) == sha256(live)
    assert losses(kept) == losses(live)
    cost = json.loads((kept / "cost.json").read_text())
    count = cost["teacher_cache"]["data"]
    assert (count["asked"], count["read"]) == (34, 4 * STEPS - 34)
    assert cost["teacher_tokens"] == count["asked_tokens"]
    less = json.loads((live / "cost.json").read_text())["flops"] - cost["flops"]
    assert less > 0  # what the teacher did not do again


@pytest.mark.parametrize("frozen", [True, False])
def test_a_student_that_was_cut_shares_its_frozen_head(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    shared: list[bool] = []
    share = LocalTeacher.share_head
    monkeypatch.setattr(LocalTeacher, "share_head", lambda *given: shared.append(share(*given)) or shared[-1])
    train("shared", **{"student.freeze_embeddings": frozen}, **EXACT)
    assert shared == [frozen]


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"teacher.cache": "auto"}, 1e-3),
        ({"teacher.cache": {"when": "auto", "form": "logits"}}, 1e-5),
        ({"signal": "top_k", "teacher.cache": "auto"}, 1e-3),
        ({"signal": "sampled", "teacher.cache": "auto"}, 1e-5),
    ],
)
def test_each_form_trains_as_the_live_teacher_does(workspace: Path, settings: dict[str, Any], tolerance: float) -> None:
    live = train("live", **{key: value for key, value in settings.items() if key != "teacher.cache"})
    kept = train("kept", **settings)
    assert losses(kept) == pytest.approx(losses(live), rel=tolerance)
    assert losses(kept)[0] > losses(kept)[-1]
    again = train("again", **settings)  # all of it is there now
    assert losses(again) == pytest.approx(losses(kept), rel=tolerance)
    cost = json.loads((again / "cost.json").read_text())
    assert (cost["teacher_cache"]["data"]["asked"], cost["teacher_tokens"]) == (0, 0)
    assert cost["teacher_cache_s"] > 0


def test_the_teacher_is_let_go_in_the_second_epoch_and_comes_back_to_be_measured_with(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.teachers.local import LocalTeacher
    from potstill.training import trainer

    steps, let_go_at = [0], []
    step, unload = trainer.train_step, LocalTeacher.unload

    def counting(*arguments: Any, **keywords: Any) -> Any:
        steps[0] += 1
        return step(*arguments, **keywords)

    def noting(teacher: LocalTeacher) -> bool:
        model = weakref.ref(teacher.family.model) if teacher.is_loaded else None
        went = unload(teacher)
        if went:
            let_go_at.append(steps[0])
            assert model is not None
            assert model() is None  # nothing else holds it
        return went

    monkeypatch.setattr(trainer, "train_step", counting)
    monkeypatch.setattr(LocalTeacher, "unload", noting)
    train("first", **EXACT)
    # With the first validation after the first epoch, which is at its end; the one before had asked already.
    assert let_go_at == [10]
    live = train("live")
    assert let_go_at == [10]
    assert (live / "eval" / "student_after.json").exists()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.stop()


STEP, ADD = "potstill.training.trainer:train_step", "potstill.teachers.cache.store:Store.add"
METHODS: dict[str, dict[str, Any]] = {
    "kd": EXACT,
    "seqkd": {"teacher_text": {"max_new_tokens": 6}, "signal": "sampled", "teacher.cache": "auto"},
    "distillm": {
        "replay": {"student_share": 0.8, "capacity": 4, "tolerance": 0.0, "rollout": {"max_new_tokens": 6}},
        **EXACT,
    },
}


@pytest.mark.parametrize("method", ["kd", "distillm"])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(workspace: Path, server: Server, method: str) -> None:
    """In the first epoch, while rows are written, and in the second; the work that is counted is the same, too."""
    settings = QUICK | METHODS[method]
    whole = prepare(workspace, "whole")
    assert server.run(method, whole, settings) == 0, server.log.read_text()
    expected = result(whole)
    assert [line["step"] for line in expected[1] if "train/loss" in line] == list(range(1, STEPS + 1))
    for number, fault in enumerate([(STEP, 5), (ADD, 19), (STEP, SECOND_EPOCH + 2)]):
        folder = prepare(workspace, f"killed-{number}")
        status = server.run(method, folder, settings, fault=fault)
        assert os.WIFSIGNALED(status), (fault, server.log.read_text())
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert server.run(method, folder, resume=True) == 0, (fault, server.log.read_text())
        assert not parting(result(folder), expected), fault
        assert not (folder / "runs" / "crash" / "replayed").exists()


def test_a_run_that_goes_on_is_not_led_by_what_another_has_written_meanwhile(workspace: Path, server: Server) -> None:
    """Another run with the same teacher and rows fills the cache while this one is dead."""
    settings = QUICK | EXACT
    whole, folder = prepare(workspace, "whole"), prepare(workspace, "killed")
    assert server.run("kd", whole, settings) == 0, server.log.read_text()
    assert os.WIFSIGNALED(server.run("kd", folder, settings, fault=(STEP, 5)))
    os.chdir(folder)
    package.train("kd", run="other", **settings)
    assert server.run("kd", folder, resume=True) == 0, server.log.read_text()
    assert not parting(result(folder), result(whole))


def test_two_processes_equal_one_and_read_what_the_other_has_written(workspace: Path, potstill: Command) -> None:
    # Two rows a step: 17 steps are an epoch, and none of them has rows of two.
    settings = QUICK | EXACT | {"dtype": "float64", "checkpoint.every": 20, "budget.steps": 20, "batch": 2}
    found = {}
    for name, processes, micro in (("one", 1, 2), ("two", 2, 1)):
        own = {"teacher.cache.folder": name, "teacher.cache.when": "auto", "teacher.cache.form": "states"}
        base = {key: value for key, value in settings.items() if key != "teacher.cache"}
        arguments = as_arguments(base | own | {"run": name, "batch.micro_size": micro})
        done = potstill("train", "kd", *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        run = workspace / "runs" / name
        weights = run / "checkpoints" / "step-000020" / "student" / "model.safetensors"
        found[name] = losses(run), load_file(weights), json.loads((run / "cost.json").read_text())
    assert found["two"][0] == pytest.approx(found["one"][0], abs=1e-9)
    for key, value in found["one"][1].items():
        torch.testing.assert_close(found["two"][1][key], value, rtol=0, atol=1e-9, msg=key)
    assert found["two"][2]["teacher_tokens"] == found["one"][2]["teacher_tokens"]
    told = json.loads(potstill("cache", "info", "two", "--format", "json").stdout)
    assert (told[0]["rows"], told[0]["parts"], told[0]["unfinished_parts"]) == (34, 2, 0)


# --- Built beforehand -------------------------------------------------------------------------------------------------


def test_a_cache_that_was_built_is_read_and_nothing_is_asked(
    workspace: Path, potstill: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = as_arguments({key: value for key, value in QUICK.items() if not key.startswith("evaluation.leave")})
    built = json.loads(potstill("cache", "build", "kd", *arguments, "--format", "json").stdout)
    assert [(one["stream"], one["rows"], one["asked"], one["there"]) for one in built] == [("data", 34, 34, 0)]
    again = json.loads(potstill("cache", "build", "kd", *arguments, "--format", "json", processes=2).stdout)
    assert [(one["asked"], one["there"]) for one in again] == [(0, 34)]
    live, kept = train("live"), train("kept", **{"teacher.cache": "auto"})
    assert json.loads((kept / "cost.json").read_text())["teacher_cache"]["data"]["asked"] == 0
    assert losses(kept) == pytest.approx(losses(live), rel=1e-3)
    assert re.search(r"says to data \d+ rows were read and 0 asked", capsys.readouterr().err)


def test_a_build_leaves_nothing_but_the_cache(workspace: Path, potstill: Command) -> None:
    """Of a method with a replay buffer too, which is kept while a run trains."""
    before = {file.name for file in workspace.iterdir()}
    package.build_cache("distillm", **{key: value for key, value in QUICK.items() if key.split(".")[0] != "signal"})
    assert {file.name for file in workspace.iterdir()} - before == {"caches"}


def test_two_processes_build_one_cache(workspace: Path, potstill: Command) -> None:
    arguments = as_arguments({"teacher": "teacher", "student.keep_layers": 2, "data": "rows.jsonl", "dtype": "float32"})
    done = potstill("cache", "build", "kd", *arguments, "--format", "json", processes=2)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)
    assert (one["rows"], one["asked"]) == (34, 34)
    (told,) = json.loads(potstill("cache", "info", "--format", "json").stdout)
    assert (told["rows"], told["parts"]) == (34, 2)
    assert potstill("cache", "verify").returncode == 0


def test_another_folder_of_the_cache_is_as_good(workspace: Path) -> None:
    """Copied to another machine, and the rows and the teacher by other names."""
    package.build_cache("kd", **(QUICK | {"teacher.cache.folder": "made"}))
    (workspace / "elsewhere").mkdir()
    for old, new in (("made", "moved"), ("rows.jsonl", "elsewhere/other.jsonl")):
        (workspace / old).rename(workspace / new)
    os.symlink((workspace / "teacher").resolve(), workspace / "elsewhere" / "model")
    moved = {"teacher": "elsewhere/model", "data": "elsewhere/other.jsonl"}
    cache = {"teacher.cache.when": "auto", "teacher.cache.folder": "moved"}
    run = train("moved", **moved, **cache)
    assert json.loads((run / "cost.json").read_text())["teacher_cache"]["data"]["asked"] == 0


def test_stages_share_what_their_teacher_has_said(workspace: Path) -> None:
    """An assistant is taught by the teacher, and a student by both, on the same rows: the teacher says it once."""
    own = {"assistants": [3], "learner": 2, "teacher": "teacher", "direct": "none", "gate": False, "drop": 0.0}
    everywhere = {
        f"all.{key}": value
        for key, value in QUICK.items()
        if key.partition(".")[0] in ("data", "budget", "batch", "checkpoint", "evaluation")
    }
    cache = {"assistant.teacher.cache": "auto", "student.teachers.teacher.cache": "auto"}
    run = package.train("dgkd", run="chain", device="cpu", dtype="float32", **own, **everywhere, **cache)
    first, last = (json.loads((one.path / "cost.json").read_text())["teacher_cache"] for one in run.stages)
    assert {name: count["asked"] for name, count in first.items()} == {"data": 34}
    assert {name: count["asked"] for name, count in last.items()} == {"data_teacher": 0}
    assert last["data_teacher"]["read"] > 34


def test_mistakes_are_told_with_the_way_out(workspace: Path, potstill: Command) -> None:
    train("first", **{"teacher.cache": {"when": "auto", "folder": "mine"}})
    with pytest.raises(CacheError, match="states is 'float32', and 'bfloat16' there"):
        train("second", **{"teacher.cache": {"when": "auto", "folder": "mine", "form": "states"}})
    foreign = {"teacher.cache.when": "auto", "teacher.cache.folder": "mine", "teacher.cache.form": "states"}
    arguments = as_arguments({key: value for key, value in QUICK.items() if key != "evaluation.leave_out"} | foreign)
    refused = potstill("train", "kd", *arguments)
    assert "is the cache of something else" in refused.stderr
    assert "measuring" not in refused.stderr  # before anything was
    unwritable = potstill("train", "kd", *arguments, "teacher.cache.when=always", "teacher.cache.folder=rows.jsonl/c")
    assert "rows.jsonl/c cannot be written" in unwritable.stderr
    assert "measuring" not in unwritable.stderr
    with pytest.raises(ConfigError, match="nothing that it says can be kept"):
        train("third", **{"streams": [{"terms": ["cross_entropy"]}], "teacher.cache": "always"})
    assert not (workspace / "runs" / "second").exists()
    for wrong in (["info", "nowhere"], ["verify", "rows.jsonl"], ["prune", "nowhere"]):
        done = potstill("cache", *wrong)
        assert done.returncode == 2, (wrong, done.stderr)
        assert "fix:" in done.stderr
        assert "Traceback" not in done.stderr
    rows = next((workspace / "mine").glob("*.rows"))
    rows.write_bytes(rows.read_bytes()[:-5] + b"wrong")
    damaged = potstill("cache", "verify", "mine")
    assert damaged.returncode == 1
    assert "1 of 34 rows are not what was written" in damaged.stdout
    run = train("fourth", **{"teacher.cache": {"when": "auto", "folder": "mine"}})  # and asks about that one again
    assert json.loads((run / "cost.json").read_text())["teacher_cache"]["data"]["asked"] == 1
    assert "would go" in potstill("cache", "prune", "mine").stdout
    assert (workspace / "mine").exists()
    assert "removed" in potstill("cache", "prune", "mine", "--yes").stdout
    assert not (workspace / "mine").exists()


def test_a_cache_of_a_base_without_its_adapter(workspace: Path) -> None:
    pytest.importorskip("peft")
    tiny.save(tiny.llama(3, layers=2), workspace / "own")
    settings = {key: value for key, value in QUICK.items() if not key.startswith("student") and key != "teacher"}
    own = {
        "student": "own",
        "student.adapter": {"kind": "lora", "rank": 4},
        "teacher": {"kind": "base", "cache": "auto"},
    }
    run = package.train("kd", run="base", **settings, **own)
    assert json.loads((run.path / "cost.json").read_text())["teacher_cache"]["data"]["asked"] == 34
