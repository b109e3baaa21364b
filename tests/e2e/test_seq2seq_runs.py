"""Encoder-decoder models from the command's settings to the report; stopped in between and resumed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import potstill as package
from potstill.checks import doctor
from potstill.checks.selftest import selftest
from potstill.errors import ConfigError, ModelError, TeacherError
from potstill.evaluation.suites.subject import open_subject
from potstill.models.loading import load
from potstill.recipes import METHODS as METHODS_BY_NAME
from potstill.run_models import model_named
from potstill.training import trainer
from tests import tiny
from tests.e2e.conftest import SMALL

QUICK = SMALL | {
    "budget.steps": 2,
    "batch.size": 2,
    "checkpoint.every": 2,
    "evaluation.max_examples": 2,
    "evaluation.generate_examples": 1,
    "optimizer.learning_rate": 1e-2,
}
METHODS: dict[str, dict[str, Any]] = {
    "kd": {},
    "minillm": {"num_updates_per_batch": 2, "batches_per_rollout": 2, "max_new_tokens": 6},
    "gkd": {"student_share": 1.0, "rollout.max_new_tokens": 6},
    "distillm": {"replay": {"student_share": 0.8, "capacity": 4, "rollout": {"max_new_tokens": 6}}},
    "seqkd": {"max_new_tokens": 6},
    "skd": {"max_new_tokens": 6},
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save(tiny.t5(1, layers=3, encoder_layers=4), folder / "t5")
    tiny.save(tiny.bart(1, layers=3), folder / "bart")
    causal = tiny.llama(1)
    causal.save_pretrained(folder / "causal")
    tiny.tokenizer(kind="t5").save_pretrained(folder / "causal")
    for name, model in (("plain_t5", tiny.t5(2)), ("plain_llama", tiny.llama(3))):  # one tokenizer that frames nothing
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    tiny.data_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(method: str, teacher: str = "t5", **settings: Any) -> package.Run:
    return package.train(method, **QUICK | {"teacher": teacher} | METHODS.get(method, {}) | settings)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_trains_a_t5(method: str) -> None:
    run = train(method)
    lines = [line for line in run.metrics() if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["optim/grad_norm"] > 0 for line in lines)
    student = AutoModelForSeq2SeqLM.from_pretrained(run.student)
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 2)
    before = load(model_named(f"{run.name}:untouched"))
    changed = [
        not torch.equal(value, before.model.state_dict()[key]) for key, value in student.float().state_dict().items()
    ]
    assert any(changed)
    assert (run.path / "report.html").stat().st_size > 1000
    after = json.loads((run.path / "eval" / "student_after.json").read_text())
    assert after["forward_kl_nats"] > 0


@pytest.mark.usefixtures("place")
def test_a_bart_and_a_student_that_is_not_cut() -> None:
    run = train("kd", "bart", **{"student.keep_encoder_layers": 1})
    made = run.read("student")
    assert (len(made["encoder_kept_layers"]), len(made["kept_layers"])) == (1, 2)
    card = (run.student / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSeq2SeqLM.from_pretrained(folder)" in card
    assert "AutoModelForCausalLM" not in card
    settings = {key: value for key, value in QUICK.items() if key != "student.keep_layers"}
    again = package.train("kd", **settings | {"teacher": "bart", "student": str(run.student)})
    assert again.read("student") == {"from": str(run.student), "kind": "encoder-decoder"}


@pytest.mark.usefixtures("place")
def test_a_students_prompts_are_sources_whole() -> None:
    """What training feeds is what the saved tokenizer makes of a source text."""
    run = train("kd")
    tokenizer = AutoTokenizer.from_pretrained(run.student)
    student = AutoModelForSeq2SeqLM.from_pretrained(run.student).eval().double()
    subject = open_subject(str(run.student))
    written = subject.write(["Write a story."], ["x"], subject.decoding(6, temperature=0.0), seed=1)
    (nats, count) = subject.nats(["Write a story."], ["The goat"])[0]
    ids = tokenizer("Write a story.", return_tensors="pt").input_ids
    labels = tokenizer(text_target="The goat", return_tensors="pt").input_ids[:, :-1]
    assert ids[0, -1] == tokenizer.eos_token_id
    own = student.generate(ids, max_new_tokens=6, do_sample=False)
    assert written == [tokenizer.decode(own[0], skip_special_tokens=True).strip()]
    assert count == labels.shape[1]
    assert nats == pytest.approx(student(input_ids=ids, labels=labels).loss.item() * count, rel=1e-4)


def outcome(run: package.Run) -> tuple[str, list[dict[str, float]]]:
    sha = hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()
    return sha, [{k: v for k, v in line.items() if not k.startswith("time/")} for line in run.metrics()]


@pytest.mark.usefixtures("place")
def test_resumed_in_the_middle_of_a_rollout_is_bitwise_the_uninterrupted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"budget.steps": 4, "checkpoint.every": 1}
    expected = outcome(train("minillm", run="whole", **settings))
    own, steps = trainer.train_step, []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(1)
        return own(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_step", stopping)
        with pytest.raises((KeyboardInterrupt, package.PotstillError)):
            train("minillm", run="stopped", **settings)
    assert not (Path("runs") / "stopped" / "student").exists()
    assert outcome(package.resume("stopped")) == expected


@pytest.mark.usefixtures("place")
def test_a_causal_teacher_of_a_tokenizer_with_an_end_is_told_that_text_goes_across() -> None:
    with pytest.raises(
        TeacherError, match=r"(?s)is causal and the student encoder-decoder.*student.model=causal.*annotate"
    ):
        train("kd", "causal", **{"student.model": "t5"})
    with pytest.raises(TeacherError, match="the teacher is causal and the student encoder-decoder"):
        package.evaluate("t5", data="rows.jsonl", teacher="causal", answers=False)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("method", ["kd", "skd"])
def test_models_of_two_kinds_with_one_tokenizer_that_frames_nothing_share_logits(method: str) -> None:
    """Each reads a prompt in its own way, also where both write: in the run as it does alone."""
    rows = [{"prompt": f"Who ate {n} hats?", "response": "The goat."} for n in range(3)]
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for teacher, student in (("plain_llama", "plain_t5"), ("plain_t5", "plain_llama")):
        run = train(method, teacher, **{"student.model": student, "data.heldout": "other.jsonl"})
        losses = [line["train/loss"] for line in run.metrics() if "train/loss" in line]
        assert len(losses) == 2
        assert all(loss > 0 for loss in losses)
        for name, model in (("teacher", teacher), ("student_before", f"{run.name}:untouched")):
            alone = package.evaluate(model, data="other.jsonl", answers=False, **{"evaluation.max_examples": 2})
            assert run.evaluations()[name]["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-4)


@pytest.mark.usefixtures("place")
def test_settings_that_do_not_fit_are_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match=r"(?s)keep_encoder_layers is 1, and the model has no encoder.*fix: leave"):
        train("kd", "plain_llama", **{"student.keep_encoder_layers": 1})
    with pytest.raises(ConfigError, match=r"(?s)engine is vllm, and t5 is an encoder-decoder model.*fix: set engine"):
        train("gkd", **{"rollout.engine": "vllm"})


@pytest.mark.usefixtures("place")
def test_a_row_longer_than_a_barts_positions_is_refused_before_training() -> None:
    rows = [row | {"prompt": row["prompt"] + " The goat ate the hat." * 20} for row in tiny.rows()]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ModelError, match="128 positions for a source and 128 for a target, and row"):
        train("kd", "bart", **{"data.max_prompt_tokens": 300})
    train("kd", "t5", **{"data.max_prompt_tokens": 300})


@pytest.mark.usefixtures("place")
def test_selftest_and_doctor_have_nothing_to_say_against_a_t5() -> None:
    settings = {"teacher": "t5", "student.keep_layers": 2, "data": "rows.jsonl", "device": "cpu"}
    checks = list(selftest("kd", settings, METHODS_BY_NAME, allow_remote_code=False))
    assert len(checks) > 40
    assert all(check.passed for check in checks)
    findings = doctor.recipe("kd", settings, METHODS_BY_NAME, allow_remote_code=False)
    assert not [finding for finding in findings if finding.status == "bad"]
    assert "<end> >>> " in str(findings[-1])


def test_evaluation_outside_a_run(place: Path) -> None:
    short = {"evaluation.max_examples": 4, "evaluation.generate_examples": 1, "evaluation.max_new_tokens": 4}
    figures = package.evaluate("t5", data="rows.jsonl", teacher="t5", **short)
    assert figures["forward_kl_nats"] == pytest.approx(0, abs=1e-6)
    assert figures["num_parameters"] == sum(v.numel() for v in load_file(place / "t5" / "model.safetensors").values())
