"""Methods that write their own text, from the command's settings to the run folder; and killed in the middle of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import potstill as package
from tests import tiny
from tests.e2e.conftest import ROOT, SMALL

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


# A process that has imported everything and computed nothing; each run is a child forked from it.
SERVER = textwrap.dedent("""
    import json, os, signal, sys
    import potstill, potstill.api
    from potstill.sources.rollout import RolloutSource
    from potstill.training import trainer
    import transformers.models.llama.modeling_llama, transformers.generation, rouge_score.rouge_scorer

    def killing(function, number):
        calls = [0]
        def dying(*arguments, **keywords):
            result = function(*arguments, **keywords)
            calls[0] += 1
            if calls[0] == number: os.kill(os.getpid(), signal.SIGKILL)
            return result
        return dying

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(order["folder"])
            where, number = order["fault"] or (None, 0)
            if where == "step": trainer.train_step = killing(trainer.train_step, number)
            if where == "write": RolloutSource.write = killing(RolloutSource.write, number)
            code = 1
            try:
                if order["resume"]: potstill.resume("crash")
                else: potstill.train(order["method"], run="crash", **order["settings"])
                code = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(code)
        print(json.dumps(os.waitpid(child, 0)[1]), flush=True)
""")


class Server:
    def __init__(self, folder: Path):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = folder / "server.log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True, env=env,
        )  # fmt: skip

    def run(self, method: str, folder: Path, *, resume: bool = False, fault: tuple[str, int] | None = None) -> int:
        settings = QUICK | METHODS[method]
        order = {"method": method, "folder": str(folder), "resume": resume, "fault": fault, "settings": settings}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.process.kill()
    made.process.wait()


def result(folder: Path) -> tuple[str, list[dict[str, float]]]:
    """The student's SHA-256, and metrics.jsonl with its timings left out."""
    run = folder / "runs" / "crash"
    sha = hashlib.sha256((run / "student" / "model.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sha, [{k: v for k, v in m.items() if not k.startswith("time/")} for m in lines]


def prepare(workspace: Path, name: str) -> Path:
    folder = workspace / name
    folder.mkdir()
    for item in ("teacher", "rows.jsonl"):
        (folder / item).symlink_to((workspace / item).resolve())
    return folder


def kept(state: Any) -> list[Any]:
    """What a checkpoint's source states hold of batches that are yet to be trained on, or to be replayed."""
    if not isinstance(state, dict):
        return []
    own = [*state.get("turns", []), *state.get("buffer", [])]
    return own + [entry for value in state.values() for entry in kept(value)]


# Steps in the middle of a rollout, and a rollout that is written and not yet used.
FAULTS = {
    "minillm": [("step", 3), ("write", 2)],
    "gkd": [("step", 4)],
    "distillm": [("step", 4)],
}


@pytest.mark.parametrize("method", METHODS)
def test_killed_in_the_middle_of_a_rollout_and_resumed_is_bitwise_the_uninterrupted_run(
    workspace: Path, server: Server, method: str
) -> None:
    whole = prepare(workspace, "whole")
    assert server.run(method, whole) == 0, server.log.read_text()
    expected = result(whole)
    trained = [line for line in expected[1] if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert len({line["train/loss"] for line in trained}) == STEPS
    for fault in FAULTS[method]:
        folder = prepare(workspace, "-".join(map(str, fault)))
        status = server.run(method, folder, fault=fault)
        assert os.WIFSIGNALED(status), (fault, server.log.read_text())
        assert os.WTERMSIG(status) == signal.SIGKILL
        if fault[0] == "step":
            newest = max((folder / "runs" / "crash" / "checkpoints").glob("step-*/**/process-00000.pt"))
            assert kept(torch.load(newest, weights_only=True)["sources"])
        assert server.run(method, folder, resume=True) == 0, (fault, server.log.read_text())
        assert result(folder) == expected, fault


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
