"""Grid files: what cells they stand for, and every kind of mistake with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from potstill.errors import ConfigError, Problem
from potstill.sweep.cells import Plan, key_of, plan
from potstill.sweep.grid_file import KEYS

AXES = """
axes:
  optimizer.learning_rate: [0.001, 0.01]
  student:
    small: {student.keep_layers: 2}
    large: {student.keep_layers: 3, batch.size: 4}
  seed: [1, 2, 3]
"""


def planned(folder: Path, text: str) -> Plan:
    file = folder / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    return plan(file)


def mistakes(folder: Path, text: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        planned(folder, text)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def line_of(problem: Problem) -> int:
    return int(problem.where.rsplit(":", 2)[1])


def test_a_cell_for_each_combination_with_its_own_recipe(tmp_path: Path) -> None:
    found = planned(tmp_path, "method: kd\nset: {budget.steps: 7}\n" + AXES)
    assert len(found.cells) == 12
    assert len({cell.key for cell in found.cells}) == 12
    cell = found.cells[9]  # the last axis turns fastest
    assert dict(cell.places) == {"optimizer.learning_rate": "0.01", "student": "large", "seed": "1"}
    stage = cell.recipe.stage
    assert (stage.optimizer.learning_rate, stage.student.keep_layers, stage.batch.size) == (0.01, 3, 4)  # type: ignore[union-attr]
    assert stage.budget.steps == 7
    assert found.cells[0].recipe.stage.batch.size == 2  # kd's own: the other group's setting is not its
    assert cell.name == f"learning_rate0.01-large-seed1-{cell.key[:10]}"
    assert (found.grid.replicates, found.metric, found.grid.jobs) == ("seed", "rouge_l", 1)


def test_a_recipe_file_a_metric_and_no_replicates(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("method: kd\nbudget.steps: 3\nrun: one\n")
    text = "recipe: my.yaml\nmetric: perplexity\nreplicates: null\njobs: 3\naxes: {seed: [1, 2]}\n"
    found = planned(tmp_path, text)
    assert [cell.recipe.stage.budget.steps for cell in found.cells] == [3, 3]
    assert (found.metric, found.grid.replicates, found.grid.jobs) == ("perplexity", None, 3)


def test_methods_may_be_an_axis(tmp_path: Path) -> None:
    found = planned(tmp_path, "set: {budget.steps: 3}\naxes:\n  method: [kd, sft]\nmetric: perplexity\n")
    assert [cell.recipe.method for cell in found.cells] == ["kd", "sft"]


def test_skipped_combinations_are_left_out(tmp_path: Path) -> None:
    text = "method: kd\n" + AXES + "skip:\n  - {student: small, optimizer.learning_rate: 1.0e-3}\n  - {seed: 3}\n"
    found = planned(tmp_path, text)
    assert len(found.cells) == 3 * 2
    assert all(cell.places["seed"] != "3" for cell in found.cells)
    assert not any(
        cell.without("seed")[:2] == (("optimizer.learning_rate", "0.001"), ("student", "small")) for cell in found.cells
    )


def test_a_cells_key_is_its_content(tmp_path: Path) -> None:
    one = planned(tmp_path, "method: kd\nset: {budget.steps: 7}\naxes: {seed: [1, 2]}\n")
    other = planned(tmp_path, "method: kd\naxes:\n  length: {short: {budget: {steps: 7}}}\n  seed: [2, 1, 3]\n")
    assert {cell.key for cell in one.cells} < {cell.key for cell in other.cells}
    (tmp_path / "named.yaml").write_text("method: kd\nbudget.steps: 7\nrun: a-name\n")
    named = planned(tmp_path, "recipe: named.yaml\naxes: {seed: [1, 2]}\n")
    assert [cell.key for cell in named.cells] == [cell.key for cell in one.cells]
    changed = planned(tmp_path, "method: kd\nset: {budget.steps: 8}\naxes: {seed: [1, 2]}\n")
    assert not {cell.key for cell in one.cells} & {cell.key for cell in changed.cells}


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"baseline": "equal_time_sft"}, {"method": "x"}]
)
def test_every_setting_but_the_runs_name_is_in_a_cells_key(tmp_path: Path, change: dict[str, object]) -> None:
    cell = planned(tmp_path, "method: kd\nset: {baseline: none}\naxes: {seed: [1]}\n").cells[0]
    assert key_of(cell.recipe.model_copy(update=change)) != cell.key
    assert key_of(cell.recipe.model_copy(update={"run": "another"})) == cell.key


def test_names_are_folders_whatever_values_are(tmp_path: Path) -> None:
    long = "models/" + "very-long-name/" * 9
    text = f"method: kd\naxes:\n  teacher: ['../..', 'a b/c', {long}x, {long}y]\n"
    names = [cell.name for cell in planned(tmp_path, text).cells]
    assert len(set(names)) == 4
    for name in names:
        assert len(name) <= 111
        assert "/" not in name
        assert name[0] not in ".-"


# Each kind of mistake: the file, then (line, key, words of the message) of all that is wrong in it.
KD = "method: kd\n"
SEEDS = "axes: {seed: [1, 2]}\n"
MISTAKES: dict[str, tuple[str, list[tuple[int, str, str]]]] = {
    "unknown key": (KD + SEEDS + "replicate: seed\n", [(3, "replicate", "Did you mean 'replicates'?")]),
    "recipe's unknown key": (
        KD + "set:\n  budget.stepz: 3\naxes:\n  optimizer.learning_rat: [0.1]\n",
        [(3, "budget.stepz", "Did you mean 'steps'?"), (5, "optimizer.learning_rat", "'learning_rate'")],
    ),
    "wrong values": (
        KD + "set: {budget: {steps: no}}\naxes:\n  seed: [1, -2]\n  size:\n    a: {batch.size: 0}\n    b: {batch: 2}\n",
        [(2, "budget.steps", "whole number"), (4, "seed", "at least 0"), (6, "batch.size", "at least 1")],
    ),
    "no method": (SEEDS, [(1, "method", "is missing")]),
    "two methods": (KD + "recipe: a.yaml\n" + SEEDS, [(2, "recipe", "Keep one of them")]),
    "unknown method": ("method: kdd\n" + SEEDS, [(1, "method", "Did you mean 'kd'?")]),
    "unknown method on an axis": ("axes: {method: [kd, sftt]}\n", [(1, "axes.method.1", "Did you mean 'sft'?")]),
    "recipe not there": ("recipe: gone.yaml\n" + SEEDS, [(1, "recipe", "gone.yaml: file not found")]),
    "unknown to several methods": (  # each would suggest something else
        "set: {label_share: 1}\naxes: {method: [kd, sft]}\nmetric: perplexity\n",
        [(1, "label_share", "unknown key")],
    ),
    "misspelt axis": (
        KD + "axes: {budget.step: [3, 4], seed: [1]}\nx: budget.steps\nagainst: {budget.steps: 3}\n",
        [(2, "budget.step", "Did you mean 'steps'?")],
    ),
    "misspelt axis and another": (
        KD + "axes: {budget.step: [3, 4], seed: [1]}\nx: sed\n",
        [(2, "budget.step", "Did you mean 'steps'?"), (3, "x", "Did you mean 'seed'?")],
    ),
    "misspelt axes": (
        KD + "axis: {budget.steps: [3, 4]}\nx: budget.steps\nagainst: {budget.steps: 3}\n",
        [(2, "axis", "Did you mean 'axes'?")],
    ),
    "no axes and what names them": (KD + "axes: []\nx: seed\nagainst: {seed: 1}\n", [(2, "axes", "one axis or more")]),
    "axis of one value and what names it": (
        KD + "axes: {budget.steps: 3, seed: [1]}\nagainst: {budget.steps: 3}\n",
        [(2, "axes.budget.steps", "must be a list of values")],
    ),
    "no axes": (KD, [(1, "axes", "must have one axis or more")]),
    "empty axis": (KD + "axes: {seed: []}\n", [(2, "axes.seed", "has no values")]),
    "axis of one value": (KD + "axes: {seed: 3}\n", [(2, "axes.seed", "must be a list of values")]),
    "group without settings": (KD + "axes: {size: {small: 3}}\n", [(2, "axes.size.small", "mapping of settings")]),
    "value twice": (KD + "axes: {seed: [1, 2, 1]}\n", [(2, "axes.seed.2", "1 stands twice")]),
    "duplicate cells": (
        KD + "axes:\n  divergence:\n    - forward_kl\n    - {name: forward_kl}\n",
        [(5, "axes.divergence.1", "two cells are the same recipe")],
    ),
    "set and axis": (KD + "set: {seed: 1}\n" + SEEDS, [(2, "set.seed", "changes along the axis seed")]),
    "two axes of one key": (
        KD + "axes:\n  seed: [1]\n  other: {a: {seed: 2}}\n",
        [(4, "axes.other", "seed changes along seed too")],
    ),
    "run": (KD + "set: {run: one}\n" + SEEDS, [(2, "set.run", "--name")]),
    "replicates not an axis": (KD + SEEDS + "replicates: sed\n", [(3, "replicates", "Did you mean 'seed'?")]),
    "x not an axis": (KD + SEEDS + "x: budget.steps\n", [(3, "x", "is not an axis")]),
    "x averaged over": (KD + SEEDS + "x: seed\n", [(3, "x", "averaged over")]),
    "against no axis": (KD + SEEDS + "against: {variant: a}\n", [(3, "against.variant", "is not an axis")]),
    "against no cell": (
        KD + "axes: {divergence: [forward_kl, reverse_kl]}\nagainst: {divergence: forward}\n",
        [(3, "against.divergence", "Did you mean 'forward_kl'?")],
    ),
    "against the averaged": (KD + SEEDS + "against: {seed: 1}\n", [(3, "against.seed", "is averaged over")]),
    "against all": (
        KD + "axes: {budget.steps: [3], seed: [1]}\nagainst: {budget.steps: 3}\n",
        [(3, "against", "every combination")],
    ),
    "against what is skipped": (
        KD + "axes: {budget.steps: [3, 4]}\nagainst: {budget.steps: 3}\nskip: [{budget.steps: 3}]\n",
        [(3, "against", "skip leaves all of them out")],
    ),
    "skip nothing": (KD + SEEDS + "skip: [{seed: 4}]\n", [(3, "skip.0.seed", "matches no cell")]),
    "skip all": (KD + SEEDS + "skip: [{seed: 1}, {seed: 2}]\n", [(3, "skip", "no combination is left")]),
    "jobs": (KD + SEEDS + "jobs: 0\n", [(3, "jobs", "at least 1")]),
    "metrics differ": (
        KD + "axes: {checkpoint.best_by: [rouge_l, perplexity]}\n",
        [(1, "metric", "different figures: perplexity, rouge_l")],
    ),
    "does not go together": (
        "method: sft\naxes:\n  checkpoint.best_by: [perplexity, forward_kl_nats]\nmetric: perplexity\n",
        [(3, "checkpoint.best_by", "compares with a teacher")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_told_with_their_line(tmp_path: Path, text: str, expected: list[tuple[int, str, str]]) -> None:
    found = mistakes(tmp_path, text)
    assert [(line_of(problem), problem.key) for problem in found] == [(line, key) for line, key, _ in expected]
    for problem, (_, _, words) in zip(found, expected, strict=True):
        assert words in str(problem)
        assert problem.where.startswith(str(tmp_path / "grid.yaml"))


def test_a_mistake_of_the_recipe_file_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("method: kd\nbudgets: 3\n")
    (problem,) = mistakes(tmp_path, "recipe: my.yaml\n" + SEEDS)
    assert problem.where == f"{tmp_path / 'my.yaml'}:2:1"


def test_all_mistakes_come_at_once_from_the_top_to_the_bottom(tmp_path: Path) -> None:
    text = "method: kd\nset: {budgett: 3}\naxes: {seed: [1, x]}\nx: sed\njobs: many\nnonsense: 1\n"
    assert [line_of(problem) for problem in mistakes(tmp_path, text)] == [2, 3, 4, 5, 6]


def test_what_is_no_mapping_or_no_yaml_is_refused(tmp_path: Path) -> None:
    for text in ("- 1\n", "", "axes: [\n"):
        with pytest.raises(ConfigError, match=r"grid\.yaml"):
            planned(tmp_path, text)


def test_too_many_cells_are_refused_before_they_are_made(tmp_path: Path) -> None:
    values = list(range(1, 151))
    text = f"method: kd\naxes:\n  seed: {values}\n  budget.steps: {values}\n"
    (problem,) = mistakes(tmp_path, text)
    assert "22,500 cells" in str(problem)


def test_the_grid_of_the_how_to_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "sweep.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    found = planned(tmp_path, text)
    assert len(found.cells) == 2 * 2 * 2 * 3 - 6
    for key in KEYS:
        assert f"`{key}`" in page


def test_a_listing_says_which_rows_are_not_here(tmp_path: Path) -> None:
    from potstill.sweep.folder import Folder
    from potstill.sweep.listing import listing

    (tmp_path / "there.jsonl").write_text("{}\n", encoding="utf-8")
    file = tmp_path / "g.yaml"
    file.write_text(
        f"method: sft\naxes:\n  data: [{tmp_path}/there.jsonl, {tmp_path}/nothere.jsonl]\n  seed: [1, 2]\n", "utf-8"
    )
    told = listing(plan(file), Folder(tmp_path / "s"))
    (absent,) = told.absent
    assert "nothere.jsonl is not there" in absent
    assert f"not here: {absent}" in told.text()
    assert told.as_json()["absent"] == [absent]
