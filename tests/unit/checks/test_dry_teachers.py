"""Several teachers and rows by group before a run: what they take, and what stands in for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from potstill import recipe as schema
from potstill.checks.dry.data import ROWS, rows_for
from potstill.checks.dry.models import named_models
from potstill.checks.dry.shrinking import shrunken
from potstill.checks.dry.sizes import count, memory, pairs
from potstill.data.prepare import prepare
from potstill.streams import views_of
from tests import tiny

KL = [{"objective": "forward_kl"}]


def stream(name: str, teacher: str | None = None, group: str | None = None) -> dict[str, Any]:
    source = {"name": "dataset"} | ({"where": {"group": group}} if group else {})
    return {"name": name, "teacher": teacher, "signal": "logits", "source": source, "terms": KL}


def stage(name: str = "student", **settings: Any) -> schema.Stage:
    given = {"teacher": {"kind": "model", "model": "near"}, "streams": [stream("data")], "budget": {"steps": 4}}
    return schema.Stage.model_validate(given | {"name": name, "student": {"keep_layers": 2}} | settings)


def guided() -> schema.Recipe:
    """A student of three: the assistant that an earlier stage makes, and one model under two names."""
    assistant = stage("assistant", student={"keep_layers": 3})
    named = {"far": {"kind": "model", "model": "far"}, "again": {"kind": "model", "model": "far"}}
    asks = [stream("data"), stream("far", "far"), stream("again", "again")]
    student = stage(teacher={"kind": "stage"}, teachers=named, streams=asks)
    return schema.Recipe(stages=(assistant, student))


with torch.device("meta"):
    MODELS = {("near", None): tiny.llama(1, layers=4), ("far", None): tiny.llama(2, layers=5)}


def test_every_teacher_is_counted_once_and_told_by_its_name() -> None:
    recipe = guided()
    assert named_models(recipe.stages[1]) == [("far", None)]
    _, pair = pairs(recipe, MODELS)
    expected = {"teacher": "student of assistant", "teacher far": "far", "teacher again": "far"}
    assert pair.names == expected | {"student": "cut from student of assistant"}
    assert [count(pair.model(role)) for role in ("teacher far", "teacher")] == [
        count(MODELS["far", None]),
        count(tiny.llama(1, layers=3)),
    ]
    both = count(tiny.llama(1, layers=3)) + count(MODELS["far", None])
    assert memory(pair, "float32")["teacher"] == 4 * both


def test_the_small_recipe_has_small_teachers(tmp_path: Path) -> None:
    recipe = guided()
    places = {key: tmp_path / key[0] for key in MODELS}
    small = shrunken(recipe, places, tuple(pairs(recipe, MODELS)), lambda one: one.data, lambda _, source: source)
    assert small.stages[1].teacher == schema.StageTeacher()
    assert {one.model for one in small.stages[1].teachers.values()} == {str(tmp_path / "far")}
    assert small.stages[0].teacher == schema.Teacher(model=str(tmp_path / "near"))


def routed(file: Path) -> schema.Stage:
    asks = [stream("sums", group="math"), stream("rest", group="code")]
    return stage(streams=asks, data={"path": str(file), "fields": {"group": "domain"}})


def test_rows_that_stand_in_have_the_groups_that_are_asked_for(tmp_path: Path) -> None:
    made = routed(tmp_path / "missing.jsonl")
    data = rows_for(made, tmp_path, own_tokenizer=True, say=lambda *_: None)
    found = prepare(data, tiny.tokenizer(), streams=views_of(made))
    assert {name: {row.group for row in rows} for name, rows in found.views.items()} == {
        "sums": {"math"},
        "rest": {"code"},
    }


def test_of_rows_that_are_here_none_is_left_out_where_groups_are_asked_for(tmp_path: Path) -> None:
    """One row of a group among many: a few drawn rows would lack it."""
    file = tmp_path / "rows.jsonl"
    rows = [row | {"domain": "math" if at else "code"} for at, row in enumerate(tiny.rows(8 * ROWS))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = rows_for(routed(file), tmp_path, own_tokenizer=True, say=lambda *_: None)
    assert data.subsample == 1
    ungrouped = stage(data={"path": str(file)})
    assert rows_for(ungrouped, tmp_path, own_tokenizer=True, say=lambda *_: None).subsample < 1
