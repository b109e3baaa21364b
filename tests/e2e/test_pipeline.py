"""The whole way in one run: who is fine-tuned, who teaches whom, what the report says, and a stop in the middle."""

from __future__ import annotations

import hashlib
import html
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill import recipe_io
from potstill.errors import ConfigError, Stopped
from potstill.recipe import PretrainedStudent, PreviousStudent, Recipe, StageTeacher, Teacher
from potstill.recipes import METHODS
from potstill.reporting.standings import standings
from potstill.run import Run
from potstill.training import checkpoint
from tests import tiny

STEPS = 4
SMALL: dict[str, Any] = {
    "learner": 2,
    "device": "cpu",
    "dtype": "float32",
    "all.budget.steps": STEPS,
    "all.batch": 4,
    "all.checkpoint": {"every": 2, "best_by": "perplexity"},
    "all.evaluation": {"max_examples": 3, "generate_examples": 2, "max_new_tokens": 4, "leave_out": ["samples"]},
}


def loaded(**settings: Any) -> Recipe:
    return recipe_io.load("pipeline", settings, methods=METHODS)


def sha(run: Run) -> str:
    return hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fine_tune", "names", "teacher"),
    [
        ("both", ["teacher-sft", "warm-up", "student"], StageTeacher(stage="teacher-sft")),
        ("teacher", ["teacher-sft", "student"], StageTeacher(stage="teacher-sft")),
        ("student", ["warm-up", "student"], Teacher(model="big")),
        ("none", ["student"], Teacher(model="big")),
    ],
)
def test_what_is_fine_tuned_before(fine_tune: str, names: list[str], teacher: Any) -> None:
    made = loaded(fine_tune=fine_tune, teacher="big", learner=5)
    assert [stage.name for stage in made.stages] == names
    assert made.stage.teacher == teacher
    assert made.baseline == "equal_time_sft"
    of_student = made.stages[names.index("warm-up")] if "warm-up" in names else made.stage
    # What is cut is cut from the model that teaches, be it to be fine-tuned first or after.
    assert of_student.student.keep_layers == 5  # type: ignore[union-attr]
    assert of_student.teacher == teacher
    if names[0] == "teacher-sft":
        assert made.stages[0].optimizer.learning_rate == 5e-5
        assert (made.stages[0].student, made.stages[0].teacher) == (PretrainedStudent(model="big"), None)
    if "warm-up" in names:
        # Embeddings that were frozen in the warm-up stay so.
        assert made.stage.student == PreviousStudent(freeze_embeddings=True)
    for stage in made.stages[:-1]:
        assert [term.objective.name for stream in stage.streams for term in stream.terms] == ["cross_entropy"]


def test_assistants_are_fine_tuned_and_teach_the_next() -> None:
    made = loaded(teacher="big", assistants=["medium", "lesser"], learner="small")
    assert [stage.name for stage in made.stages] == [
        *("teacher-sft", "assistant-warm-up", "assistant", "assistant-2-warm-up", "assistant-2", "warm-up", "student")
    ]
    taught = {stage.name: stage.teacher.stage for stage in made.stages if isinstance(stage.teacher, StageTeacher)}
    assert taught == {"assistant": "teacher-sft", "assistant-2": "assistant", "student": "assistant-2"}
    began = [stage.student.model for stage in made.stages if isinstance(stage.student, PretrainedStudent)]
    assert began == ["big", "medium", "lesser", "small"]
    assert made.stage.name == "student"


def test_settings_reach_the_method_of_the_stage() -> None:
    made = loaded(stage_method="minillm", stage_settings={"preset": "lmops", "teacher_share": 0.0, "batch": 6})
    alone = recipe_io.load("minillm", {"preset": "lmops", "teacher_share": 0.0, "batch": 6}, methods=METHODS)
    assert made.stage.streams == alone.stage.streams
    assert (made.stage.method, made.stage.batch.size) == ("minillm", 6)
    chain = recipe_io.load("teacher_assistant", {"stage_settings": {"ce_weight": 0.5}}, methods=METHODS)
    assert [len(stage.streams[0].terms) for stage in chain.stages] == [2] * 4


def test_one_of_the_methods_settings_is_changed_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "method: pipeline\nstage_settings: {ce_weight: 0.5, optimizer: {weight_decay: 0.3, schedule: linear}}\n"
    )
    settings = {"stage_settings.optimizer.weight_decay": 0.2, "stage_settings.batch.size": 6}
    stage = recipe_io.load(file, settings, methods=METHODS).stage
    assert (stage.optimizer.weight_decay, stage.optimizer.schedule, stage.batch.size) == (0.2, "linear", 6)
    assert len(stage.streams[0].terms) == 2
    whole = recipe_io.load(file, {"stage_settings": {"optimizer": {"weight_decay": 0.2}}}, methods=METHODS).stage
    assert (whole.optimizer.weight_decay, whole.optimizer.schedule) == (0.2, "linear")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stage_method": "sft"}, r"stage_method is sft, which has no teacher in one stage. It is one of kd, seqkd"),
        ({"stage_method": "pipeline"}, "stage_method is pipeline"),
        ({"stage_settings": {"ce": 0.5}}, r"stage_settings are not of kd(.|\n)*ce: unknown key"),
        ({"stage_settings": {"ce_weight": 2.0}}, r"stage_settings are not of kd(.|\n)*ce_weight"),
        ({"stage_settings": {"seed": 3}}, "stage_settings are of one stage, and not of the run"),
    ],
)
def test_what_is_no_stage_or_no_setting_of_it_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loaded(**settings)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(data_dir: Path) -> Path:
    """A real language model of 260 thousand parameters, with its own tokenizer."""
    if not (folder := data_dir / "stories260k").is_dir():
        pytest.skip(f"needs {folder}")
    return folder


