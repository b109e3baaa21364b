"""Objective x signal x weighting x family: what every combination that a recipe may name has to hold, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from potstill import assembly, recipe, streams
from potstill.features.building import Between, build_match
from potstill.features.matching import Match
from potstill.models.families import Family
from potstill.sources.credit import LogRatioJudge
from potstill.teachers.local import LocalTeacher, Remembering
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream, bound, denominators, weighed
from potstill.training.terms import LiveTerm
from potstill.training.values import evaluate, run_student
from potstill.types import Batch, Credit
from tests import tiny
from tests.contract.table import (
    DIVERGENCES,
    ENCODER_DECODER,
    FAMILIES,
    FEATURES,
    OBJECTIVES,
    SIGNALS,
    WEIGHTINGS,
    combinations,
    family,
    stream,
)

LENGTHS = [(3, 7), (6, 1), (1, 9), (4, 4)]
OF_THE_WHOLE = "hidden_correlation"  # a figure of all tokens at once: which share a micro-batch changes it
RUNTIME = Runtime(torch.device("cpu"), torch.float64)
every_family = pytest.mark.parametrize("kind", FAMILIES)
every_combination = pytest.mark.parametrize(("objective", "signal", "weighting"), list(combinations()))


@cache
def models(kind: str) -> tuple[Family, Family]:
    return family(kind, 0), family(kind, 1)


def live(spec: recipe.Stream, student: Family, teacher: Family) -> LiveStream:
    teaching = assembly.Teaching(LocalTeacher(teacher), Remembering(LocalTeacher(teacher)), tiny.VOCAB, "", 0)
    terms = tuple(LiveTerm(spec.name, term, matched(term, student, teacher)) for term in spec.terms)
    places = [tap for term in terms if term.match for tap in term.match.teacher_taps]
    signal, _ = streams.asked(spec, teaching, student, seed=1, places=places)
    return LiveStream(spec, None, signal, terms)  # type: ignore[arg-type]


def matched(term: recipe.Term, student: Family, teacher: Family) -> Match | None:
    if not isinstance(term.objective, recipe.FeatureSection):
        return None
    between = Between(student, teacher, None, 0, lambda: torch.ones(9), lambda *_: {})
    return build_match(term.objective, between)


def sampled(student: Family, teacher: Family, batch: Batch) -> Batch:
    """The batch as if a mixture had written it: weights that belong to the tokens, and the judge's credit."""
    weights = torch.where(batch.response_mask, 0.5 + (batch.response_ids % 7) / 7, 1.0).double()
    judge = LogRatioJudge(student, LocalTeacher(teacher), recipe.PolicyGradient())
    return judge([replace(batch, importance_weights=weights)])[0]


@cache
def sampled_by(kind: str) -> Batch:
    return sampled(*models(kind), tiny.batch(LENGTHS, extra_left=2, extra_right=1))


def step(
    student: Family, teacher: Family, spec: recipe.Stream, batches: Sequence[Batch], chunk_size: int | None = None
) -> tuple[float, dict[str, Tensor]]:
    """The loss of a global batch that comes in these micro-batches, and the student's gradient."""
    student.zero_grad(set_to_none=True)
    micro_batches = [weighed(live(spec, student, teacher), batch, student, RUNTIME) for batch in batches]
    divide_by = denominators(micro_batches, RUNTIME)
    loss = 0.0
    for micro in micro_batches:
        terms = bound(micro, divide_by, RUNTIME, progress=0.5)
        output, inside = run_student(student, student, micro.batch, micro.stream.places)
        matches = [term.match for term in micro.stream.terms]
        total, _ = evaluate(output, inside, micro.ask(), micro.batch, terms, matches, chunk_size)
        total.backward()
        loss += total.item()
    return loss, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def rows(batch: Batch, *indices: int) -> Batch:
    """Some rows of a batch, cut to the length they need."""
    at = torch.tensor(indices)
    prompt, response = batch.prompt_mask[at].sum(1).max(), batch.response_mask[at].sum(1).max()
    assert batch.credit is not None
    assert batch.importance_weights is not None
    return Batch(
        batch.prompt_ids[at][:, batch.prompt_ids.shape[1] - prompt :],
        batch.prompt_mask[at][:, batch.prompt_ids.shape[1] - prompt :],
        batch.response_ids[at][:, :response],
        batch.response_mask[at][:, :response],
        tuple(batch.example_ids[index] for index in indices),
        batch.importance_weights[at][:, :response],
        Credit(*(value[at][:, :response] for value in vars(batch.credit).values())),
    )


def same(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-10, abs=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-11, msg=name)


@every_combination
def test_layout_changes_nothing(objective: str, signal: str, weighting: str) -> None:
    """Padding, the order and the size of micro-batches, and chunks."""
    student, teacher = models("llama")
    for reduction in ("token_mean", "sequence_mean"):
        spec = stream(objective, signal, weighting, reduction)
        assert spec is not None
        batch = sampled(student, teacher, tiny.batch(LENGTHS))
        expected = step(student, teacher, spec, [batch])
        assert expected[0] != 0
        assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-9
        padded = sampled(student, teacher, tiny.batch(LENGTHS, extra_left=3, extra_right=4))
        same(step(student, teacher, spec, [padded]), expected)
        same(step(student, teacher, spec, [rows(batch, 3, 0, 2, 1)], chunk_size=4), expected)
        if objective == OF_THE_WHOLE:
            continue
        same(step(student, teacher, spec, [rows(batch, index) for index in range(4)]), expected)
        same(step(student, teacher, spec, [rows(batch, 3, 1), rows(batch, 0, 2)], chunk_size=4), expected)


