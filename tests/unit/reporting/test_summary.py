"""The table of a run as data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from potstill.reporting.summary import FIGURES, is_finished, places, summary
from potstill.run import Run
from tests.unit.reporting.fake_runs import EVALUATIONS, write_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    run.student.mkdir(exist_ok=True)
    found = summary(run)
    assert list(found) == ["run", "method", "report", "student", *EVALUATIONS]
    assert (found["run"], found["method"]) == ("first", "kd")
    assert found["report"] == str(tmp_path / "first" / "report.html")
    assert found["student"] == str(tmp_path / "first" / "student")
    assert found["student_after"] == EVALUATIONS["student_after"]


def test_models_that_were_not_measured_are_absent_and_figures_null(tmp_path: Path) -> None:
    found = summary(write_run(tmp_path / "sft", evaluations={"student_after": {"perplexity": 30.0}}))
    assert list(found) == ["run", "method", "report", "student", "student_after"]
    assert found["student_after"] == dict.fromkeys(FIGURES) | {"perplexity": 30.0}


def test_figures_that_are_not_finite_are_null(tmp_path: Path) -> None:
    broken = {"perplexity": math.inf, "forward_kl_nats": math.nan, "extra": {"a": [1.0, -math.inf]}}
    found = summary(write_run(tmp_path / "broken", evaluations={"teacher": broken}))
    assert found["teacher"]["perplexity"] is None
    assert found["teacher"]["extra"] == {"a": [1.0, None]}
    json.dumps(found, allow_nan=False)


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    found = summary(Run(tmp_path))
    assert found == {
        "run": tmp_path.name,
        "method": None,
        "report": str(tmp_path / "report.html"),
        "student": None,
    }


def test_a_run_that_is_not_finished_says_how_it_goes_on_and_names_no_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = write_run(Path("runs/begun"), evaluations={"teacher": {"perplexity": 3.0}})
    elsewhere = write_run(Path("else/where"), evaluations={})
    without_baseline = {"student_after": {"perplexity": 30.0}}  # which the recipe asks for
    second = write_run(Path("runs/second"), evaluations=without_baseline)
    for run, name in ((begun, "begun"), (elsewhere, "else/where"), (second, "second")):
        assert not is_finished(run)
        student, _, hint = places(run)
        assert student == "student  not there yet"
        assert hint == f"not finished: go on with `potstill resume {name}`"


def test_a_finished_run_says_where_its_student_is_or_that_it_was_removed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    assert is_finished(run)
    assert places(run) == ["student  not kept", f"report   {run.report_file}"]
    run.student.mkdir()
    assert places(run)[0] == f"student  {run.student}"
