"""What stands in a comparison, and what it says cannot be compared."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.evaluation.metrics.significance import bootstrap_interval, gap_closed, paired_difference
from potstill.evaluation.suites import SUITES
from potstill.evaluation.suites.run import Result
from potstill.reporting.comparison import baseline_of, compare, markdown
from potstill.reporting.comparison.gathered import entries
from potstill.reporting.comparison.notes import ALWAYS, looked_at
from potstill.reporting.comparison.table import Entry, Measure, tabulate
from potstill.reporting.formats import MISSING
from potstill.reporting.published import load_published
from potstill.reporting.report import render
from potstill.run import Run
from tests.unit.reporting import fake_comparison
from tests.unit.reporting.fake_runs import EVALUATIONS, RECIPE, write_lines, write_run

TEACHER, UNTOUCHED = Entry("a:teacher", "teacher", "teacher"), Entry("a:untouched", "untouched student", "untouched")
SFT, STUDENT = Entry("a:sft", "a, equal-time SFT", "sft", "sft"), Entry("a:student", "a", "student", "kd")
ENTRIES = (TEACHER, UNTOUCHED, SFT, STUDENT)
ENDS = {entry.key: (UNTOUCHED.key, TEACHER.key) for entry in (SFT, STUDENT)}


def measure(scores: dict[str, list[float]], **settings: Any) -> Measure:
    by_example = {f"a:{role}": {str(at): v for at, v in enumerate(values)} for role, values in scores.items()}
    return Measure("score", settings.pop("better", "higher"), by_example, between=ENDS, **settings)


def two(tmp_path: Path) -> tuple[Run, Run]:
    return write_run(tmp_path / "first"), write_run(tmp_path / "second")


# --- The table --------------------------------------------------------------------------------------------------------


def test_each_run_has_its_student_and_its_baseline_below_one_teacher(tmp_path: Path) -> None:
    found = compare(two(tmp_path))
    assert [entry.name for entry in found.table.entries] == [
        "teacher",
        "untouched student",
        "first, equal-time SFT",
        "first",
        "second, equal-time SFT",
        "second",
    ]
    assert found.table.baseline is found.table.entries[2]
    assert [e.cost is None for e in found.table.entries] == [True, True, False, False, False, False]
    shown = markdown.markdown(found)
    assert shown.count("\n| first") == 2
    json.dumps(markdown.as_json(found), allow_nan=False)


def test_two_teachers_stand_apart_with_the_run_they_are_of(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    other.recipe_file.write_text(other.recipe_file.read_text().replace("model: smollm2-135m-instruct", "model: other"))
    names = [entry.name for entry in compare([one, other]).table.entries]
    assert names[:2] == [f"teacher ({one.path})", f"teacher ({other.path})"]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("first", 3), ("second, equal-time SFT", 4), ("first:untouched", 1), ("untouched student", 1), ("untouched", 1)],
)
def test_the_baseline_is_the_one_that_is_named(tmp_path: Path, wanted: str, index: int) -> None:
    models = entries(two(tmp_path))
    assert baseline_of(models, wanted) is models[index]


def test_one_of_two_untouched_students_is_named_without_its_run(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    evaluations = copy.deepcopy(EVALUATIONS)
    evaluations["student_before"]["perplexity"] = 7.0
    other.write("eval/student_before", evaluations["student_before"])
    models = entries([one, other])
    assert [entry.name for entry in models[1:3]] == [f"untouched student ({run.path})" for run in (one, other)]
    assert baseline_of(models, "untouched") is models[1]
    assert baseline_of(models, "second:untouched") is models[2]


def test_without_equal_time_fine_tuning_a_run_of_it_is_the_baseline_and_else_the_untouched_student(
    tmp_path: Path,
) -> None:
    alone = {part: found for part, found in EVALUATIONS.items() if part != "equal_time_sft"}
    kd = write_run(tmp_path / "kd", evaluations=alone)
    sft = write_run(tmp_path / "sft", evaluations=alone, recipe=RECIPE.replace("method: kd", "method: sft"))
    assert [compare(runs).table.baseline.name for runs in ([kd, sft], [kd])] == ["sft", "untouched student"]


def test_a_teacher_that_was_measured_on_other_rows_stands_apart(tmp_path: Path) -> None:
    changed = copy.deepcopy(EVALUATIONS)
    changed["teacher"]["num_tokens"] += 1
    runs = [write_run(tmp_path / "first"), write_run(tmp_path / "second", evaluations=changed)]
    assert [entry.role for entry in compare(runs).table.entries][:3] == ["teacher", "teacher", "untouched"]


def test_a_baseline_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        baseline_of(entries(two(tmp_path)), "third")
    assert "second, equal-time SFT" in str(caught.value)


def test_a_run_of_sft_is_a_fine_tuned_baseline(tmp_path: Path) -> None:
    kd = write_run(tmp_path / "kd", evaluations={k: v for k, v in EVALUATIONS.items() if k != "equal_time_sft"})
    assert baseline_of(entries([kd])).role == "untouched"
    sft = write_run(tmp_path / "sft", recipe=RECIPE.replace("method: kd", "method: sft"))
    (sft.path / "eval" / "equal_time_sft.json").unlink()
    assert baseline_of(entries([kd, sft])).name == "sft"


def test_weights_are_those_of_the_examples() -> None:
    """A figure of tokens: the mean over all of them, with an interval that knows that examples differ in length."""
    whole = measure({"student": [1.0, 3.0], "sft": [1.0, 1.0]}, weights={"0": 1.0, "1": 3.0})
    cells = tabulate(ENTRIES, [whole], SFT).cells[0]
    assert cells[STUDENT.key].mean == pytest.approx(2.5)
    assert cells[SFT.key].interval == pytest.approx((1, 1))
    assert cells[STUDENT.key].against.difference.mean == pytest.approx(1.5)


def test_intervals_gaps_and_p_are_weighted_as_the_mean_is() -> None:
    scores = {"teacher": [9.0, 7, 8, 9], "untouched": [1.0, 2, 0, 1], "student": [2.0, 6, 1, 8], "sft": [3.0, 1, 2, 2]}
    weights = [1.0, 20.0, 2.0, 7.0]
    whole = measure(scores, weights={str(at): weight for at, weight in enumerate(weights)})
    cell = tabulate(ENTRIES, [whole], SFT).cells[0][STUDENT.key]
    assert cell.interval == bootstrap_interval(scores["student"], weights=weights)
    assert cell.gap == gap_closed(*(scores[of] for of in ("student", "untouched", "teacher")), weights=weights)
    assert cell.against.difference == paired_difference(scores["student"], scores["sft"], weights=weights)


def test_only_what_was_trained_has_a_share_of_the_gap() -> None:
    scores = {role: [float(at), at + 1.0] for at, role in enumerate(("untouched", "sft", "student", "teacher"))}
    ends = dict.fromkeys([entry.key for entry in ENTRIES], (UNTOUCHED.key, TEACHER.key))
    cells = tabulate(ENTRIES, [replace(measure(scores), between=ends)], SFT).cells[0]
    assert [cells[entry.key].gap is None for entry in ENTRIES] == [True, True, False, False]


def test_a_difference_is_sure_by_the_p_of_the_whole_table() -> None:
    """Of ten examples, all better, p is near 1/512: sure for one measure and not for forty."""
    scores = {"student": [1.0] * 10, "sft": [0.0] * 10}
    one, *_ = tabulate((SFT, STUDENT), [measure(scores)], SFT).cells
    many, *_ = tabulate((SFT, STUDENT), [measure(scores)] * 40, SFT).cells
    assert [cells[STUDENT.key].against.is_sure for cells in (one, many)] == [True, False]


def test_only_examples_that_all_were_asked_are_paired() -> None:
    scores = {"teacher": [9.0, 9, 9], "untouched": [1.0, 1, 1], "student": [5.0, 5, 5, 100.0], "sft": [2.0, 2]}
    cells = tabulate(ENTRIES, [measure(scores)], SFT).cells[0]
    assert cells[STUDENT.key].num == 4
    assert cells[STUDENT.key].gap.share == pytest.approx(0.5)
    assert (cells[STUDENT.key].against.num, cells[STUDENT.key].against.difference.mean) == (2, pytest.approx(3))
    apart = Measure("score", "higher", {STUDENT.key: {"x": 1.0}, SFT.key: {"y": 1.0}})
    assert tabulate(ENTRIES, [apart], SFT).cells[0][STUDENT.key].against is None


def test_p_is_corrected_over_the_whole_table_and_teachers_are_no_competitors() -> None:
    better = [1.0] * 12
    scores = {"teacher": better, "untouched": better, "student": better, "sft": [0.0] * 12}
    table = tabulate(ENTRIES, [measure(scores)] * 2, SFT)
    assert TEACHER.key in table.cells[0]
    assert table.cells[0][TEACHER.key].against is None
    for cells in table.cells:
        against = cells[STUDENT.key].against
        assert against.p_holm == pytest.approx(4 * against.difference.p)  # two models in two measures


def test_of_trials_that_all_failed_the_interval_says_how_few_they_were() -> None:
    none = measure({"student": [0.0] * 5, "sft": [1.0] * 5}, of_trials=True)
    cells = tabulate(ENTRIES, [none], SFT).cells[0]
    assert cells[STUDENT.key].interval == pytest.approx((0, 0.4345), abs=1e-3)  # Wilson's for 0 of 5
    assert cells[SFT.key].interval == pytest.approx((1 - 0.4345, 1), abs=1e-3)


def test_units_are_shown() -> None:
    assert measure({}, unit="perplexity").shown(math.log(20)) == pytest.approx(20)
    assert measure({}, unit="percent").shown(0.25) == 25
    assert measure({}).shown(0.25) == 0.25


def test_the_printed_cells_are_what_their_heads_say() -> None:
    made = fake_comparison.comparison()
    printed = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in markdown.markdown(made).splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    figures, differences = printed[: len(fake_comparison.ALL) + 1], printed[len(fake_comparison.ALL) + 1 :]
    cells = {row[0]: dict(zip(figures[0], row, strict=True)) for row in figures[1:]}
    assert (cells["second"]["teacher tokens"], cells["second"]["student tokens"]) == ("80,000", "5,000")
    assert [cells[name]["of the gap in forward KL (nats)"] for name in ("teacher", "second")] == [
        MISSING,
        "79.8% [79.2%, 80.3%]",
    ]
    rows = {(row[0], row[1]): dict(zip(differences[0], row, strict=True)) for row in differences[1:]}
    against = made.table.cells[1][fake_comparison.SECOND.key].against
    assert against.difference.p < against.p_holm
    shown = rows["second", "top-1 agreement"]
    assert (shown["p"], shown["p, Holm"]) == (f"{against.difference.p:.2g}", f"{against.p_holm:.2g}")
    assert (shown["examples"], rows["first", "top-1 agreement"]["so"]) == ("40", "not sure")


# --- What cannot be compared ------------------------------------------------------------------------------------------


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
    assert looked_at(one) == ["first"]


def test_the_same_everything_leaves_only_what_is_always_so(tmp_path: Path) -> None:
    runs = two(tmp_path)
    for run in runs:
        for part in EVALUATIONS:
            write_lines(
                run.rows_file(part),
                [{"id": "1", "input": "", "references": [], "predictions": {}, "scores": {"tokens": 2}}],
            )
    assert compare(runs).notes == (ALWAYS,)


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


def test_a_run_without_a_teacher_has_no_other_teacher(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    other.recipe_file.write_text(other.recipe_file.read_text().replace("model: smollm2-135m-instruct", "model: other"))
    (other.path / "eval" / "teacher.json").unlink()
    assert not any("teachers differ" in note for note in compare([one, other]).notes)


def test_students_that_began_differently_and_budgets_that_differ_are_noticed(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first")
    evaluations = copy.deepcopy(EVALUATIONS)
    evaluations["student_before"]["perplexity"] = 7.0
    other = write_run(tmp_path / "second", evaluations=evaluations)
    cost = one.read("cost") | {"teacher_tokens": 1000, "tokens": 1000}
    one.write("cost", cost)
    other.write("cost", cost | {"training_s": 3 * cost["training_s"], "teacher_tokens": 3000})
    notes = compare([one, other]).notes
    assert any("the students began differently" in note for note in notes)
    assert any("none is at equal time" in note for note in notes)
    assert "the teacher was asked about from 1,000 to 3,000 tokens" in notes
    assert not any("students were trained on" in note for note in notes)


def test_a_run_that_is_not_finished_or_too_old_is_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first")
    other = write_run(tmp_path / "second", evaluations={"teacher": EVALUATIONS["teacher"]})
    found = compare([one, other])
    assert any(note == "not finished: second" for note in found.notes)
    assert any("older versions" in note and note.endswith(": first, second") for note in found.notes)
    assert not any(entry.name.startswith("second") for entry in found.table.entries)


def test_how_often_test_rows_were_looked_at_is_said(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    assert looked_at(one) == ["first", "second"]
    lines = compare([one]).hygiene
    assert "chose nothing" in lines[0]
    assert "measured in 2 runs" in lines[1]
    assert "measured in 2 runs" in render(one)
    (other.path / "eval" / "student_after.json").unlink()
    assert len(compare([one]).hygiene) == 1


# --- Published figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["x", "[]", '{"files": 3}', '{"files": {"train": "a"}}', ""])
def test_a_damaged_run_beside_it_is_no_run_that_has_looked(tmp_path: Path, damage: str) -> None:
    one, beside = (write_run(tmp_path / name) for name in ("first", "second"))
    assert looked_at(one) == ["first", "second"]
    (beside.path / "data.json").write_text(damage, encoding="utf-8")
    assert looked_at(one) == ["first"]


def test_published_figures_stand_beside_those_of_the_same_method(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first", recipe=RECIPE.replace("method: kd", "method: minillm"))
    settings = {"suite": "dolly", "num_items": 100, "settings": asdict(SUITES["dolly"].settings), "items_sha256": "a"}
    scores = {"rouge_l_sampled": {"mean": 20.0, "low": 19.0, "high": 21.0, "num": 100}, "num_shortened": 0}
    result = Result(tmp_path / "evaluations" / "dolly-1", settings, scores)
    found = compare([run], {f"{run.path}:student": [result]}, published=load_published("minillm"))
    lines = [line for line in found.published if line.ours]
    assert lines
    assert {line.published.method for line in lines} == {"minillm"}
    assert {line.ours.teacher for line in lines} == {"smollm2-135m-instruct"}
    assert all(any(words.startswith("student:") for words in line.differs) for line in lines)
    assert "20.00 [19.00, 21.00]" in markdown.markdown(found)
    rows = markdown.as_json(found)["published"][0]["rows"]
    assert any(row["ours, 95% interval"] for row in rows)
    json.dumps(rows, allow_nan=False)
