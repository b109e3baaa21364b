"""From run folders and results of suites to the models, measures and costs of a comparison."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from potstill import api
from potstill.evaluation.suites import Settings
from potstill.evaluation.suites.run import Result
from potstill.reporting.comparison import compare, gathered, notes
from potstill.reporting.comparison.gathered import between, entries, own_measures, own_rows, suite_measures
from potstill.reporting.comparison.samples import side_by_side
from potstill.reporting.comparison.table import Cost
from potstill.run import Run
from tests.unit.reporting.fake_comparison import FIRST, SECOND, TEACHER
from tests.unit.reporting.fake_runs import EVALUATIONS, RECIPE, write_lines, write_run

TOKENS = {"rows.jsonl:1": 2, "rows.jsonl:2": 10, "rows.jsonl:3": 5}


def line(id: str = "rows.jsonl:1", text: str = "Who?", reference: str = "A goat.", **scores: float) -> dict[str, Any]:
    return {"id": id, "input": text, "references": [reference], "predictions": {}, "scores": {"tokens": 2} | scores}


def measured(folder: Path, **given: Any) -> Run:
    """A run with three held-out rows of its models; the first is answered."""
    run = write_run(folder, **given)
    for part in EVALUATIONS:
        sums = {"nats": 6.0, "forward_kl_nats": 4.0, "top1_agreement": 1.0}
        rows = [line(id, **sums | {"tokens": count}) for id, count in TOKENS.items()]
        rows[0]["scores"] |= {"rouge_l": 20.0, "rouge_l_sampled": 10.0}
        write_lines(run.rows_file(part), rows)
    return run


def result(folder: Path, suite: str, scores: list[dict[str, float]], shortened: int = 0, **told: Any) -> Result:
    write_lines(folder / "rows.jsonl", [line(str(at)) | {"scores": of} for at, of in enumerate(scores)])
    known = {"model": {"name": folder.name, "fingerprint": folder.name}, "suite": suite, "num_items": len(scores)}
    settings = known | {"items_sha256": "a", "settings": asdict(Settings())} | told
    write_lines(folder / "settings.json", [settings])
    return Result(folder, settings, {"num_shortened": shortened, "seconds": 1.0})


def test_rows_of_two_runs_are_one_where_place_text_and_reference_are_the_same(tmp_path: Path) -> None:
    runs = measured(tmp_path / "first"), measured(tmp_path / "second")
    write_lines(runs[0].rows_file("student_after"), [line(), line("b", "What?"), line("c"), line("d", reference="x")])
    write_lines(runs[1].rows_file("student_after"), [line(), line("b", "Why?"), line("z"), line("d", reference="y")])
    found = own_rows(runs, entries(runs))
    one, other = (found[f"{run.path}:student"] for run in runs)
    assert [len(rows) for rows in (one, other)] == [4, 4]
    assert [one[key]["id"] for key in one.keys() & other.keys()] == ["rows.jsonl:1"]


def test_figures_of_tokens_are_means_of_rows_that_weigh_what_they_have_of_them(tmp_path: Path) -> None:
    runs = [measured(tmp_path / "first")]
    found = own_measures(runs, entries(runs))
    assert [measure.name for measure in found] == [
        "forward KL (nats)",
        "top-1 agreement",
        "perplexity",
        "Rouge-L",
    ]
    for measure, total in zip(found[:3], (4.0, 1.0, 6.0), strict=True):
        scores = measure.scores[f"{runs[0].path}:student"]
        assert sorted(scores.values()) == pytest.approx(sorted(total / count for count in TOKENS.values()))
        assert {key: measure.weights[key] for key in scores} == pytest.approx(
            {key: total / score for key, score in scores.items()}
        )
    assert list(found[3].scores[f"{runs[0].path}:student"].values()) == [20.0]  # of the greedy answer
    assert found[3].weights == {}
    assert all(measure.between == between(runs) for measure in found)


def test_a_students_gap_lies_between_its_own_untouched_student_and_its_own_teacher(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first")
    other = write_run(tmp_path / "second", recipe=RECIPE.replace("smollm2-135m-instruct", "other"))
    assert between([one, other]) == {
        f"{run.path}:{role}": (f"{one.path}:untouched", f"{run.path}:teacher")  # one untouched student stands for both
        for run in (one, other)
        for role in ("sft", "student")
    }


def test_a_suites_figure_has_its_protocols_direction_weights_and_gap(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    key = f"{run.path}:student"
    scores = [{"nats": 8.0, "tokens": 2, "bytes": 4}, {"nats": 8.0, "tokens": 3, "bytes": 16}]
    (measure,) = suite_measures({key: [result(tmp_path / "p", "plain_text", scores)]}, [run])
    assert (measure.name, measure.better) == ("plain_text: bits per byte", "lower")
    assert measure.scores[key] == pytest.approx({"0": 2 / math.log(2), "1": 0.5 / math.log(2)})
    assert measure.weights == {"0": 4, "1": 16}
    assert measure.between == between([run])
    (accuracy,) = suite_measures({key: [result(tmp_path / "m", "maths", [{"accuracy": 1.0}])]}, [run])
    assert (accuracy.better, accuracy.weights) == ("higher", {"0": 1.0})


def test_what_a_teacher_wrote_beforehand_is_part_of_what_the_student_cost_and_not_of_the_baselines(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "first")
    asked = {"training_s": 60.0, "teacher_text_s": 30.0, "teacher_tokens": 500, "tokens": 900}
    run.write("cost", asked | {"baseline_training_s": 61.0, "baseline_teacher_tokens": 0, "baseline_tokens": 700})
    write_lines(run.path / "teacher_text" / "data" / "card.json", [{"written_tokens": 40}])
    costs = {entry.role: entry.cost for entry in entries([run])}
    assert costs == {
        "teacher": None,
        "untouched": None,
        "sft": Cost(61.0, 0, 700),
        "student": Cost(90.0, 540, 900),
    }


def test_models_that_were_asked_otherwise_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    first, accuracy = f"{run.path}:student", [{"accuracy": 1.0}]
    base = result(tmp_path / "base", "maths", accuracy)

    def said(other: Result) -> list[str]:
        found = notes.notes([run], entries([run]), {first: [base], f"{run.path}:sft": [other]})
        return [note for note in found if note.startswith("maths: ")]

    assert said(result(tmp_path / "same", "maths", accuracy)) == []
    assert said(result(tmp_path / "a", "maths", accuracy, items_sha256="b")) == [
        "maths: the models were asked different items"
    ]
    assert said(result(tmp_path / "b", "maths", accuracy, settings=asdict(Settings(max_new_tokens=9)))) == [
        "maths: the models were asked under different settings"
    ]
    assert said(result(tmp_path / "c", "maths", accuracy, shortened=3)) == [
        "maths: of some models 0 inputs were shortened, of others 3"
    ]


def test_models_that_have_been_asked_the_same_items_are_counted_once_each(tmp_path: Path) -> None:
    run, root = write_run(tmp_path / "first"), tmp_path / "evaluations"
    asked = result(root / "maths-1", "maths", [{"accuracy": 1.0}])
    result(root / "maths-2", "maths", [{"accuracy": 1.0}])
    result(root / "maths-3", "maths", [{"accuracy": 1.0}], model={"name": "again", "fingerprint": "maths-1"})
    result(root / "maths-4", "maths", [{"accuracy": 1.0}], items_sha256="other")
    lines = compare([run], {f"{run.path}:student": [asked]}).hygiene
    assert [line for line in lines if line.startswith("maths: 2 models have been asked these items so far")]


def test_rows_were_held_out_alike_only_under_the_same_settings(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first")
    other = write_run(tmp_path / "second", recipe=RECIPE.replace("heldout: null,", "heldout: null, max_heldout: 50,"))
    elsewhere = write_run(tmp_path / "third", recipe=RECIPE.replace("path: starter", "path: copy.jsonl"))
    assert notes.held_out(one) == notes.held_out(elsewhere)
    assert notes.held_out(one) != notes.held_out(other)


def test_figures_of_a_teacher_are_published_as_of_no_teacher(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    found = {}
    for role in ("teacher", "untouched", "sft", "student"):
        asked = result(tmp_path / role, "maths", [{"accuracy": 1.0}])
        scores = asked.scores | {"accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}}
        found[f"{run.path}:{role}"] = [Result(asked.folder, asked.settings, scores)]
    mine = [one for one in gathered.ours([run], entries([run]), found) if one.figure == "accuracy"]
    assert [(one.method, one.teacher) for one in mine] == [
        ("teacher", None),
        ("untouched", None),
        ("sft", None),
        ("kd", "smollm2-135m-instruct"),
    ]
    assert {json.dumps([one.mean, one.low, one.high, one.num_items]) for one in mine} == {"[0.5, 0.4, 0.6, 1]"}


def test_examples_on_which_the_students_differ_most_stand_first_however_far_the_teacher_is() -> None:
    scores = {TEACHER.key: (9.0, 2.0, 2.0), FIRST.key: (1.0, 1.0, 3.0), SECOND.key: (2.0, 4.0, 3.0)}
    rows = {
        key: {str(at): line(str(at), of=score) | {"predictions": {"greedy": "x"}} for at, score in enumerate(own)}
        for key, own in scores.items()
    }
    found = side_by_side("dolly", (TEACHER, FIRST, SECOND), rows, "of")
    assert [(sample.id, sample.spread) for sample in found] == [("1", 3.0), ("0", 1.0), ("2", 0.0)]
    assert [answer.score for answer in found[1].answers] == [9.0, 1.0, 2.0]


def test_results_of_several_suites_are_those_of_the_models_that_gave_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models come one after the other, each with all its suites."""
    run = write_run(tmp_path / "first")
    made = [
        result(tmp_path / f"{suite}-{at}", suite, [{"accuracy": float(at)}])
        for at in range(len(entries([run])))
        for suite in ("maths", "svamp")
    ]
    monkeypatch.setattr(api, "evaluate_suites", lambda *_, **__: made)
    table = api.compare([run], suites=["maths", "svamp"]).table
    assert [measure.name for measure in table.measures] == ["maths: accuracy", "svamp: accuracy"]
    for cells in table.cells:
        assert [cells[entry.key].mean for entry in table.entries] == [0, 1, 2, 3]
