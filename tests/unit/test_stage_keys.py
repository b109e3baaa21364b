"""A setting that stands under no stage of a recipe: what is suggested, by the names of its stages."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from potstill import recipe_errors as errors
from potstill import recipe_io
from potstill.errors import ConfigError
from potstill.recipe import Recipe
from potstill.recipes import METHODS

NAMES = ("warm-up", "assistant", "last")
THERE = "Stages: warm-up, assistant, last, or 0 to 2"


def fix_of(key: str, value: Any, stages: tuple[str, ...] = NAMES) -> str | None:
    whole = recipe_io.load("sft", methods=METHODS).model_dump(mode="json")
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(whole | {key: value})
    (issue,) = errors.issues(caught.value, Recipe, (), stages)
    assert issue.cause == "unknown key"
    return issue.fix


def test_a_misspelt_stage_is_told_with_those_there_are() -> None:
    assert fix_of("asistant", {"budget": {"steps": 3}}) == f"Did you mean 'assistant'? {THERE}"
    assert fix_of("frst", {"budget": {"steps": 3}}) == THERE
    assert fix_of("seeds", {"budget": {"steps": 3}}) == THERE  # not the recipe's seed
    assert fix_of("warmup", 3) == f"Did you mean 'warm-up'? {THERE}"


def test_a_stages_setting_without_a_stage_is_told_where_it_stands() -> None:
    for key, value, own in (("budget", {"steps": 3}, "budget"), ("learning_rate", 3, "optimizer.learning_rate")):
        told = f"It is a stage's: write warm-up.{own}, or all in the stage's place. {THERE}"
        assert fix_of(key, value) == told


def test_a_key_of_the_recipe_is_still_suggested() -> None:
    assert fix_of("sed", 3) == "Did you mean 'seed'?"
    assert fix_of("budget", {"steps": 3}, ()) == "Did you mean 'stages.0.budget'?"


def test_keys_are_listed_once() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_io.load("kd", {"label_share": 1}, methods=METHODS)
    (problem,) = caught.value.problems
    keys = str(problem.fix).removeprefix("Valid keys: ").split(", ")
    assert len(keys) == len(set(keys)) > 10
