"""Runs side by side."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from potstill.reporting.compare import ALWAYS, compare, markdown
from potstill.run import Run
from tests.unit.reporting.fake_runs import EVALUATIONS, write_run


def two(tmp_path: Path) -> tuple[Run, Run]:
    return write_run(tmp_path / "first"), write_run(tmp_path / "second")


def test_each_run_has_its_student_and_its_baseline_below_one_teacher(tmp_path: Path) -> None:
    found = compare(two(tmp_path))
    assert [line.name for line in found.lines] == [
        "teacher",
        "student before",
        "first",
        "first, equal-time SFT",
        "second",
        "second, equal-time SFT",
    ]
    first = found.lines[2]
    before, after = (EVALUATIONS[key]["forward_kl_nats"] for key in ("student_before", "student_after"))
    assert first.gap_closed == pytest.approx(1 - after / before)
    assert found.notes == (ALWAYS,)
    shown = markdown(found)
    assert shown.count("\n| first") == 2
    assert "lower is better" in shown


def test_what_cannot_be_compared_is_said_with_whose_it_is(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    data = one.read("data")
    data["files"] = {"train": {"file": "rows.jsonl", "sha256": "a", "rows": 9}}
    one.write("data", data)
    changed = copy.deepcopy(data)
    changed["files"]["train"]["sha256"] = "b"
    other.write("data", changed)
    notes = compare([one, other]).notes
    assert any(note.startswith("the held-out rows differ") and "(second from first)" in note for note in notes)
    assert any(note.startswith("the data trained on differs") for note in notes)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_new_tokens: 96", "max_new_tokens: 64", "Rouge-L cannot be compared"),
        ("model: smollm2-135m-instruct", "model: another", "the teachers differ"),
    ],
)
def test_other_settings_are_noticed(tmp_path: Path, old: str, new: str, said: str) -> None:
    one, other = two(tmp_path)
    text = other.recipe_file.read_text()
    assert old in text
    other.recipe_file.write_text(text.replace(old, new))
    assert any(said in note for note in compare([one, other]).notes)


def test_students_that_began_differently_and_trainings_of_other_lengths_are_noticed(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first")
    evaluations = copy.deepcopy(EVALUATIONS)
    evaluations["student_before"]["perplexity"] = 7.0
    other = write_run(tmp_path / "second", evaluations=evaluations)
    other.write("cost", other.read("cost") | {"training_s": 3 * one.read("cost")["training_s"]})
    notes = compare([one, other]).notes
    assert any("the students began differently" in note for note in notes)
    assert any("none is at equal time" in note for note in notes)


def test_a_run_that_is_not_finished_is_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first")
    other = write_run(tmp_path / "second", evaluations={"teacher": EVALUATIONS["teacher"]})
    found = compare([one, other])
    assert any(note == "not finished: second" for note in found.notes)
    assert not any(line.name.startswith("second") for line in found.lines)
    json.dumps([vars(line) for line in found.lines])
