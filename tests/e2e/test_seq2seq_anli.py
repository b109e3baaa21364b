"""examples/seq2seq_anli: its rows keep test apart, its recipe is the one it says, its command runs and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from potstill import recipe_io
from potstill.data.catalogue import load
from potstill.recipe import Recipe
from potstill.recipes import METHODS
from potstill.run import Run

FOLDER = Path(__file__).parents[2] / "examples" / "seq2seq_anli"
NEEDED = ("tinystories", "anli")
ROUNDS = ("r1", "r2", "r3")


def module(name: str) -> ModuleType:
    """A module of the example, whose folder is on the path while it is imported and no longer."""
    sys.path.insert(0, str(FOLDER))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(FOLDER))


# --- The recipe -------------------------------------------------------------------------------------------------------


def recipe(task: Any, small: ModuleType, sizes: Any) -> Recipe:
    """What the example runs for a task's student."""
    settings = small.fine_tuning(task, task.student_epochs, sizes) | small.cut("t5") | small.distilling(task, sizes)
    return recipe_io.load("anli_minillm", {"student": "t5", "teacher": "teacher", **settings}, methods=METHODS)


@pytest.mark.parametrize("at", [0, 1])
def test_what_makes_the_method_is_the_recipes(at: int) -> None:
    """Losses, optimiser, beams, penalty and choice of checkpoint are untouched; of the rollouts only the length."""
    small = module("small")
    found = recipe(small.tasks(small.FULL)[at], small, small.FULL)
    default = recipe_io.load("anli_minillm", {}, methods=METHODS)
    assert [stage.name for stage in found.stages] == [*ROUNDS, "minillm"]
    for own, theirs in zip(found.stages, default.stages, strict=True):
        source = {"max_new_tokens": small.FULL.max_new_tokens} if own.name == "minillm" else {}
        streams = [stream.model_dump(mode="json") for stream in theirs.streams]
        streams[0]["source"] |= source
        assert [stream.model_dump(mode="json") for stream in own.streams] == streams
        assert own.optimizer.model_copy(update={"learning_rate": theirs.optimizer.learning_rate}) == theirs.optimizer
        assert (own.checkpoint.best_by, own.data.target) == ("accuracy", "label_then_rationale")
        assert (own.evaluation.num_beams, own.evaluation.repetition_penalty) == (3, 1.15)
    assert found.stages[0].student.model_dump()["keep_layers"] == small.STUDENT_LAYERS < small.TEACHER_LAYERS


# --- Rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(data_dir: Path) -> Path:
    for part in NEEDED:
        if not (data_dir / part).is_dir():
            pytest.skip(f"needs {part} in {data_dir}")
    return data_dir


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows and the model's shape in it."""
    out = tmp_path_factory.mktemp("rows")
    with chdir(out):
        module("rows").write_all(data, module("small").SMOKE)
    return out


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_test_text_is_trained_on(written: Path, data: Path) -> None:
    dev = {item.prompt for name in ROUNDS for item in load("anli", f"{name}_dev", folder=data / "anli").items}
    test = {item.id: item for item in load("anli", "r1_test", folder=data / "anli").items}
    rows = lines(written / "data" / "anli_r1_test.jsonl")
    assert rows
    for row in rows:
        item = test[row["id"]]
        assert (row["prompt"], row["response"], row["rationale"]) == (item.prompt, item.references[0], item.rationale)
        assert row["prompt"] not in dev
    trained = {row["prompt"] for name in ROUNDS for row in lines(written / "data" / f"animals_{name}.jsonl")}
    assert len(trained) == 60
    assert trained.isdisjoint(row["prompt"] for row in lines(written / "data" / "animals_test.jsonl"))


def test_a_copy_is_its_own_answer_and_of_up_to_twelve_words(written: Path) -> None:
    rows = lines(written / "data" / "copy_train.jsonl")
    assert all(row["prompt"] == row["response"] for row in rows)
    assert {1, 12} <= {len(row["prompt"].split()) for row in rows} <= set(range(1, 13))


