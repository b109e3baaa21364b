"""Runs whose student has an adapter: what they write, how they go on, and who may teach them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import potstill
from potstill.errors import CheckpointError, ConfigError, ModelError
from potstill.models import adapters
from potstill.models.families import family_of
from potstill.models.loading import load
from potstill.run import Run
from potstill.run_models import model_named
from tests import tiny
from tests.e2e.conftest import SMALL

peft = pytest.importorskip("peft", reason="needs the extra adapters")

OWN = {name: value for name, value in SMALL.items() if name != "student.keep_layers"} | {
    "budget.steps": 6,
    "checkpoint.best_by": "perplexity",
    "evaluation.generate_examples": 1,
    "evaluation.max_examples": 2,
    "evaluation.leave_out": "samples",
}
LORA = {"student.adapter": "lora", "student.adapter.rank": 4, "optimizer.learning_rate": 1e-2}
WHOLE = OWN | LORA | {"student": "other"}
CUT = OWN | LORA | {"student.keep_layers": 2}
QUICK = {"budget.steps": 2, "checkpoint.every": 2}
BATCH = tiny.batch([(5, 4), (3, 6)])


@pytest.fixture(autouse=True)
def other(workspace: Path) -> Path:
    """A second model of the teacher's tokenizer, with a chat template and a generation config of its own."""
    model = tiny.llama(2, layers=4)
    model.generation_config = GenerationConfig(top_k=7, do_sample=True, eos_token_id=0, pad_token_id=0)
    return tiny.save(model, workspace / "other", chat=True)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    family = family_of(model.eval())
    return family.head(family(BATCH))


def sha(folder: Path) -> str:
    (file,) = folder.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if "time/" not in key} for line in run.metrics()]


