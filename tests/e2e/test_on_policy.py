"""Methods that write their own text, from the command's settings to the run folder; and killed in the middle of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import potstill as package
from tests import tiny
from tests.e2e.conftest import SMALL
from tests.killing import Fault, Server, parting, prepare, result

STEPS = 6
QUICK = SMALL | {
    "budget.steps": STEPS,
    "batch.size": 2,
    "checkpoint.every": 1,
    "evaluation.max_examples": 2,
    "evaluation.generate_examples": 1,
    "optimizer.learning_rate": 1e-2,
}
METHODS: dict[str, dict[str, Any]] = {
    "minillm": {"num_updates_per_batch": 2, "batches_per_rollout": 2, "max_new_tokens": 6},
    "gkd": {
        "student_share": 0.8,
        "rollout": {"batches_per_rollout": 2, "num_updates_per_batch": 2, "max_new_tokens": 6},
    },
    "distillm": {
        "replay": {"student_share": 0.8, "capacity": 4, "tolerance": 0.0, "rollout": {"max_new_tokens": 6}},
    },
}


# --- Killed -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.stop()


def kept(state: Any) -> list[Any]:
    """What a checkpoint's source states hold of batches that are yet to be trained on, or to be replayed."""
    if not isinstance(state, dict):
        return []
    own = [*state.get("turns", []), *state.get("buffer", [])]
    return own + [entry for value in state.values() for entry in kept(value)]


STEP, WRITE = "potstill.training.trainer:train_step", "potstill.sources.rollout:RolloutSource.write"
# Steps in the middle of a rollout, and a rollout that is written and not yet used.
FAULTS: dict[str, list[Fault]] = {
    "minillm": [(STEP, 3), (WRITE, 2)],
    "gkd": [(STEP, 4)],
    "distillm": [(STEP, 4)],
}


@pytest.mark.parametrize("method", METHODS)
def test_killed_in_the_middle_of_a_rollout_and_resumed_is_bitwise_the_uninterrupted_run(
    workspace: Path, server: Server, method: str
) -> None:
    whole, settings = prepare(workspace, "whole"), QUICK | METHODS[method]
    assert server.run(method, whole, settings) == 0, server.log.read_text()
    expected = result(whole)
    trained = [line for line in expected[1] if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert len({line["train/loss"] for line in trained}) == STEPS
    for number, fault in enumerate(FAULTS[method]):
        folder = prepare(workspace, f"killed-{number}")
        status = server.run(method, folder, settings, fault=fault)
        assert os.WIFSIGNALED(status), (fault, server.log.read_text())
        assert os.WTERMSIG(status) == signal.SIGKILL
        if fault[0] == STEP:
            newest = max((folder / "runs" / "crash" / "checkpoints").glob("step-*/**/process-00000.pt"))
            assert kept(torch.load(newest, weights_only=True)["sources"])
        assert server.run(method, folder, resume=True) == 0, (fault, server.log.read_text())
        assert not parting(result(folder), expected), fault


# --- What is trained on -----------------------------------------------------------------------------------------------


def losses(method: str, **settings: Any) -> list[tuple[float, float]]:
    run = package.train(
        method, **QUICK | {"budget.steps": 3, "checkpoint.every": 3, "student.choose_by": "even"} | settings
    )
    return [(line["train/loss"], line["data/response_tokens"]) for line in run.metrics() if "train/loss" in line]


def write_longer_answers(workspace: Path) -> None:
    """In the same file, since a row is known by its file's name and its place."""
    rows = [row | {"response": row["response"] + " The goat ate the hat." * 3} for row in tiny.rows()]
    (workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gkd", {"student_share": 1.0, "rollout.max_new_tokens": 6}),
        ("seqkd", {"max_new_tokens": 6, "samples_per_prompt": 2}),
    ],
)
def test_reference_answers_that_are_not_used_have_no_influence(
    workspace: Path, method: str, settings: dict[str, Any]
) -> None:
    short = losses(method, **settings)
    write_longer_answers(workspace)
    assert losses(method, **settings) == short


def test_seqkds_run_folder_has_the_teachers_own_text_and_where_it_is_from(workspace: Path, data_dir: Path) -> None:
    """A real model of 260,000 parameters: what stands in the file is what its own ``generate`` writes."""
    model = data_dir / "stories260k"
    if not model.is_dir():
        pytest.skip(f"needs the small LLaMA in {model}")
    prompts = {
        f"story-{n}": f"Once upon a time, there was a little {who}"
        for n, who in enumerate(["girl", "boy", "dog", "cat", "bird", "man"] * 4)
    }
    rows = [
        {"id": name, "prompt": f"{prompt}, number {n}.", "response": "No."}
        for n, (name, prompt) in enumerate(prompts.items())
    ]
    (workspace / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "teacher": str(model),
        "data.path": "stories.jsonl",
        "data.template": "none",
        "data.fields": {"id": "id"},
    }
    run = package.train(
        "seqkd",
        **QUICK
        | {"budget.steps": 4, "checkpoint.every": 4, "student.keep_layers": 3, "max_new_tokens": 12, "temperature": 0.0}
        | settings,
    )
    folder = run.path / "teacher_text" / "teacher_text"
    card = json.loads((folder / "card.json").read_text())
    head, *lines = [json.loads(line) for line in (folder / "part-00000.jsonl").read_text().splitlines()]
    assert head["key"]["origin"] == card["origin"]
    assert card["origin"]["teacher"]["model"] == str(model)
    assert card["source"]["policy"] == {"name": "teacher"}
    assert card["responses"] == len(lines) == 8  # as many as four steps of two can use
    tokenizer, teacher = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model).float().eval(),
    )
    asked = {row["id"]: row["prompt"] for row in rows}
    for line in lines:
        ids = tokenizer(asked[line["id"]], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = teacher.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)
        assert line["ids"] == expected[0, ids.shape[1] :].tolist()
        assert line["text"] == tokenizer.decode(line["ids"], skip_special_tokens=True)
    assert card["kept_response_tokens"] == sum(len(line["ids"]) for line in lines)
    tokens = [line["data/response_tokens"] for line in run.metrics() if "train/loss" in line]
    assert tokens[-1] == card["kept_response_tokens"]  # one epoch: every one of them was trained on
