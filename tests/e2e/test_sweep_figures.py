"""The figures that a recipe says it will measure are those that its run has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill import recipe_io
from potstill.recipes import METHODS
from potstill.sweep.metric import OF_MODELS, figures_of
from tests import tiny
from tests.e2e.conftest import SMALL

FEW = SMALL | {"budget.steps": 1, "evaluation.max_examples": 3}
FORM = {"data.target": "label_then_rationale", "data.fields.rationale": "why"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a teacher": ("kd", FEW),
    "accuracy and no samples": ("kd", FEW | {"evaluation.accuracy": "exact", "evaluation.leave_out": "samples"}),
    "no teacher, and a form": (
        "sft",
        {key: value for key, value in FEW.items() if key not in ("teacher", "student.keep_layers")}
        | FORM
        | {"student": "teacher"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_figures_of_a_run_are_known_from_its_recipe(workspace: Path, case: str) -> None:
    method, settings = CASES[case]
    rows = [row | {"why": f"Because {row['response']}"} for row in tiny.rows()]
    (workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_io.load(method, settings, methods=METHODS)
    measured = potstill.train(recipe).read("eval/student_after")
    there = {name for name in measured if not name.endswith("_stderr")} - {*OF_MODELS}
    assert there == set(figures_of(recipe))