def test_the_export_is_a_plain_model_that_says_what_the_adapter_says(workspace: Path) -> None:
    (workspace / "teacher").unlink()
    tiny.save(tiny.llama(1, layers=4), workspace / "teacher", chat=True)
    run = potstill.train("kd", **WHOLE, run="first")
    files = {file.name for file in run.student.iterdir()}
    assert not any("adapter" in name for name in files)
    student = AutoModelForCausalLM.from_pretrained(run.student)
    assert student.generation_config.top_k == 7
    assert AutoTokenizer.from_pretrained(run.student).chat_template == tiny.tokenizer(chat=True).chat_template
    told = json.loads((run.adapter / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str((workspace / "other").resolve())
    base = AutoModelForCausalLM.from_pretrained(told["base_model_name_or_path"])
    untouched = logits(base)
    adapted = peft.PeftModel.from_pretrained(base, run.adapter).get_base_model()
    torch.testing.assert_close(logits(student), logits(adapted), rtol=0, atol=1e-5)
    assert (logits(student) - untouched).abs().max() > 0.01
    torch.testing.assert_close(logits(load(str(run.adapter)).model), logits(student), rtol=0, atol=1e-5)
    made = run.read("student")["adapter"]
    assert (made["rank"], made["of_parameters"]) == (4, sum(p.numel() for p in student.parameters()))
    assert {row["num_parameters"] for row in run.evaluations().values()} == {made["of_parameters"]}
    assert "a LoRA adapter of rank `4`" in (run.student / "README.md").read_text()


def test_a_checkpoint_has_the_adapter_alone_and_the_best_one_is_exported(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations of the untouched student, then after steps 3 and 6."""
    from potstill import stage

    job, found = stage._job, iter([9.0, 7.0, 8.0])
    monkeypatch.setattr(stage, "_job", lambda *a: replace(job(*a), validate=lambda: {"perplexity": next(found)}))
    run = potstill.train("kd", **WHOLE, run="first", **{"checkpoint.keep_last": 5})
    saved = sorted(run.checkpoints.glob("step-*"))
    for folder in saved:
        names = {file.name for file in (folder / "student").iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "base.json"}
        weights = (folder / "student" / "adapter_model.safetensors").stat().st_size
        assert weights < (run.student / "model.safetensors").stat().st_size / 2
    best = run.checkpoints / "best" / "student"
    assert sha(best) == sha(run.adapter) == sha(saved[0] / "student")
    torch.testing.assert_close(logits(load(str(run.adapter)).model), logits(load(str(run.student)).model))
    assert len({sha(folder / "student") for folder in saved}) == len(saved) == 2


def interrupted(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], at_step: int = 5) -> Run:
    """A run asked to stop at a step, as by SIGTERM."""
    from potstill.training import trainer

    advance = trainer._advance

    def then_signal(state: Any, *arguments: Any) -> None:
        advance(state, *arguments)
        if state.step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "_advance", then_signal)
        with pytest.raises(potstill.PotstillError, match=f"stopped after step {at_step}"):
            potstill.train("kd", **settings, run="stopped")
    return Run(Path("runs/stopped"))


RESUMED: dict[str, dict[str, Any]] = {
    "whole": WHOLE | {"student.adapter.dropout": 0.3},
    "cut": CUT,
    "taught_by_its_base": WHOLE | {"teacher": "base", "ce_weight": 0.5},
    "nf4": WHOLE | {"student": "wide", "student.adapter.quantise_base": "nf4"},  # not all CPUs read narrow ones aright
}


@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_is_bitwise_the_uninterrupted_run(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
        tiny.save(tiny.llama(2, layers=2, hidden=64), Path("wide"))
    settings = RESUMED[kind]
    whole = potstill.train("kd", **settings, run="whole")
    stopped = potstill.resume(interrupted(monkeypatch, settings))
    assert sha(stopped.student) == sha(whole.student)
    assert sha(stopped.adapter) == sha(whole.adapter)
    assert timeless(stopped) == timeless(whole)


def test_a_run_does_not_go_on_beside_another_base(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = interrupted(monkeypatch, WHOLE)
    tiny.llama(3, layers=4).save_pretrained(workspace / "other")
    with pytest.raises(CheckpointError, match="adapter of other, which has changed since"):
        potstill.resume(stopped)


def test_the_base_of_a_cut_student_is_kept_for_others(workspace: Path) -> None:
    run = potstill.train("kd", **CUT, run="first")
    told = json.loads((run.adapter / "adapter_config.json").read_text())
    assert (
        told["base_model_name_or_path"]
        == str(run.untouched.resolve())
        == str(Path(model_named("first:untouched")).resolve())
    )
    base = AutoModelForCausalLM.from_pretrained(run.untouched)
    teacher = load("teacher").model.state_dict()
    kept = run.read("student")["kept_layers"]
    assert torch.equal(
        base.state_dict()["model.layers.1.mlp.up_proj.weight"], teacher[f"model.layers.{kept[1]}.mlp.up_proj.weight"]
    )
    adapted = peft.PeftModel.from_pretrained(base, run.adapter).get_base_model()
    torch.testing.assert_close(logits(load(str(run.student)).model), logits(adapted), rtol=0, atol=1e-5)


def test_the_base_teaches_what_it_is_and_its_student_moves_away() -> None:
    run = potstill.train("kd", **WHOLE | {"teacher": "base", "ce_weight": 0.5}, run="first")
    teacher, before, after = (run.evaluations()[name] for name in ("teacher", "student_before", "student_after"))
    assert teacher["perplexity"] == before["perplexity"] != after["perplexity"]
    assert before["forward_kl_nats"] == 0 < after["forward_kl_nats"]
    # Measured again by itself after everything: the base in the folder is what taught.
    assert model_named("first:teacher") == "other"
    own = next(line for line in run.metrics() if "train/loss" in line)
    assert own["train/data/forward_kl_nats"] == pytest.approx(0, abs=1e-6)
    assert [line["train/data/forward_kl_nats"] for line in run.metrics() if "train/loss" in line][-1] > 1e-6


@pytest.mark.parametrize("method", ["minillm", "on_policy", "skd"])
def test_methods_in_which_the_student_writes_take_adapters_and_their_base(method: str) -> None:
    settings = WHOLE | QUICK | {"teacher": "base", "run": method}
    rollout = "max_new_tokens" if method in ("minillm", "skd") else "rollout.max_new_tokens"
    run = potstill.train(method, **settings | {rollout: 4})
    assert sha(run.adapter)
    assert model_named(f"{method}:teacher") == "other"


def test_an_adapters_folder_teaches_merged_and_another_adapter_learns_beside_the_same_base() -> None:
    first = potstill.train("kd", **WHOLE, run="first")
    again = WHOLE | QUICK | {"teacher": str(first.adapter), "run": "second"}
    second = potstill.train("kd", **again)
    # The same model, by its merged weights and by base and adapter.
    taught = second.evaluations()["teacher"]["perplexity"]
    assert taught == pytest.approx(first.evaluations()["student_after"]["perplexity"], rel=1e-5)
    assert second.evaluations()["student_before"]["perplexity"] == first.evaluations()["student_before"]["perplexity"]
    assert second.evaluations()["student_before"]["forward_kl_nats"] > 1e-4
    assert sha(second.adapter) != sha(first.adapter)


def test_an_adapter_on_what_an_earlier_stage_made() -> None:
    told = {"dtype": "float32", "device": "cpu", "stages": []}
    first = {"name": "first", "teacher": "teacher", "student": {"keep_layers": 2}}
    last = {"name": "second", "teacher": "base", "student": {"kind": "previous", "adapter": {"rank": 2}}}
    for models in (first, last):
        stream = {"terms": [{"objective": "forward_kl"}], "signal": "logits"}
        evaluation = {"max_examples": 2, "generate_examples": 1, "max_new_tokens": 4, "leave_out": "samples"}
        asked = {"data": "rows.jsonl", "budget": {"steps": 2}, "streams": [stream], "evaluation": evaluation}
        told["stages"].append(asked | models)  # type: ignore[attr-defined]
    Path("two.yaml").write_text(json.dumps(told))
    before, made = potstill.train("two.yaml", run="chain").stages
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(before.student.resolve())
    assert made.evaluations()["student_before"]["forward_kl_nats"] == 0
    assert made.evaluations()["teacher"]["perplexity"] == before.evaluations()["student_after"]["perplexity"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fresh": (OWN | {"student.kind": "fresh", "student.model": "other", "student.adapter": "lora"}, "is fresh"),
    "rank": (WHOLE | {"student.adapter.rank": 9}, "k_proj is only 8 wide"),
    "targets": (WHOLE | {"student.adapter.target_modules": "lm_head"}, "They have down_proj, gate_proj"),
    "base_without_adapter": (OWN | {"teacher": "base", "student": "other"}, "the student has none"),
    "base_of_a_cut_student": (CUT | {"teacher": "base"}, "the student is cut"),
    "float64": (WHOLE | {"student.adapter.quantise_base": "nf4", "dtype": "float64"}, "dtype is float64"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(what: str) -> None:
    if what == "float64":
        pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
    settings, said = REFUSED[what]
    with pytest.raises((ConfigError, ModelError), match=said):
        potstill.train("kd", **settings, run="bad")
    assert not list(Path("runs/bad").glob("eval/*"))


def test_an_engine_that_is_not_given_the_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match="engine vllm, which is not given an adapter's weights"):
        potstill.train("gkd", **WHOLE, run="bad", **{"rollout.engine": "vllm"})


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'potstill\[adapters\]'"):
        potstill.train("kd", **WHOLE, run="bad")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'potstill\[bitsandbytes\]'"):
        potstill.train("kd", **WHOLE, run="bad", **{"student.adapter.quantise_base": "nf4"})


def test_nothing_but_the_adapter_is_different_where_there_is_none() -> None:
    """A student without an adapter is checkpointed whole, as before."""
    run = potstill.train("kd", **SMALL, run="plain")
    assert (run.checkpoints / "best" / "student" / "model.safetensors").is_file()
    assert not run.adapter.exists()
    assert not adapters.is_adapted(load(str(run.student)).model)
