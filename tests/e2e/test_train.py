"""A whole run, small: what it leaves behind, and that what it says is so."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import potstill
from potstill import objectives
from potstill.errors import ConfigError, NumericsError, TeacherError
from potstill.run import Run
from potstill.teachers.local import LocalTeacher
from tests import tiny
from tests.e2e.conftest import SMALL

FIGURES = {
    "forward_kl_nats", "reverse_kl_nats", "top1_agreement", "acceptance_rate", "perplexity", "rouge_l",
    "num_parameters", "tokens_per_s",
}  # fmt: skip


def train(method: str = "kd", **settings: Any) -> Run:
    return potstill.train(method, **(SMALL | settings))


def sha(run: Run) -> str:
    return hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()


def losses(run: Run) -> list[float]:
    return [line["train/loss"] for line in run.metrics() if "train/loss" in line]


def test_a_run_leaves_what_the_run_folder_promises(workspace: Path) -> None:
    run = train(run="first", baseline="equal_time_sft", **{"budget.steps": 12, "optimizer.learning_rate": 5e-3})
    assert run.path == Path("runs/first")
    assert Path("runs/latest").resolve() == run.path.resolve()
    for name in ("recipe.yaml", "env.json", "data.json", "metrics.jsonl", "samples.jsonl", "cost.json", "report.html"):
        assert (run.path / name).is_file(), name

    table = potstill.report("first")
    for model in ("teacher", "student_before", "student_after", "equal_time_sft"):
        assert set(table[model]) >= FIGURES, model
        assert all(isinstance(table[model][name], (int, float)) for name in FIGURES), model
    assert table["teacher"]["forward_kl_nats"] == 0
    assert table["teacher"]["top1_agreement"] == 1
    assert table["teacher"]["acceptance_rate"] == 1
    assert table["student_after"]["forward_kl_nats"] < 0.8 * table["student_before"]["forward_kl_nats"]
    measured, rows = run.evaluations()["student_after"], run.rows("student_after")
    tokens = sum(row["scores"]["tokens"] for row in rows)
    assert tokens == measured["num_tokens"]
    kl = sum(row["scores"]["forward_kl_nats"] for row in rows) / tokens
    assert kl == pytest.approx(measured["forward_kl_nats"], rel=1e-9)
    answered = [row for row in rows if row["predictions"]]
    assert sum(row["scores"]["rouge_l"] for row in answered) / len(answered) == pytest.approx(measured["rouge_l"])
    assert table["student_after"]["num_parameters"] < table["teacher"]["num_parameters"]

    student = AutoModelForCausalLM.from_pretrained(run.student)
    tokenizer = AutoTokenizer.from_pretrained(run.student)
    assert student.config.num_hidden_layers == 2
    assert tokenizer.eos_token == "<end>"
    assert (run.student / "README.md").is_file()
    samples = run.samples()
    assert set(samples[0]["outputs"]) == {"teacher", "student_before", "student_after", "equal_time_sft"}
    assert run.metrics()[0]["step"] == 0
    assert "validation/forward_kl_nats" in run.metrics()[0]
    cost = run.read("cost")
    assert cost["baseline_training_s"] >= cost["training_s"] > 0
    assert cost["teacher_tokens"] == cost["tokens"] > cost["response_tokens"]  # its one stream asks the teacher
    assert cost["baseline_teacher_tokens"] == 0


@pytest.mark.parametrize("left_out", ["untouched", "samples"])
def test_what_is_left_out_is_not_measured_and_the_rest_is(workspace: Path, left_out: str) -> None:
    run = train(run="less", **{"evaluation.leave_out": left_out, "budget.steps": 2})
    assert ("student_before" in run.evaluations()) == (left_out != "untouched")
    figures, (row, *_) = run.evaluations()["student_after"], run.rows("student_after")
    drawn = left_out != "samples"
    assert ("rouge_l_sampled" in figures, "sampled" in row["predictions"]) == (drawn, drawn)
    assert bool(run.read("panel/student_after")) == drawn
    assert {"perplexity", "rouge_l"} <= set(figures)
    assert "greedy" in row["predictions"]


def test_figures_of_the_report_are_those_of_the_exported_student(workspace: Path) -> None:
    """Measured again from the folder, by hand: forward KL over all response tokens of the held-out rows."""
    run = train(run="figures")
    from potstill.data.prepare import prepare
    from potstill.recipe import Data

    tokenizer = AutoTokenizer.from_pretrained(run.student)
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (run.student, "teacher"))
    total, agreed, count = 0.0, 0, 0
    for row in prepare(Data(path="rows.jsonl"), tokenizer).heldout:
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        with torch.no_grad():
            q, p = (m(ids).logits[0, len(row.prompt_ids) - 1 : -1].double().log_softmax(-1) for m in (student, teacher))
        total += (p.exp() * (p - q)).sum().item()
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        count += len(row.response_ids)
    table = potstill.report(run)["student_after"]
    assert table["forward_kl_nats"] == pytest.approx(total / count, rel=1e-5)
    assert table["top1_agreement"] == pytest.approx(agreed / count)
    assert table["num_tokens"] == count


def test_the_resolved_recipe_runs_again_to_the_same_student(workspace: Path) -> None:
    first = train(run="first")
    again = potstill.train(first.recipe_file, run="again")
    assert sha(first) == sha(again)
    assert losses(first) == losses(again)
    other = potstill.train(first.recipe_file, run="other", seed=2)
    assert sha(other) != sha(first)


def test_micro_batches_and_their_padding_change_nothing(workspace: Path) -> None:
    settings = {"dtype": "float64", "batch": 6, "ce_weight": 0.5}
    whole, split = (train(run=f"micro-{size}", **settings, **{"batch.micro_size": size}) for size in (6, 1))
    torch.testing.assert_close(losses(whole), losses(split), rtol=0, atol=1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_each_divergence_falls_where_it_is_trained_on(workspace: Path, divergence: str) -> None:
    run = train(divergence=divergence, **{"optimizer.learning_rate": 5e-3, "budget.steps": 15})
    first, *_, last = losses(run)
    assert last < 0.7 * first


def test_a_student_that_is_its_teacher_has_loss_and_gradient_zero(workspace: Path) -> None:
    """On the first step: after it Adam has divided rounding errors by their own size and made steps of them."""
    run = train(**{"student.keep_layers": 4, "dtype": "float64", "student.freeze_embeddings": False, "ce_weight": 0})
    first = next(line for line in run.metrics() if "train/loss" in line)
    assert abs(first["train/loss"]) < 1e-14
    assert first["optim/grad_norm"] < 1e-14


def test_bfloat16_keeps_float32_weights_and_stays_close(workspace: Path) -> None:
    settings = {"student.freeze_embeddings": False, "ce_weight": 0.5}
    exact, fast = (train(run=name, dtype=name, **settings) for name in ("float32", "bfloat16"))
    torch.testing.assert_close(losses(fast), losses(exact), rtol=2e-2, atol=1e-2)
    saved = load_file(fast.checkpoints / "best" / "student" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


def test_dropout_is_on_in_the_student_while_it_learns_and_nowhere_else(workspace: Path) -> None:
    (workspace / "teacher").unlink()
    found = {}
    for dropout in (0.0, 0.5):
        tiny.save(tiny.gpt2(1, layers=4, dropout=dropout), workspace / f"teacher-{dropout}")
        found[dropout] = train(teacher=f"teacher-{dropout}")
    steady, noisy = found.values()
    assert losses(noisy)[0] > losses(steady)[0]
    measured = [run.read("eval/student_before")["forward_kl_nats"] for run in (steady, noisy)]
    assert measured[0] == measured[1]
    assert noisy.metrics()[0] == steady.metrics()[0]  # the validation before the first step


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("forward_kl_nats", [3.0, 1.0, 2.0], 6),
        ("top1_agreement", [0.1, 0.3, 0.2], 6),
        ("perplexity", [9.0, 8.0, 7.0], 8),
    ],
)
def test_the_best_checkpoint_is_the_best_by_its_metric(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float], best: int
) -> None:
    """Validations after steps 3, 6 and 8 give these values; the one before the first step cannot be the best."""
    answers = iter([0.0, *values] if metric != "top1_agreement" else [1.0, *values])
    from potstill import stage

    job = stage._job
    monkeypatch.setattr(stage, "_job", lambda *a: replace(job(*a), validate=lambda: {metric: next(answers)}))
    run = train(**{"checkpoint.best_by": metric})
    assert run.read("cost")["best_step"] == best
    assert (run.checkpoints / "best").resolve().name == f"step-{best:06d}"
    kept, made = (load_file(place / "student/model.safetensors") for place in (run.checkpoints / "best", run.path))
    assert all(torch.equal(made[name], kept[name]) for name in kept)


def test_sft_needs_no_teacher(workspace: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "teacher"}
    run = potstill.train("sft", **settings | {"student.model": "teacher", "optimizer.learning_rate": 5e-3})
    table = potstill.report(run)
    assert "teacher" not in table
    assert table["student_after"]["perplexity"] < table["student_before"]["perplexity"]
    assert table["student_after"]["forward_kl_nats"] is None


@pytest.mark.parametrize(
    ("budget", "steps"),
    [({"steps": 5}, 5), ({"epochs": 0.5}, 5), ({"tokens": 200}, None), ({"seconds": 0.2}, None)],
    ids=["steps", "epochs", "tokens", "seconds"],
)
def test_budgets(workspace: Path, budget: dict[str, float], steps: int | None) -> None:
    run = potstill.train("kd", **{k: v for k, v in SMALL.items() if k != "budget.steps"}, budget=budget)
    cost = run.read("cost")
    if steps:  # 40 rows, 4 held out and 2 for validation: half an epoch of 34 in batches of 4 is 5 steps
        assert cost["steps"] == steps
    elif "tokens" in budget:
        lines = [line for line in run.metrics() if "train/loss" in line]
        assert lines[-2]["data/response_tokens"] < 200 <= lines[-1]["data/response_tokens"]
    else:
        assert cost["training_s"] >= 0.2


def test_another_tokenizer_is_refused_before_anything_is_trained(workspace: Path) -> None:
    tiny.save(tiny.llama(3), workspace / "other")
    other = AutoTokenizer.from_pretrained(workspace / "other")
    other.add_special_tokens({"additional_special_tokens": ["<x>"]})
    other.save_pretrained(workspace / "other")
    settings = {key: value for key, value in SMALL.items() if not key.startswith("student")}
    with pytest.raises(TeacherError, match="different tokenizers"):
        potstill.train("kd", **settings, student="other")


def test_a_student_with_padded_rows_is_compared_on_the_shared_ones(workspace: Path) -> None:
    tiny.save(tiny.llama(3, vocab=tiny.VOCAB + 20), workspace / "padded")
    settings = {key: value for key, value in SMALL.items() if not key.startswith("student")}
    run = potstill.train("kd", **settings, student="padded")
    assert "left out" in run.read("data")["vocabulary"]
    assert all(loss > 0 for loss in losses(run))


def poisoned(step: int, value: float) -> Any:
    """A teacher whose states are not finite from the ``step``-th time on."""
    signal, calls = LocalTeacher.signal, [0]

    def bad(self: LocalTeacher, batch: Any) -> Any:
        said = signal(self, batch)
        calls[0] += 1
        if calls[0] >= step and batch.response_mask.requires_grad is False:
            said.hidden[0, 0, 0] = value
        return said

    return bad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_stops_the_run_before_the_update(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr("potstill.teachers.local.LocalTeacher.signal", poisoned(8, value))
    updates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (updates.append(1), step(self, *a, **k))[1])
    with pytest.raises(
        NumericsError, match=r"data/forward_kl is not finite \(the teacher's logits.*\) on rows.jsonl:\d+"
    ):
        train(run="poisoned")
    logged = losses(Run(Path("runs/poisoned")))
    assert len(updates) == len(logged)  # the step that failed updated nothing and logged nothing
    assert all(loss == loss for loss in logged)


def test_a_gradient_that_is_not_finite_stops_the_run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.training import step as step_module

    monkeypatch.setattr(step_module.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(NumericsError, match="the gradient is not finite"):
        train()


def test_a_run_is_never_overwritten_but_one_that_never_trained_keeps_no_name(workspace: Path) -> None:
    train(run="mine")
    with pytest.raises(ConfigError, match="runs/mine exists already"):
        train(run="mine")
    with pytest.raises(potstill.PotstillError):
        train(run="broken", data="absent.jsonl")
    assert not Path("runs/broken").exists()
    (Path("runs/broken/eval")).mkdir(parents=True)
    Path("runs/broken/eval/teacher.json").write_text('{"perplexity": -1}')  # of another attempt, with other settings
    assert potstill.report(train(run="broken"))["teacher"]["perplexity"] > 0


def test_runs_without_a_name_are_numbered(workspace: Path) -> None:
    assert [train().name, train().name] == ["kd-1", "kd-2"]


def test_from_the_command_to_the_objective_in_nine_frames(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depths = []
    own = objectives.forward_kl
    package = str(Path(potstill.__file__).parent)

    def counting(*args: Any, **kwargs: Any) -> Any:
        frames = [f.filename for f in inspect.stack() if f.filename.startswith(package)]
        depths.append(len(frames) + 1)  # and the objective itself
        return own(*args, **kwargs)

    monkeypatch.setattr(objectives, "forward_kl", counting)
    from potstill import cli

    cli.train("kd", [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in SMALL.items()])
    assert max(depths) == 9
