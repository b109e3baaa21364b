"""examples/trainer_kd.py, whose class is the how-to's: transformers' Trainer with an objective of ours is right."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import trainer_kd
from transformers import TrainingArguments

from potstill import objectives
from tests import tiny
from tests.e2e.conftest import ROOT

PAGE, EXAMPLE = ROOT / "docs" / "how-to" / "own-trainer.md", ROOT / "examples" / "trainer_kd.py"


def block_of_the_page() -> str:
    """The page's class, and that it is the example's."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (block,) = [block for block in blocks if "class DistillationTrainer" in block]
    return block


def trainer(tmp_path: Path, *, batch: int = 4, accumulate: int = 1, **settings: Any) -> Any:
    """The page's own trainer with tiny models in float32; SGD, whose first update is the gradient itself."""
    names: dict[str, Any] = {}
    exec(block_of_the_page(), names)
    tokenizer = tiny.tokenizer()
    return names["DistillationTrainer"](
        model=tiny.llama(2, layers=2),
        teacher=settings.pop("teacher", None) or tiny.llama(1),
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
            lr_scheduler_type="constant", per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
            per_device_eval_batch_size=batch, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=trainer_kd.read(tiny.data_file(tmp_path, 12), tokenizer),
        data_collator=partial(trainer_kd.collate, pad_id=tokenizer.pad_token_id),
        **settings,
    )  # fmt: skip


def moved(made: Any) -> dict[str, torch.Tensor]:
    """How far one update moves each parameter."""
    before = copy.deepcopy(made.model.state_dict())
    made.train()
    return {name: value - before[name] for name, value in made.model.state_dict().items()}


def one_by_one(examples: list[dict[str, list[int]]], objective: Callable) -> torch.Tensor:
    """The objective at every response token of the examples, each run by itself: no padding, no mask, no labels."""
    teacher, student = tiny.llama(1), tiny.llama(2, layers=2)
    at_tokens = []
    for example in examples:
        ids, start = torch.tensor([example["input_ids"]]), example["labels"].count(-100)
        with torch.no_grad():
            ours, theirs = (model(input_ids=ids).logits[0, start - 1 : -1] for model in (student, teacher))
        at_tokens.append(objective(ours, theirs))
    return torch.cat(at_tokens)


def test_the_page_shows_the_example_and_the_example_stays_short() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    (marked,) = re.findall(r"# --8<-- the block of .*?\n(.*?)\n*# --8<-- end", text, re.S)
    assert marked.strip() in block_of_the_page()
    assert len(text.splitlines()) <= 120


def test_the_example_trains_and_writes_a_student(tmp_path: Path) -> None:
    teacher = tiny.save(tiny.llama(1), tmp_path / "teacher")
    student = tiny.save(tiny.llama(2, layers=2), tmp_path / "student")
    command = [
        sys.executable, str(EXAMPLE), "--teacher", str(teacher), "--student", str(student),
        "--data", str(tiny.data_file(tmp_path)), "--output", str(tmp_path / "out"),
        "--objective", "jensen_shannon", "--settings", '{"teacher_weight": 0.3, "rescale": true}',
        "--steps", "15", "--batch", "4", "--accumulate", "2", "--learning-rate", "1e-2",
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert len(losses) == 15
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert weights < 1.1 * sum(file.stat().st_size for file in student.glob("*.safetensors"))  # and no teacher in it


def test_micro_batches_make_the_same_first_update(tmp_path: Path) -> None:
    whole, parts = moved(trainer(tmp_path, batch=4)), moved(trainer(tmp_path, batch=1, accumulate=4))
    assert max(value.abs().max() for value in whole.values()) > 1e-2
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-5)


def test_the_loss_is_the_mean_over_response_tokens_whatever_the_padding(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    examples = made.train_dataset[:3]
    at_tokens = one_by_one(examples, objectives.forward_kl)
    expected = at_tokens.mean()
    for extra in (0, 7):
        batch = made.data_collator(examples)
        fill = {"input_ids": 5, "attention_mask": 0, "labels": -100}
        batch = {name: torch.nn.functional.pad(value, (0, extra), value=fill[name]) for name, value in batch.items()}
        with torch.no_grad():
            torch.testing.assert_close(made.compute_loss(made.model, batch), expected, rtol=1e-5, atol=1e-6)
            loss, outputs = made.compute_loss(made.model, batch, return_outputs=True, num_items_in_batch=1)
        torch.testing.assert_close(loss, at_tokens.sum(), rtol=1e-5, atol=1e-5)
        assert outputs.logits.shape[1] == batch["input_ids"].shape[1]


def test_the_teacher_is_neither_trained_nor_changed_and_dropout_in_it_is_off(tmp_path: Path) -> None:
    teacher = tiny.gpt2(1, dropout=0.5).train()
    made = trainer(tmp_path, teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    assert max(value.abs().max() for value in moved(made).values()) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("objective", ["reverse_kl", "skew_forward_kl", "total_variation", "logit_matching"])
def test_evaluation_uses_the_objective(tmp_path: Path, objective: str) -> None:
    made = trainer(tmp_path, objective=getattr(objectives, objective))
    held_out = made.train_dataset[:4]
    expected = one_by_one(held_out, getattr(objectives, objective)).mean().item()
    assert made.evaluate(held_out)["eval_loss"] == pytest.approx(expected, rel=1e-5)
