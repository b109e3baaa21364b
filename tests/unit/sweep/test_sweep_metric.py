"""A sweep's metric: refused before anything runs where no cell will have it, and no other is."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import ConfigError, Problem
from potstill.evaluation.evaluator import COMPARED
from potstill.sweep.cells import Plan, plan
from potstill.sweep.metric import OF_A_TEACHER

SEEDS = "axes: {seed: [1, 2]}\n"


def planned(folder: Path, text: str) -> Plan:
    file = folder / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    return plan(file)


def mistakes(folder: Path, text: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        planned(folder, text)
    return list(caught.value.problems)


def test_what_compares_with_a_teacher_is_what_the_evaluator_measures() -> None:
    assert set(OF_A_TEACHER) == set(COMPARED)


def test_a_misspelt_one_is_told_with_what_there_is(tmp_path: Path) -> None:
    (problem,) = mistakes(tmp_path, "method: kd\n" + SEEDS + "metric: forward_kl\n")
    assert (problem.where, problem.key) == (f"{tmp_path / 'grid.yaml'}:3:9", "metric")
    assert "Did you mean 'forward_kl_nats'?" in str(problem)
    assert "perplexity, reverse_kl_nats, rouge_l" in str(problem)
    assert "accuracy" not in str(problem)  # of which these cells have none


@pytest.mark.parametrize(
    ("text", "metric", "way"),
    [
        ("method: sft\n", "forward_kl_nats", "set teacher"),
        ("method: sft\n", "top1_agreement_stderr", "set teacher"),
        ("method: kd\n", "accuracy", "Set evaluation.accuracy to exact or equation"),
        ("method: kd\n", "rationale_rouge_l", "Set data.target to"),
        ("method: kd\nset: {evaluation.leave_out: samples}\n", "rouge_l_sampled", "Take samples out of"),
    ],
)
def test_one_that_these_cells_do_not_measure_is_told_with_the_way_to_it(
    tmp_path: Path, text: str, metric: str, way: str
) -> None:
    (problem,) = mistakes(tmp_path, f"{text}{SEEDS}metric: {metric}\n")
    assert f"{metric} is not measured in any cell. " in str(problem)
    assert way in str(problem)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("method: kd\n", "top1_agreement"),
        ("method: kd\n", "forward_kl_nats_stderr"),
        ("method: kd\n", "rouge_l_sampled"),
        ("method: kd\n", "tokens_per_s"),
        ("method: kd\n", "mass_outside"),  # the models alone can tell
        ("method: sft\n", "perplexity_stderr"),
        ("method: sft\nset: {evaluation.accuracy: equation}\n", "accuracy_low"),
        ("method: step_by_step\n", "accuracy"),
        ("method: step_by_step\nset: {variant: single_task}\n", "rationale_rouge_l"),
        ("method: step_by_step\nset: {kd_weight: 0.5}\n", "reverse_kl_nats"),
    ],
)
def test_one_that_they_measure_is_taken(tmp_path: Path, text: str, metric: str) -> None:
    assert planned(tmp_path, f"{text}{SEEDS}metric: {metric}\n").metric == metric


def test_one_that_some_cells_measure_is_taken(tmp_path: Path) -> None:
    for axes, metric in (
        ("method: kd\naxes: {evaluation.accuracy: [none, exact]}\n", "accuracy"),
        ("axes: {method: [sft, kd]}\n", "forward_kl_nats"),
        ("method: step_by_step\naxes: {variant: [standard, single_task]}\n", "rationale_rouge_l"),
    ):
        assert planned(tmp_path, f"{axes}metric: {metric}\n").metric == metric


def test_with_cells_that_are_wrong_only_what_no_run_can_have_is_refused(tmp_path: Path) -> None:
    broken = "method: kd\nset: {budget.stepz: 3}\n" + SEEDS
    assert [problem.key for problem in mistakes(tmp_path, broken + "metric: accuracy\n")] == ["budget.stepz"]
    assert [problem.key for problem in mistakes(tmp_path, broken + "metric: accuracyy\n")] == ["budget.stepz", "metric"]
    half = "axes:\n  how: {a: {method: sft}, b: {method: kd, ce_weight: 7}}\nmetric: forward_kl_nats\n"
    assert [problem.key for problem in mistakes(tmp_path, half)] == ["ce_weight"]  # mended, b will have it
