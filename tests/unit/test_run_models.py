"""The models of a run by name, from its folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import ConfigError
from potstill.run_models import model_of
from tests.unit.reporting.fake_runs import RECIPE, write_run

PINNED = RECIPE.replace("revision: null", "revision: abc123")


def test_a_revision_that_the_recipe_pins_is_not_dropped_without_a_word(tmp_path: Path) -> None:
    """A name alone would be another model."""
    run = write_run(tmp_path / "first", recipe=PINNED)
    cut = "kind: pruned, model: null, keep_layers: 10, choose_by: block_influence"
    recipe = RECIPE.replace(cut, "kind: pretrained, model: small, revision: def456")
    whole = write_run(tmp_path / "second", recipe=recipe)
    with pytest.raises(ConfigError, match="smollm2-135m-instruct is pinned to revision abc123"):
        model_of(run, "teacher")
    with pytest.raises(ConfigError, match="small is pinned to revision def456"):
        model_of(whole, "untouched")
    assert model_of(write_run(tmp_path / "third"), "teacher") == "smollm2-135m-instruct"


def test_what_a_run_has_not_made_yet_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    for part in ("sft", "student"):
        with pytest.raises(ConfigError, match=f"first has no {part}"):
            model_of(run, part)
    run.student.mkdir()
    run.baseline.student.mkdir(parents=True)
    assert (model_of(run, "student"), model_of(run, "sft")) == (str(run.student), str(run.baseline.student))