@pytest.fixture(scope="module")
def whole(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("whole"))
    try:
        run = potstill.train("pipeline", teacher=str(stories), run="whole", **SMALL)
        return Run(run.path.resolve())
    finally:
        os.chdir(before)


def test_each_step_takes_what_the_one_before_made(whole: Run, stories: Path) -> None:
    teacher, warm_up, student = whole.stages
    first, second, third = (stage.evaluations() for stage in whole.stages)
    assert teacher.read("student")["from"] == str(stories)
    assert warm_up.read("student")["from"].endswith("1-teacher-sft/student")
    assert (warm_up.read("student")["of_layers"], len(warm_up.read("student")["kept_layers"])) == (5, 2)
    assert student.read("student")["from"].endswith("2-warm-up/student")
    # The fine-tuned teacher teaches; the fine-tuned student is where distillation begins. On the same rows, so exactly.
    assert first["student_after"]["perplexity"] < first["student_before"]["perplexity"]
    assert third["teacher"]["perplexity"] == first["student_after"]["perplexity"]
    assert second["student_after"]["perplexity"] < second["student_before"]["perplexity"]
    assert third["student_before"]["perplexity"] == second["student_after"]["perplexity"]
    assert third["student_after"]["forward_kl_nats"] < third["student_before"]["forward_kl_nats"]
    assert "equal_time_sft" in third
    assert "equal_time_sft" not in second


def test_the_report_has_every_model_on_the_same_rows(whole: Run, stories: Path) -> None:
    first, second, third = (stage.evaluations() for stage in whole.stages)
    expected = {
        str(stories): first["student_before"],
        "student of teacher-sft": first["student_after"],
        "warm-up, before training": second["student_before"],
        "student of warm-up": second["student_after"],
        "student of student": third["student_after"],
        "equal-time SFT, beside student of student": third["equal_time_sft"],
    }
    table = standings(whole)
    at = [column.key for column in table.columns].index("perplexity")
    shown = {model: cells[at].value for model, cells in table.rows}
    assert shown == {model: table.columns[at].shown(figures["perplexity"]) for model, figures in expected.items()}
    assert (table.result, table.left_out) == ("student of student", ())
    page = html.unescape(re.sub(r"<[^>]+>|\s+", " ", whole.report_file.read_text(encoding="utf-8")))
    _, _, section = page.partition("Models on the same held-out examples")
    places = [section.index(f" {model} ") for model in expected]
    assert places == sorted(places)
    assert all(value in section for value in shown.values())


def test_stopped_in_the_second_step_and_resumed_it_makes_the_same_student(
    whole: Run, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own, commits = checkpoint.Writer.commit, 0

    def commit(*arguments: Any, **named: Any) -> Any:
        nonlocal commits
        commits += 1
        if commits == 3:  # two of the teacher, then the first of the warm-up
            os.kill(os.getpid(), signal.SIGTERM)
        return own(*arguments, **named)

    monkeypatch.setattr(checkpoint.Writer, "commit", commit)
    settings = SMALL | {"teacher": str(stories), "run": "stopped", "baseline": "none"}
    with pytest.raises(Stopped) as stopped:
        potstill.train("pipeline", **settings)
    assert stopped.value.exit_code == 75
    half = Run(Path("runs/stopped"))
    assert [bool(planned["student_sha256"]) for planned in half.read("stages")] == [True, False, False]
    taught = sha(half.stages[0])
    page = potstill.report("stopped")
    assert "student_after" not in page
    assert "The result has not been measured yet." in half.report_file.read_text(encoding="utf-8")
    potstill.resume("stopped")
    assert sha(half.stages[0]) == taught
    assert [sha(stage) for stage in half.stages] == [sha(stage) for stage in whole.stages]


def test_stages_on_other_rows_are_left_out_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.llama(1, layers=3), tmp_path / "big")
    tiny.save(tiny.llama(2, layers=2), tmp_path / "medium")
    tiny.save(tiny.llama(3, layers=1), tmp_path / "small")
    tiny.data_file(tmp_path)
    data = {"all.data": "rows.jsonl", "teacher-sft.data.max_heldout": 2, "all.budget.steps": 1, "baseline": "none"}
    models = {"teacher": "big", "assistants": ["medium"], "learner": "small"}
    run = potstill.train("pipeline", **(SMALL | data | models))
    table = standings(run)
    assert table.left_out == ("teacher-sft",)
    assert [model for model, _ in table.rows] == [
        *("medium", "student of assistant-warm-up", "student of assistant"),
        *("small", "student of warm-up", "student of student"),
    ]
    # Nobody teaches in a warm-up, and the assistant was compared with another teacher than the result.
    (at,) = (at for at, column in enumerate(table.columns) if column.key == "forward_kl_nats")
    assert [cells[at].value != "-" for _, cells in table.rows] == [False] * 5 + [True]
    assert "forward_kl_nats" in run.stages[2].evaluations()["student_after"]
    assert "not in this table: teacher-sft." in run.report_file.read_text(encoding="utf-8")
