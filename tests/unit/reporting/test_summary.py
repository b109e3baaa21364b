"""The table of a run as data."""

from __future__ import annotations

import json
import math
from pathlib import Path

from potstill.reporting.summary import FIGURES, summary
from potstill.run import Run
from tests.unit.reporting.fake_runs import EVALUATIONS, write_run


def test_a_whole_run(tmp_path: Path) -> None:
    found = summary(write_run(tmp_path / "first"))
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
        "student": str(tmp_path / "student"),
    }
