"""Recipes tried without their models and data: every stage runs, what stood in is said, and nothing is left."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from potstill import api, cli
from potstill.checks.dry_run import Tried
from potstill.errors import ConfigError, DataError, ModelError, Stopped
from potstill.models import architectures
from tests import tiny
from tests.e2e.conftest import ROOT, SMALL

HERE = {"dtype": "float32", "device": "cpu"}
# flan-t5-small, but for its width and vocabulary: the same layers, and seconds instead of minutes.
NARROW = architectures.KNOWN["google/flan-t5-small"] | {
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_heads": 4,
    "vocab_size": 1500,
}


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where dry runs are tried, a folder of its own; no data sets are here, and no hub is asked."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("POTSTILL_DATA", str(folder / "no-data"))
    monkeypatch.setitem(architectures.KNOWN, "example/narrow-t5", NARROW)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check(tried: list[Tried]) -> None:
    for stage in tried:
        assert stage.terms
        assert all(math.isfinite(value) for value in (stage.loss, *stage.terms.values()))
        assert stage.seconds > 0


def test_models_and_rows_that_are_here(workspace: Path, scratch: Path) -> None:
    before = files(workspace)
    (tried,) = api.dry_run("kd", **(SMALL | {"budget.steps": 800, "baseline": "equal_time_sft"}))
    check([tried])
    whole = sum(p.numel() for p in tiny.llama(1, layers=4).parameters())
    teacher, student = tried.models
    assert (teacher.name, teacher.parameters, teacher.layers) == ("teacher", whole, {"decoder": 4})
    assert (student.name, student.layers) == ("cut from teacher", {"decoder": 2})
    assert tried.memory["teacher"] == 4 * whole
    assert tried.stood_in == (("weights of teacher", "random ones: 2 of 4 decoder layers"),)
    assert tried.terms.keys() == {"data/forward_kl_nats"}
    assert files(workspace) == before
    assert files(scratch) == set()


def test_a_teacher_that_is_held_elsewhere_is_counted_so_and_tried_here(workspace: Path, scratch: Path) -> None:
    """Nothing of it need be on this machine: no such GPU, and no package for its bits."""
    held = {"teacher.device": "cuda:7", "teacher.quantise": "nf4"}
    (tried,) = api.dry_run("kd", **(SMALL | held))
    check([tried])
    (plain,) = api.dry_run("kd", **SMALL)
    assert plain.memory["teacher"] / 8 < tried.memory["teacher"] < plain.memory["teacher"] / 1.1
    assert (
        "teacher with device cuda:7, quantise nf4",
        "the same beside the student, in its precision",
    ) in tried.stood_in


def test_a_curriculum_and_a_distillation_of_models_that_are_not_here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    models = {"student": "example/narrow-t5", "teacher": "example/narrow-t5"}
    tried = api.dry_run("anli_minillm", **models, **HERE)
    check(tried)
    assert [(stage.stage, stage.method) for stage in tried] == [
        *(("r1", "sft"), ("r2", "sft"), ("r3", "sft"), ("minillm", "minillm"))
    ]
    assert [stage.models[-1].name for stage in tried] == [
        *("example/narrow-t5", "student of r1", "student of r2", "student of r3")
    ]
    first, *_, last = tried
    share = 0.9 * first.terms["data/label_nats"] + 0.1 * first.terms["data/reason_nats"]
    assert first.loss == pytest.approx(share)
    assert last.terms.keys() == {"rollouts/policy_gradient"}
    assert [what for what, _ in first.stood_in] == [
        "rows of anli:r1_train",
        "rows of anli:r1_dev",
        "weights of example/narrow-t5",
        "config of example/narrow-t5",
        "tokenizer of example/narrow-t5",
    ]
    assert files(tmp_path) == set()


def test_labels_and_rationales_for_a_real_architecture(tmp_path: Path, monkeypatch: Any, scratch: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"student": "google/t5-v1_1-small", "data": "svamp:train", "data.annotations": "palm"}
    (tried,) = api.dry_run("step_by_step", **settings, **HERE)
    check([tried])
    assert tried.models[0].parameters == 76_961_152
    assert tried.terms.keys() == {"label/cross_entropy_nats", "rationale/cross_entropy_nats"}
    assert ("annotations palm", "labels and rationales of those rows") in tried.stood_in
    assert files(scratch) | files(tmp_path) == set()


@pytest.mark.parametrize("variant", ["single_task", "shuffled_rationales", "input_reconstruction"])
def test_every_view_of_rows_that_are_not_here(variant: str) -> None:
    settings = {"student": "example/narrow-t5", "data": "gone.jsonl", "evaluation.accuracy": "equation"}
    check(api.dry_run("step_by_step", variant=variant, **settings, **HERE))


LINES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 1000, "n_embd": 32, "n_layer": 4, "n_head": 4, "eos_token_id": 999}
    | {"bos_token_id": 999},
    "opt": {"model_type": "opt", "vocab_size": 1000, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64}
    | {"num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1},
    "llama": {"model_type": "llama", "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64}
    | {"num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_makes_another_architecture_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(architectures.KNOWN, name, LINES[name])
    settings = {"teacher": name, "student.keep_layers": 3, "data": "gone.jsonl", "data.heldout": "gone-too.jsonl"}
    (tried,) = api.dry_run("minillm", plain_text="datasets:nobody/text", **settings, **HERE)
    check([tried])
    assert "text of datasets:nobody/text" in dict(tried.stood_in)
    assert [model.layers for model in tried.models] == [{"decoder": 4}, {"decoder": 3}]


def test_the_teachers_text_is_not_filtered_out() -> None:
    settings = {"teacher": "example/narrow-t5", "student": "example/narrow-t5", "data": "gone.jsonl"}
    check(api.dry_run("seqkd", filters=["unfinished"], **settings, **HERE))


def test_a_device_that_is_not_here_is_stood_for(workspace: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("the device is here")
    (tried,) = api.dry_run("kd", **(SMALL | {"device": "cuda"}))
    assert ("device cuda", "cpu") in tried.stood_in


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_named_with_its_stage(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="stage minillm: nobody/nothing: it is not on this machine") as error:
        api.dry_run("anli_minillm", student="example/narrow-t5", teacher="nobody/nothing")
    assert "hf download nobody/nothing" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "kind", "cause"),
    [
        ({"data.max_prompt_tokens": 1}, DataError, "stage student: .*"),
        ({"student.keep_layers": 5}, ModelError, "stage student: keep_layers is 5 but the model has 4 layers"),
        ({"streams.0.signal": {"name": "top_k", "k": 400}}, ConfigError, "stage student: signal.k is 400"),
        ({"evaluation.max_new_tokens": "many"}, ConfigError, "max_new_tokens"),
    ],
)
def test_what_cannot_work_keeps_nothing(
    settings: dict[str, Any], kind: type[Exception], cause: str, workspace: Path, scratch: Path
) -> None:
    before = files(workspace)
    with pytest.raises(kind, match=cause):
        api.dry_run("kd", **(SMALL | settings))
    assert files(workspace) == before
    assert files(scratch) == set()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        api.dry_run("kd")


def test_what_a_killed_one_left_is_removed_and_a_living_ones_is_not(workspace: Path, scratch: Path) -> None:
    import platform

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, living = (scratch / f"potstill-dry-run.{platform.node()}.{pid}.x" for pid in (gone.pid, os.getpid()))
    for folder in (left, living):
        (folder / "model-0").mkdir(parents=True)
    api.dry_run("kd", **SMALL)
    assert files(scratch) == {living.name, f"{living.name}/model-0"}


def test_a_signal_leaves_nothing(workspace: Path, scratch: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = ["train", "kd", "--dry-run", *(f"{key}={value}" for key, value in SMALL.items())]
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill", *words], cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True
    )
    for _ in range(1200):
        if any(scratch.glob("potstill-dry-run.*/run")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert files(scratch) == set()
    assert "nothing of it is kept" in said


def test_stopping_is_said_to_keep_nothing(workspace: Path, monkeypatch: Any) -> None:
    from potstill import stage

    def stopped(*_: Any, **__: Any) -> None:
        raise Stopped("stopped outside training, with everything saved", "go on with `potstill resume`", exit_code=75)

    monkeypatch.setattr(stage, "run", stopped)
    with pytest.raises(Stopped, match="nothing of it is kept") as error:
        api.dry_run("kd", **SMALL)
    assert error.value.exit_code == 75
    assert "resume" not in str(error.value)


# --- the command line -------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command line in this process, which has imported everything already."""
    monkeypatch.setattr(sys, "argv", ["potstill", "train", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("form", ["human", "json"])
def test_the_command_prints_what_was_tried(form: str, workspace: Path, monkeypatch: Any, capsys: Any) -> None:
    words = [f"{key}={value}" for key, value in SMALL.items()]
    assert command(monkeypatch, "kd", "--dry-run", "--format", form, *words) == 0
    said = capsys.readouterr().out
    assert not (workspace / "runs").exists()
    if form == "json":
        (stage,) = json.loads(said)
        assert stage["stood_in"] == [["weights of teacher", "random ones: 2 of 4 decoder layers"]]
        assert stage["terms"]["data/forward_kl_nats"] == stage["loss"]
        return
    assert "stage student (kd)" in said
    assert "stood in  weights of teacher: random ones: 2 of 4 decoder layers" in said
    assert "in all" in said
    assert said.endswith("nothing is kept\n")


def test_a_mistake_ends_with_2(monkeypatch: Any, capsys: Any) -> None:
    assert command(monkeypatch, "kd", "--dry-run", "teacher=nobody/nothing") == 2
    assert capsys.readouterr().err.startswith("error: stage student: nobody/nothing")


def test_rows_with_reasons_stand_in_for_starter_rows_that_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.t5(1), tmp_path / "t5")
    (tried,) = api.dry_run("step_by_step", student="t5")
    assert any("starter" in what for what, _ in tried.stood_in)
    assert tried.stage == "student"