def test_each_label_is_one_token_where_an_answer_begins(written: Path) -> None:
    """What the first of the two losses is about: it would be of half a label otherwise."""
    tokenizer = AutoTokenizer.from_pretrained(written / "t5")
    for label in ("entailment", "neutral", "contradiction"):
        assert tokenizer.convert_ids_to_tokens(tokenizer(f"{label}: It says so.").input_ids)[:2] == [label, ":"]


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command left that was killed in its second training, and was then given again."""
    out = tmp_path_factory.mktemp("anli") / "out"
    with started(out, data) as process:
        wait_for(out / "runs" / "animals_teacher" / "stages" / "1-r1" / "metrics.jsonl", process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = out / "runs" / "copying" / "student" / "model.safetensors"
    when = left.stat().st_mtime_ns
    finish(out, data)
    assert left.stat().st_mtime_ns == when
    return out


def started(out: Path, data: Path, *, smoke: bool = True) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "POTSTILL_DATA": str(data)}
    command = [sys.executable, str(FOLDER / "run.py"), str(out), *(["--smoke"] if smoke else [])]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def finish(out: Path, data: Path) -> str:
    process = started(out, data)
    said = process.communicate(timeout=280)[0]
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_each_model_is_made_from_the_one_it_should_be(smoke: Path) -> None:
    runs = smoke / "runs"
    for task in ("animals", "anli"):
        teacher, student = Run(runs / f"{task}_teacher"), Run(runs / task)
        assert [stage.path.name for stage in teacher.stages] == ["1-r1", "2-r2", "3-r3"]
        assert [stage.path.name for stage in student.stages] == ["1-r1", "2-r2", "3-r3", "4-minillm"]
        for run in (teacher, student):
            assert run.stages[0].read("student")["from"] == "runs/copying/student"
        last = recipe_io.load(student.stages[-1].recipe_file, methods=METHODS).stage
        assert last.teacher
        assert last.teacher.model == f"runs/{task}_teacher/student"
        layers = [json.loads((run.student / "config.json").read_text()) for run in (teacher, student)]
        assert [(one["num_layers"], one["num_decoder_layers"]) for one in layers] == [(3, 3), (2, 2)]


@pytest.mark.slow
def test_the_single_step_is_a_term_more_from_the_same_student(smoke: Path) -> None:
    places = ("animals/stages/4-minillm", "animals_single_step")
    s0, paper = (recipe_io.load(smoke / "runs" / place / "recipe.yaml", methods=METHODS).stage for place in places)
    assert (paper.teacher, paper.student, paper.data, paper.budget) == (s0.teacher, s0.student, s0.data, s0.budget)
    names = [[term.objective.name for term in one.streams[0].terms] for one in (s0, paper)]
    assert names == [["policy_gradient"], ["policy_gradient", "reverse_kl"]]


@pytest.mark.slow
def test_the_table_is_what_the_runs_and_the_suite_measured(smoke: Path) -> None:
    results, text = json.loads((smoke / "results.json").read_text()), (smoke / "results.md").read_text()
    kept = [json.loads(file.read_text()) for file in smoke.glob("evaluations/*/scores.json")]
    for task, parts in (("animals", 5), ("anli", 3)):
        own = Run(smoke / "runs" / task).result.evaluations()
        models = results["tasks"][task]
        assert list(models) == ["teacher", "untouched", "student", "single_step", "sft"][:parts]
        assert models["student"]["accuracy"] == own["student_after"]["accuracy"]
        assert models["untouched"]["reverse_kl_nats"] == own["student_before"]["reverse_kl_nats"]
        assert models["teacher"]["num_parameters"] > models["student"]["num_parameters"]
        assert all(any(models[part]["likeliest"] == one["accuracy_likelihood"] for one in kept) for part in models)
    assert "trained on anli:r1_dev, anli:r2_dev, anli:r3_dev; measured on the 4 rows of data/anli_r1_test.jsonl" in text
    assert "not its train rows" in text


@pytest.mark.slow
def test_a_second_call_trains_nothing_again_and_other_sizes_are_refused(smoke: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    finish(smoke, data)
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"results.md", "results.json", "seconds.json"}
    with started(smoke, data, smoke=False) as process:
        said = process.communicate(timeout=280)[0]
    assert process.returncode == 1
    assert "begun with other sizes" in said
