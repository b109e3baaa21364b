"""Several stages: what each leaves behind, who teaches whom, and a run that was killed anywhere in them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import potstill
from potstill import api, made_before, recipe_io, stages
from potstill.errors import CheckpointError, ConfigError, DataError
from potstill.recipes import METHODS
from potstill.run import Run, replace_link
from tests import tiny
from tests.e2e.conftest import ROOT

STEPS = 4
COMMON: dict[str, Any] = {
    "data": "rows.jsonl",
    "optimizer": {"name": "adafactor", "learning_rate": 5e-3, "schedule": "constant"},
    "batch": 4,
    "budget": {"steps": STEPS},
    "checkpoint": {"every": 2},
    "evaluation": {"max_examples": 3, "generate_examples": 2, "max_new_tokens": 4},
}
SFT = {"terms": ["cross_entropy"]}
KD = {"signal": "logits", "terms": ["forward_kl"]}
ASSISTED: dict[str, Any] = {
    "method": "assisted",
    "run": "several",
    "device": "cpu",
    "dtype": "float32",
    "stages": [
        COMMON | {"name": "warm-up", "method": "sft", "student": "teacher", "streams": [SFT]},
        COMMON | {"name": "assistant", "teacher": "previous", "student": {"keep_layers": 3}, "streams": [KD]},
        COMMON | {"name": "last", "teacher": {"stage": "warm-up"}, "student": "previous", "streams": [KD]},
    ],
}


def written(folder: Path, recipe: dict[str, Any] = ASSISTED) -> Path:
    file = folder / "several.yaml"
    with file.open("w", encoding="utf-8") as handle:
        YAML().dump(json.loads(json.dumps(recipe)), handle)
    return file


def loaded(folder: Path, **overrides: Any) -> potstill.Recipe:
    return recipe_io.load(written(folder), overrides, methods=METHODS)


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the three stages were run once; what tests make in it is beside that run."""
    folder = tmp_path_factory.mktemp("several")
    tiny.save(tiny.llama(1, layers=4), folder / "teacher")
    tiny.data_file(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        potstill.train(written(folder))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(finished)
    return Run(Path("runs/several"))


def test_the_folder_is_what_it_promises_to_be(run: Run) -> None:
    names = {path.name for path in run.path.iterdir()} - {".lock"}
    assert names == {"recipe.yaml", "stages.json", "stages", "student", "report.html"}
    assert [stage.path.name for stage in run.stages] == ["1-warm-up", "2-assistant", "3-last"]
    assert run.student.resolve() == (run.path / "stages/3-last/student").resolve()
    for stage in run.stages:
        for name in ("recipe.yaml", "env.json", "metrics.jsonl", "cost.json", "report.html", "student/README.md"):
            assert (stage.path / name).is_file(), (stage.name, name)
    assert run.stages[0].name == "several/stages/1-warm-up"


def test_each_stage_begins_where_it_says(run: Run) -> None:
    """The same rows, so a student that goes on has the figures with which it was left."""
    warm_up, assistant, last = (stage.evaluations() for stage in run.stages)
    assert warm_up["student_before"]["perplexity"] > warm_up["student_after"]["perplexity"]
    assert assistant["teacher"]["perplexity"] == warm_up["student_after"]["perplexity"]
    assert last["teacher"]["perplexity"] == warm_up["student_after"]["perplexity"]
    assert last["student_before"]["perplexity"] == assistant["student_after"]["perplexity"]
    assert assistant["student_before"]["num_parameters"] < assistant["teacher"]["num_parameters"]


def test_a_student_that_teaches_is_what_it_was_when_it_was_made(run: Run) -> None:
    """By the hash that was taken when its stage ended, before it taught."""
    for stage, plan in zip(run.stages, run.read("stages"), strict=True):
        assert stages.student_sha256(stage.student) == plan["student_sha256"]


def test_each_stages_recipe_runs_by_itself_to_the_same_student(run: Run) -> None:
    for at, stage in enumerate(run.stages[1:], 2):
        alone = potstill.train(stage.recipe_file, run=f"alone-{at}")
        assert sha(alone.student) == sha(stage.student)
        assert len(recipe_io.load(stage.recipe_file, methods=METHODS).stages) == 1


def test_every_verb_takes_a_run_of_several_stages(run: Run) -> None:
    table = potstill.report("several")
    assert [line["name"] for line in table["stages"]] == ["warm-up", "assistant", "last"]
    assert [line["method"] for line in table["stages"]] == ["sft", "assisted", "assisted"]
    assert [line["steps"] for line in table["stages"]] == [STEPS] * 3
    assert [line["student"] for line in table["stages"]] == ["teacher", "of 1-warm-up", "of 2-assistant"]
    assert table["student_after"]["perplexity"] == run.stages[-1].evaluations()["student_after"]["perplexity"]
    page = run.report_file.read_text()
    for stage in run.stages:
        assert f'href="stages/{stage.path.name}/report.html"' in page
    measured = potstill.evaluate("several", data="rows.jsonl", answers=False, **{"evaluation.max_examples": 3})
    assert measured["num_parameters"] == table["student_after"]["num_parameters"]
    compared = api.compare(["several", "several/stages/1-warm-up"])
    assert {"several", "several/stages/1-warm-up"} <= {entry.name for entry in compared.table.entries}


def test_the_whole_is_not_done_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill import stage

    monkeypatch.setattr(stage, "run", lambda *_, **__: pytest.fail("a finished stage was run"))
    before = run.read("stages")
    potstill.resume("several")
    potstill.resume(run.path.resolve())
    assert run.read("stages") == before


def test_a_finished_stage_is_refused_other_settings_and_another_student(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree("runs/several", tmp_path / "copy", symlinks=True)
    copy = Run(tmp_path / "copy")
    text = copy.recipe_file.read_text()
    copy.recipe_file.write_text(text.replace("learning_rate: 0.005", "learning_rate: 0.004", 1))
    with pytest.raises(ConfigError, match="stage warm-up of copy was trained with other settings"):
        potstill.resume(copy)
    copy.recipe_file.write_text(text)
    (copy.path / "stages/2-assistant/student/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not the student that stage assistant made"):
        potstill.resume(copy)


def test_a_stage_is_known_by_its_settings_and_those_it_stands_on(tmp_path: Path) -> None:
    hashes = stages.recipe_hashes(loaded(tmp_path))
    later = stages.recipe_hashes(loaded(tmp_path, **{"last.budget.steps": 9}))
    first = stages.recipe_hashes(loaded(tmp_path, **{"warm-up.budget.steps": 9}))
    assert [name for name in hashes if hashes[name] != later[name]] == ["last"]
    assert [name for name in hashes if hashes[name] != first[name]] == ["warm-up", "assistant", "last"]
    elsewhere = stages.recipe_hashes(loaded(tmp_path, run="other", device="auto"))
    assert elsewhere == hashes


@pytest.mark.parametrize("key", ["stages.1.budget.steps", "assistant.budget.steps", "stages.assistant.budget.steps"])
def test_settings_of_a_stage_are_reached_by_its_place_and_by_its_name(tmp_path: Path, key: str) -> None:
    assert [stage.budget.steps for stage in loaded(tmp_path, **{key: 9}).stages] == [STEPS, 9, STEPS]


@pytest.mark.parametrize("key", ["asistant.budget.steps", "stages.asistant.budget.steps"])
def test_a_misspelt_stage_is_told_with_those_there_are(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'assistant'\? Stages: warm-up, assistant, last, or 0 to 2"):
        loaded(tmp_path, **{key: 9})


@pytest.fixture
def other(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Run, str, potstill.Recipe]]:
    """Beside a copy of the run: the stages of another run that is asked the same; where, their hash, their recipe."""
    import shutil

    shutil.copytree(".", tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    replace_link(Path("runs/latest"), "several")
    recipe, whole = recipe_io.load(run.recipe_file, methods=METHODS), Run(Path("runs/other"))
    hashes = stages.recipe_hashes(recipe)
    return [
        (Run(whole.path / plan["folder"]), hashes[plan["name"]], stages.resolved(recipe, at, whole))
        for at, plan in enumerate(run.read("stages"))
    ]


def test_a_stage_is_found_again_by_its_runs_own_name_where_versions_and_devices_are_the_same(other: list[Any]) -> None:
    """Which is not runs/latest: that will be another run's."""
    made = Run(Path("runs/several/stages/1-warm-up"))
    env = made.read("env")
    place, asked, recipe = other[0]
    assert made_before.find(place, asked, recipe, "cpu") == made
    assert made_before.find(place, "0" * 64, recipe, "cpu") is None
    for name in ("potstill", "torch", "transformers", "device", "dtype", "processes"):
        made.write("env", env | {name: "another"})
        assert made_before.find(place, asked, recipe, "cpu") is None, name


def test_of_two_that_are_the_same_the_newer_runs_is_found(other: list[Any]) -> None:
    import shutil

    for name, time in (("newer", 3e9), ("older", 1e9)):
        shutil.copytree("runs/several", f"runs/{name}", symlinks=True)
        os.utime(f"runs/{name}/stages.json", (time, time))
    place, asked, recipe = other[0]
    found = made_before.find(place, asked, recipe, "cpu")
    assert found == Run(Path("runs/newer/stages/1-warm-up"))


def test_what_is_taken_over_names_this_runs_models_and_shares_nothing_but_weights(other: list[Any]) -> None:
    for place, asked, recipe in other:
        made = made_before.find(place, asked, recipe, "cpu")
        assert made is not None
        made_before.take_over(made, place, recipe)
        assert recipe_io.load(place.recipe_file, methods=METHODS).stage == recipe.stage
        assert "runs/several" not in place.recipe_file.read_text()
        assert not (place.path / "checkpoints").exists()
        files = [file for file in place.path.rglob("*") if file.is_file()]
        shared = {file.name for file in files if file.samefile(made.path / file.relative_to(place.path))}
        assert shared == {"model.safetensors"}


def test_the_baseline_is_the_last_stages(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, baseline="equal_time_sft")
    alone = [stages.resolved(recipe, at, Run(tmp_path / "r")) for at in range(3)]
    assert [one.baseline for one in alone] == ["none", "none", "equal_time_sft"]


def test_another_seed_is_another_run_of_every_stage(tmp_path: Path) -> None:
    one, other = (stages.recipe_hashes(loaded(tmp_path, seed=seed)) for seed in (1, 2))
    assert not set(one.values()) & set(other.values())


def test_a_student_that_goes_on_keeps_its_embeddings_frozen_where_it_is_to(tmp_path: Path) -> None:
    for frozen in (False, True):
        recipe = loaded(tmp_path, **{"last.student": {"kind": "previous", "freeze_embeddings": frozen}})
        student = stages.resolved(recipe, 2, Run(tmp_path / "r")).stage.student
        assert (student.freeze_embeddings, Path(student.model).parent.name) == (frozen, "2-assistant")


WRONG = {
    "the first has no previous one": (("warm-up.student", "previous"), "there is no previous one"),
    "a teacher that comes later": (("assistant.teacher", {"kind": "stage", "stage": "last"}), "is not before it"),
    "one name twice": (("last.name", "warm-up"), "two stages are called warm-up"),
    "the word for the one before": (("last.name", "previous"), "Call it otherwise"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_follow_is_refused(tmp_path: Path, name: str) -> None:
    (key, value), said = WRONG[name]
    with pytest.raises(ConfigError, match=said):
        loaded(tmp_path, **{key: value})


def test_rows_of_a_late_stage_are_missed_before_the_first_is_run(workspace: Path) -> None:
    missing = "stage last: none.jsonl is not there"
    heldout = {"path": "rows.jsonl", "heldout": "none.jsonl"}
    for name, said in (("none.jsonl", missing), (heldout, missing), ("anli:r9_dev", "r9_dev")):
        with pytest.raises(DataError, match=said):
            potstill.train(written(workspace), **{"last.data": name})
    assert not list(Path("runs").glob("several*"))


def test_of_accuracies_within_a_standard_error_the_newest_student_is_kept(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations of the untouched student, then after steps 1 to 4."""
    from potstill import stage

    found = iter([(1.0, 0.0), (0.5, 0.1), (0.7, 0.1), (0.65, 0.1), (0.5, 0.1)])
    figures = ({"accuracy": value, "accuracy_stderr": error} for value, error in found)
    own = stage._job
    monkeypatch.setattr(stage, "_job", lambda *made: replace(own(*made), validate=lambda: next(figures)))
    alone = ASSISTED | {"run": "by-accuracy", "stages": ASSISTED["stages"][:1]}
    settings = {"checkpoint": {"every": 1, "best_by": "accuracy"}, "evaluation.accuracy": "exact"}
    made = potstill.train(written(workspace, alone), **settings)
    assert made.read("cost")["best_step"] == 3


# --- Killed -----------------------------------------------------------------------------------------------------------

SERVER = textwrap.dedent("""
    import json, os, signal, sys
    import potstill, potstill.api, potstill.stages as stages, potstill.training.checkpoint as checkpoint
    import transformers.models.llama.modeling_llama, transformers.generation, rouge_score.rouge_scorer

    def die(): os.kill(os.getpid(), signal.SIGKILL)

    def dying(module, name, number):
        # The number-th call dies before it does anything.
        own, count = getattr(module, name), [0]
        def call(*arguments, **named):
            count[0] += 1
            if count[0] == number: die()
            return own(*arguments, **named)
        setattr(module, name, call)

    PLACES = {
        "commit": (checkpoint.Writer, "commit"), "hash": (stages, "student_sha256"), "link": (stages, "replace_link"),
    }
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(order["folder"])
            if order["place"]: dying(*PLACES[order["place"]], order["number"])
            code = 1
            try:
                potstill.resume("several") if order["resume"] else potstill.train("several.yaml")
                code = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(code)
        print(os.waitpid(child, 0)[1], flush=True)
""")

# Two checkpoints a stage. Before the second one of stage 1; when stage 1 is made and not noted; in stages 2 and 3; when
# all is made and the run has no student yet. And how many stages are finished by then.
KILLS = {("commit", 2): 0, ("hash", 1): 0, ("commit", 4): 1, ("commit", 5): 2, ("hash", 3): 2, ("link", 1): 3}


def test_killed_in_the_second_stage_and_resumed_is_bitwise_the_uninterrupted_run(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    check_killed(run, finished, tmp_path, [("commit", 4)])


@pytest.mark.slow
def test_killed_anywhere_and_resumed_is_bitwise_the_uninterrupted_run(run: Run, finished: Path, tmp_path: Path) -> None:
    check_killed(run, finished, tmp_path, list(KILLS))


def check_killed(run: Run, finished: Path, tmp_path: Path, kills: list[tuple[str, int]]) -> None:
    expected = [(sha(stage.student), _metrics(stage)) for stage in run.stages]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
    )
    try:
        for place, number in kills:
            folder = tmp_path / f"{place}-{number}"
            folder.mkdir()
            for item in ("teacher", "rows.jsonl", "several.yaml"):
                (folder / item).symlink_to(finished / item)
            for resume in (False, True):
                order = {"folder": str(folder), "place": None if resume else place, "number": number, "resume": resume}
                assert server.stdin
                assert server.stdout
                print(json.dumps(order), file=server.stdin, flush=True)
                status = int(server.stdout.readline())
                said = (tmp_path / "log").read_text()
                assert status == 0 if resume else os.WTERMSIG(status) == signal.SIGKILL, said
            killed = Run(folder / "runs/several")
            assert [(sha(stage.student), _metrics(stage)) for stage in killed.stages] == expected, (place, number)
            assert killed.student.resolve() == killed.stages[-1].student.resolve()
        assert said.count("is finished") == sum(KILLS[kill] for kill in kills)
    finally:
        server.kill()
        log.close()


def _metrics(run: Run) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in run.metrics()]