@every_combination
@pytest.mark.parametrize("kind", ENCODER_DECODER)
def test_layout_changes_nothing_for_an_encoder_decoder(kind: str, objective: str, signal: str, weighting: str) -> None:
    """The same in one arrangement: other rows beside each other, so other padding of source and target, and chunks."""
    student, teacher = models(kind)
    spec = stream(objective, signal, weighting)
    assert spec is not None
    batch = sampled_by(kind)
    expected = step(student, teacher, spec, [batch])
    assert expected[0] != 0
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-9
    parts = [rows(batch, 3, 1, 0, 2)] if objective == OF_THE_WHOLE else [rows(batch, 3, 1), rows(batch, 0, 2)]
    same(step(student, teacher, spec, parts, chunk_size=4), expected)


@every_family
@pytest.mark.parametrize("signal", ["logits", "top_k"])
@pytest.mark.parametrize("objective", DIVERGENCES)
def test_zero_with_zero_gradient_where_the_student_is_the_teacher(kind: str, objective: str, signal: str) -> None:
    spec = stream(objective, signal, "uniform")
    if spec is None:
        pytest.skip(f"{objective} does not take {signal}")
    student, _ = models(kind)
    loss, gradient = step(student, family(kind, 0), spec, [tiny.batch(LENGTHS)])
    assert abs(loss) < 1e-12
    # No derivative there: the sign of a rounding error. It is that of the rest, or of T5's attention, whose bias wants
    # a gradient in the student and none in the teacher, for which torch takes another kernel.
    if objective == "total_variation" and (signal == "top_k" or kind.startswith("t5")):
        return
    assert all(part.abs().max() < 1e-10 for part in gradient.values())


@every_family
@pytest.mark.parametrize("signal", ["logits", "hidden"])
@pytest.mark.parametrize("objective", FEATURES)
def test_what_is_inside_is_at_0_with_gradient_0_where_the_student_is_the_teacher(
    kind: str, objective: str, signal: str
) -> None:
    diagonal = {"off_diagonal_weight": 0.0} if objective == OF_THE_WHOLE else {}  # the rest is the teacher's own
    spec = stream(objective, signal, "uniform", layers={"name": "uniform"}, **diagonal)
    assert spec is not None
    student, _ = models(kind)
    loss, gradient = step(student, family(kind, 0), spec, [tiny.batch(LENGTHS)])
    assert abs(loss) < 1e-12
    assert all(part.abs().max() < 1e-10 for part in gradient.values())
    other, _ = step(student, family(kind, 1), spec, [tiny.batch(LENGTHS)])
    assert other > 1e-3


@every_family
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_family_trains_on_every_objective(kind: str, objective: str) -> None:
    """Steps down the gradient lower the loss, and what teaches decides where to."""
    student, teacher = family(kind, 0), family(kind, 1)
    spec = stream(objective, "logits", "uniform") or stream(objective, "none", "uniform")
    assert spec is not None
    batch = sampled(student, teacher, tiny.batch(LENGTHS))
    before, gradient = step(student, teacher, spec, [batch])
    if objective in DIVERGENCES + FEATURES:
        _, other = step(student, family(kind, 2), spec, [batch])
        assert max((gradient[name] - other[name]).abs().max() for name in gradient) > 1e-6
    size = sum(part.square().sum() for part in gradient.values()) ** 0.5
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter -= 1e-3 / size * gradient[name]
    after, _ = step(student, teacher, spec, [batch])
    assert after < before


def test_the_table_has_the_pairs_that_the_mathematics_allows() -> None:
    allowed = {(objective, signal) for objective, signal, _ in combinations()}
    assert {objective for objective, signal in allowed if signal == "sampled"} >= {"forward_kl"}
    assert not {objective for objective, signal in allowed if signal == "sampled"} & (set(DIVERGENCES) - {"forward_kl"})
    merging = {objective for objective, signal in allowed if signal == "top_k"} & set(DIVERGENCES)
    assert merging == {
        "forward_kl",
        "jensen_shannon",
        "skew_forward_kl",
        "skew_reverse_kl",
        "total_variation",
        "squared_hellinger",
    }
    assert {objective for objective, signal in allowed if signal == "hidden"} == set(FEATURES)
    assert {signal for objective, signal in allowed if objective in FEATURES} == {"hidden", "logits"}
    assert {objective for objective, signal in allowed if signal == "token_logprobs"} == {"policy_gradient"}
    assert {signal for objective, signal in allowed if objective == "policy_gradient"} == {"logits", "token_logprobs"}
    assert {objective for objective, _, weighting in combinations() if weighting == "importance"} == set(OBJECTIVES)
    assert {objective for objective, _ in allowed} == set(OBJECTIVES)
    assert {signal for _, signal in allowed} == set(SIGNALS)
    assert {weighting for *_, weighting in combinations()} == set(WEIGHTINGS)
