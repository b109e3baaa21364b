"""A chain of teachers: who teaches whom, what the direct routes get, gates, and stages that another run has made."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import potstill
from potstill import made_before, recipe_io, stages
from potstill import stage as one_stage
from potstill.checks import doctor
from potstill.errors import ConfigError, ModelError, TeacherError
from potstill.recipe import Recipe, Stage
from potstill.recipes import METHODS
from potstill.reporting.formats import significant
from potstill.run import Run
from potstill.training.runtime import Runtime
from tests import tiny

STEPS = 4
SMALL: dict[str, Any] = {
    "teacher": "teacher",
    "assistants": [3],
    "learner": 2,
    "device": "cpu",
    "dtype": "float32",
    "all.data": "rows.jsonl",
    "all.budget.steps": STEPS,
    "all.batch": 4,
    "all.checkpoint": {"every": 2, "best_by": "perplexity"},
    "all.optimizer.learning_rate": 1e-2,
    "all.evaluation": {"max_examples": 3, "generate_examples": 2, "max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save(tiny.llama(1, layers=4), folder / "teacher")
    return folder


@pytest.fixture
def place(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(models / "teacher", tmp_path / "teacher")
    tiny.data_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(**settings: Any) -> Run:
    return potstill.train("teacher_assistant", **(SMALL | settings))


def stage(run: Run, name: str) -> Run:
    return next(one for one in run.stages if one.path.name.partition("-")[2] == name)


def sha(run: Run) -> str:
    return hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()


def test_a_chain_beside_its_direct_routes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(run="chain")
    assistant, student, direct, _ = run.stages
    assert student.read("student")["from"] == "runs/chain/stages/1-assistant/student"
    assert student.read("student")["of_layers"] == 3
    assert (direct.read("student")["from"], direct.read("student")["of_layers"]) == ("teacher", 4)
    assert student.evaluations()["teacher"]["perplexity"] == assistant.evaluations()["student_after"]["perplexity"]
    # The result is the chain's student, though stages follow it.
    assert run.result.path == student.path
    assert run.student.resolve() == student.student.resolve()
    # Equal steps, and equal compute up to the last step.
    costs = [one.read("cost") for one in run.stages]
    assert [cost["steps"] for cost in costs[:3]] == [STEPS] * 3
    chain = costs[0]["flops"] + costs[1]["flops"]
    last_step = costs[3]["flops"] / costs[3]["steps"]
    assert chain <= costs[3]["flops"] < chain + 1.5 * last_step
    assert costs[3]["steps"] > STEPS
    page = " ".join(run.report_file.read_text(encoding="utf-8").split())
    assert "the result is the student of 2-student" in page
    assert "Beside stage direct (4 steps" in page
    ours, theirs = (one.evaluations()["student_after"]["perplexity"] for one in (student, direct))
    told = f"perplexity {significant(ours)} against {significant(theirs)}, ratio {significant(ours / theirs)} ["
    assert told in page
    assert "over 3 examples" in page
    beside = page[page.index("Beside stage direct (") : page.index("Beside stage direct_longer")]
    assert "forward_kl" not in beside  # of the chain's student it is to the assistant, of the direct one to the teacher


def test_with_the_teacher_for_an_assistant_it_is_direct_distillation(place: Path) -> None:
    """An assistant that is not trained away from the teacher teaches what the teacher does, bit for bit."""
    same = {"kind": "pruned", "keep_layers": 4}
    still = {"assistant.optimizer.learning_rate": 1e-30, "assistant.optimizer.weight_decay": 0.0}
    run = train(run="still", assistants=[same], gate=False, direct="steps", **still)
    assert sha(stage(run, "assistant")) == hashlib.sha256(Path("teacher/model.safetensors").read_bytes()).hexdigest()
    assert sha(stage(run, "student")) == sha(stage(run, "direct"))


def test_another_runs_stages_are_taken_over_and_only_what_differs_is_done(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(run="first", direct="none")
    capsys.readouterr()
    second = train(run="second", direct="none", **{"student.optimizer.learning_rate": 5e-3})
    said = capsys.readouterr().err
    assert "stage assistant is taken from runs/first/stages/1-assistant" in said
    assert second.read("stages")[0]["taken_from"] == "runs/first/stages/1-assistant"
    assert sha(second.stages[0]) == sha(first.stages[0])
    assert sha(second.stages[1]) != sha(first.stages[1])
    again = train(run="again", direct="none", reuse_stages=False)
    assert [sha(one) for one in again.stages] == [sha(one) for one in first.stages]
    assert [planned["taken_from"] for planned in again.read("stages")] == [None, None]
    shutil.rmtree(first.path)  # nothing of a run stands on another
    assert potstill.evaluate("second", data="rows.jsonl", answers=False)["perplexity"] > 0
    potstill.resume("second")


@pytest.mark.usefixtures("place")
def test_stages_of_rows_that_have_a_name_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own rows, and a split of a data set; not where the split's file has changed."""
    folder = Path("sets") / "dolly"
    folder.mkdir(parents=True)
    monkeypatch.setenv("POTSTILL_DATA", "sets")
    for name, count in (("dev", 40), ("valid", 8)):
        rows = [{"instruction": f"Say {name} {at}.", "input": "", "output": f"It is {at}."} for at in range(count)]
        lines = [json.dumps(row | {"prompt": row["instruction"]}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    short = {"direct": "none", "gate": False, "all.data.max_response_tokens": 32, "all.budget.steps": 1}
    for rows_of in ("starter", "dolly:dev"):
        settings = short | {"all.data": rows_of} | ({"all.data.heldout": "dolly:valid"} if ":" in rows_of else {})
        train(**settings)
        assert all(planned["taken_from"] for planned in train(**settings).read("stages")), rows_of
    (folder / "dev.jsonl").write_text("".join(reversed(lines * 2)).replace("valid", "dev"))
    assert not any(planned["taken_from"] for planned in train(**settings).read("stages"))


@pytest.mark.usefixtures("place")
def test_a_stage_with_another_plain_text_is_not_taken_over() -> None:
    stage = {"teacher": "teacher", "student": {"keep_layers": 2}, "data": SMALL["all.data"], "budget": {"steps": 1}}
    stage["evaluation"] = SMALL["all.evaluation"]
    text = {"name": "text", "source": {"name": "dataset", "view": "plain_text", "path": "text.txt", "block_tokens": 8}}
    streams = [{"signal": "logits", "terms": ["forward_kl"]}, text | {"terms": ["cross_entropy"]}]
    first = stage | {"name": "first", "streams": streams}
    second = first | {"name": "second", "student": "previous"}
    Path("two.yaml").write_text(json.dumps({"device": "cpu", "dtype": "float32", "stages": [first, second]}))
    for words, taken in (("The goat is red.", 0), ("The goat is red.", 2), ("A hat is blue.", 0)):
        Path("text.txt").write_text(f"{words} " * 20)
        run = potstill.train("two.yaml")
        assert sum(planned["taken_from"] is not None for planned in run.read("stages")) == taken


@pytest.mark.parametrize("changed", ["rows", "teacher"])
def test_stages_of_other_rows_or_of_another_teacher_are_not_taken_over(place: Path, changed: str) -> None:
    train(run="first", direct="none", gate=False)
    if changed == "rows":
        tiny.data_file(place, 36)
    else:
        shutil.rmtree("teacher")
        tiny.save(tiny.llama(2, layers=4), place / "teacher")
    second = train(run="second", direct="none", gate=False)
    assert [planned["taken_from"] for planned in second.read("stages")] == [None, None]


def test_a_gate_stops_where_an_assistant_has_nothing_to_teach(place: Path) -> None:
    """An assistant drawn anew and hardly trained, before a student that can do more than it."""
    drawn = {"kind": "fresh", "model": "teacher"}
    still = {"assistant.optimizer.learning_rate": 1e-30, "student.student": "teacher", "direct": "none"}
    with pytest.raises(TeacherError, match=r"the gate of stage student is shut: perplexity of its teacher is \d"):
        train(run="shut", assistants=[drawn], **still)
    assert not (Path("runs/shut/stages/2-student") / "metrics.jsonl").exists()
    run = train(run="open", assistants=[drawn], gate=False, **still)
    assert (run.stages[1].path / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learner": "nowhere"}, "student.student is nowhere: not found here"),
        ({"teacher": "nowhere"}, "assistant.teacher is nowhere: not found here"),
        (
            {"assistants": [2, 3], "learner": 1},
            "assistant-2.student.keep_layers is 3, and what is cut there has 2",
        ),
        ({"assistants": [9]}, "assistant.student.keep_layers is 9, and what is cut there has 4 layers"),
        (
            {"assistants": ["other"], "learner": 3},
            "student.student.keep_layers is 3, and what is cut there has 2",
        ),
    ],
)
@pytest.mark.usefixtures("place")
def test_models_that_are_not_there_or_too_small_are_refused_before_the_first_stage(
    settings: dict[str, Any], said: str
) -> None:
    tiny.save(tiny.llama(7, layers=2), Path("other"))
    with pytest.raises(ModelError, match=said):
        train(run="late", **settings)
    assert not Path("runs/late").exists()
    if "nowhere" not in settings.values():
        (*_, last) = doctor.recipe("teacher_assistant", SMALL | settings, METHODS, False)
        assert (last.status, said in last.detail) == ("bad", True)


@pytest.mark.parametrize(
    ("best_by", "figure", "teacher", "untouched", "shut"),
    [
        ("perplexity", "perplexity", 5.0, 6.0, False),
        ("perplexity", "perplexity", 6.0, 5.0, True),
        ("perplexity", "perplexity", 5.0, 5.0, True),
        ("rouge_l", "rouge_l", 30.0, 20.0, False),
        ("rouge_l", "rouge_l", 20.0, 30.0, True),
        ("forward_kl_nats", "perplexity", 6.0, 5.0, True),
        ("forward_kl_nats", "perplexity", 5.0, 6.0, False),
    ],
)
def test_a_gate_goes_by_the_metric_that_names_the_best_student_or_by_perplexity(
    tmp_path: Path, best_by: str, figure: str, teacher: float, untouched: float, shut: bool
) -> None:
    """Divergences are from the teacher, which has none of its own."""
    run = Run(tmp_path)
    for model, value in (("teacher", teacher), ("student_before", untouched)):
        run.write(f"eval/{model}", {figure: value})
    gated = recipe_io.load("teacher_assistant", SMALL | {"all.checkpoint.best_by": best_by}, methods=METHODS).stages[1]
    bench: Any = SimpleNamespace(run=run, runtime=Runtime(torch.device("cpu"), torch.float32))
    with pytest.raises(TeacherError, match=f"shut: {figure} of its") if shut else nullcontext():
        one_stage._check_gate(bench, one_stage.Training("student_after", gated, run))
    one_stage._check_gate(bench, one_stage.Training("equal_time_sft", gated, run))


def test_a_stage_of_equal_compute_is_another_where_what_it_equals_is() -> None:
    """Nothing else of the stages before it is in it."""
    one, other = (
        stages.recipe_hashes(recipe_io.load("teacher_assistant", SMALL | changed, methods=METHODS))
        for changed in ({}, {"assistant.optimizer.learning_rate": 1e-3})
    )
    assert [name for name in one if one[name] == other[name]] == ["direct"]


def test_a_stage_is_known_by_every_file_that_it_reads_beside_its_rows(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("annotations", "channels", "text")}
    term = {"objective": {"name": "hidden_mse", "channels": {"name": "selected", "file": str(files["channels"])}}}
    text = {"name": "dataset", "view": "plain_text", "path": str(files["text"])}
    streams = [
        {"signal": "logits", "terms": [term]},
        {"name": "b", "source": text, "terms": [{"objective": "cross_entropy"}]},
    ]
    data = {"path": "rows.jsonl", "annotations": str(files["annotations"])}
    told = {"teacher": "nowhere/a", "student": "nowhere/b", "data": data, "streams": streams, "budget": {"steps": 1}}
    recipe = Recipe(stages=(Stage.model_validate(told),))
    for file in files.values():
        file.write_text("first")
    before = made_before.models_of(recipe)
    for file in files.values():
        file.write_text("second")
        after = made_before.models_of(recipe)
        assert sum(before[part] != after[part] for part in before) == 1, file.name
        before = after


def test_a_key_of_all_stages_and_one_of_its_own() -> None:
    recipe = recipe_io.load("teacher_assistant", SMALL | {"student.budget.steps": 9}, methods=METHODS)
    assert [one.budget.steps for one in recipe.stages] == [STEPS, 9, STEPS, None]
    assert {one.data.path for one in recipe.stages} == {"rows.jsonl"}
    with pytest.raises(ConfigError) as caught:
        recipe_io.load("teacher_assistant", {"all.budget.stps": 3}, methods=METHODS)
    assert str(caught.value).count("stps") == 1
    assert "all.budget.stps: unknown key. Did you mean 'steps'?" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stage_method": "sft"}, "stage_method is sft, which has no teacher in one stage"),
        ({"result": "nobody"}, "result is nobody, which is no stage. Name one of assistant, student"),
        ({"assistant.budget": {"compute_of": ["student"]}}, "has the budget of stage student, which is not before it"),
        ({"student.evaluation.leave_out": ["untouched"]}, "has a gate, which compares with the untouched student"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe_io.load("teacher_assistant", settings, methods=METHODS)
