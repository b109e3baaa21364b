"""The flat loop of on-policy distillation learns, and potstill's own step makes the same losses of what it sampled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.data.prepare import prepare
from potstill.models.families import Causal
from potstill.recipe import Batching, Data, LogitsSignal, Optimizer, ReverseKL, RolloutSource, Stream, Term
from potstill.sources.source import Share
from potstill.teachers.local import LocalTeacher
from potstill.training import optim
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream, train_step
from potstill.training.terms import LiveTerm
from potstill.types import Batch
from tests import tiny
from tests.e2e.conftest import ROOT

STEPS, BATCH, RATE, SEED, LONGEST = 30, 8, 2e-2, 3, 6
ON_CPU = Runtime(torch.device("cpu"), torch.float64)


class Recorded:
    """A source of what has been written already, a global batch a line."""

    def __init__(self, steps: Sequence[list[Tokenised]]):
        self._left = list(steps)

    def next(self, share: Share, progress: float) -> list[Batch]:
        rows = self._left.pop(0)
        return [collate(rows[at : at + share.micro_size], 0) for at in range(0, len(rows), share.micro_size)]

    def observe(self, validation: Mapping[str, float]) -> None: ...

    def figures(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def held(self) -> list[Batch]:
        return []

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flat loop's run: both models, the losses it printed and the responses it wrote down."""
    made = tmp_path_factory.mktemp("on_policy_loop")
    tiny.save(tiny.llama(1, layers=4), made / "teacher")
    student = tiny.llama(2, layers=2)
    student.generation_config.top_k, student.generation_config.do_sample = 1, True  # the loop must not heed it
    tiny.save(student, made / "student")
    tiny.data_file(made)
    command = [
        sys.executable, str(ROOT / "examples" / "on_policy_loop.py"), "--teacher", "teacher", "--student", "student",
        "--data", "rows.jsonl", "--max-new-tokens", str(LONGEST), "--steps", str(STEPS), "--batch", str(BATCH),
        "--learning-rate", str(RATE), "--seed", str(SEED), "--dtype", "float64", "--rollouts", "rollouts.jsonl",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    (made / "losses.jsonl").write_text(done.stdout, encoding="utf-8")
    return made


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def written(folder: Path) -> list[list[Tokenised]]:
    """The responses of each step."""
    steps: list[list[Tokenised]] = [[] for _ in range(STEPS)]
    for number, line in enumerate(lines(folder / "rollouts.jsonl")):
        row = Tokenised(f"row:{number}", tuple(line["prompt_ids"]), tuple(line["ids"]), "", "", truncated=False)
        steps[line["step"] - 1].append(row)
    return steps


def family(folder: Path) -> Causal:
    return Causal(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))


def test_potstill_has_the_same_losses_on_the_same_text_at_every_step(folder: Path) -> None:
    flat = [line["loss"] for line in lines(folder / "losses.jsonl")]
    student, settings = family(folder / "student"), Optimizer(learning_rate=RATE)
    spec = Stream(source=RolloutSource(), signal=LogitsSignal(), terms=(Term(objective=ReverseKL()),))
    teacher = LocalTeacher(family(folder / "teacher"))
    stream = LiveStream(spec, Recorded(written(folder)), teacher, (LiveTerm("data", spec.terms[0]),))
    optimizer = optim.build(student, settings)
    ours = []
    student.train()
    for step in range(STEPS):
        progress = (step + 0.5) / STEPS
        optim.set_learning_rate(optimizer, settings, progress)
        batching = Batching(size=BATCH, micro_size=3)  # 3, 3 and 2: of no consequence
        ours.append(train_step(student, student, optimizer, [stream], batching, 1.0, ON_CPU, progress).loss)
    torch.testing.assert_close(flat, ours, rtol=0, atol=1e-5)


def test_it_learns(folder: Path) -> None:
    losses = [line["loss"] for line in lines(folder / "losses.jsonl")]
    tenth = STEPS // 10
    assert sum(losses[-tenth:]) < 0.7 * sum(losses[:tenth])


def test_the_text_is_the_students_own(folder: Path) -> None:
    """Sampled from its whole distribution, neither greedy nor from a few tokens, cut or ended by the end token."""
    responses = [row.response_ids for step in written(folder) for row in step]
    assert all(0 < len(ids) <= LONGEST and 0 not in ids[:-1] for ids in responses)
    assert any(ids[-1] == 0 and len(ids) < LONGEST for ids in responses)
    batch = collate(written(folder)[0], 0)
    with torch.no_grad():
        output = family(folder / "student").eval().output(batch)
    greedy = output.head(output.hidden[:, 0]).argmax(-1)
    assert (batch.response_ids[:, 0] != greedy).any()


def test_it_is_drawn_at_temperature_1(folder: Path) -> None:
    """Then the mean of -log q of what was written is the entropy, but for chance; colder draws are likelier ones."""
    batch = collate(written(folder)[0], 0)  # the first step's, by the student as it was
    with torch.no_grad():
        output = family(folder / "student").eval().output(batch)
        log_q = output.head(output.hidden[batch.response_mask]).log_softmax(-1)
    surprise = -log_q.gather(-1, batch.response_ids[batch.response_mask][:, None])[:, 0]
    entropy = -(log_q.exp() * log_q).sum(-1)
    error = (surprise - entropy).std().item() / len(surprise) ** 0.5
    assert abs((surprise - entropy).mean().item()) < 3 * error
    cold = (2 * log_q).log_softmax(-1).exp()  # what temperature 0.5 would have drawn
    assert ((cold * -log_q).sum(-1) - entropy).mean().item() < -3 * error


def test_only_rows_that_potstill_trains_on_are_answered(folder: Path) -> None:
    made = prepare(Data(path=str(folder / "rows.jsonl"), heldout=str(other_rows(folder))), tiny.tokenizer())
    train = {row.prompt_ids for row in made.train}
    assert {row.prompt_ids for step in written(folder) for row in step} == train
    assert train.isdisjoint(row.prompt_ids for row in made.validation)


def other_rows(folder: Path) -> Path:
    file = folder / "other.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(44)[40:]))
    return file


def test_the_teaching_copy_stays_short() -> None:
    assert len((ROOT / "examples" / "on_policy_loop.py").read_text().splitlines()) <= 120
