"""Which tokens count, how much, and what a term divides by."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill import objectives, recipe, weighting
from potstill.models.families import Causal
from potstill.recipe import Term
from potstill.types import Live
from tests import tiny

LENGTHS = [(3, 4), (2, 1), (5, 0)]
BATCH = tiny.batch(LENGTHS, extra_right=2)
MASK = BATCH.response_mask


# --- Reductions -------------------------------------------------------------------------------------------------------


def scales(reduction: str, *, of: int = 1) -> Tensor:
    """Scales of the batch above, as one of ``of`` equal micro-batches."""
    term = Term.model_validate({"objective": "cross_entropy", "reduction": reduction})
    weight = weighting.weights(term.weighting, BATCH)
    return weighting.scales(term, weight, of * weighting.denominator(term, weight))


def test_token_mean_counts_every_token_the_same() -> None:
    found = scales("token_mean")
    assert found[0, :4].tolist() == [0.2] * 4
    assert found[1, 0] == 0.2
    assert found.sum().item() == pytest.approx(1)


def test_sequence_mean_counts_every_sequence_the_same_and_empty_ones_not_at_all() -> None:
    found = scales("sequence_mean")
    assert found[0, :4].tolist() == [0.125] * 4
    assert found[1, 0] == 0.5
    assert found.sum().item() == pytest.approx(1)


def test_the_two_reductions_of_four_tokens_and_one() -> None:
    """Losses 1, 1, 1, 1 and 5: 1.8 a token, 3 a sequence. Public code says one and does the other."""
    losses = torch.zeros(3, 6, dtype=torch.float64)
    losses[0, :4], losses[1, 0] = 1, 5
    assert (scales("token_mean") * losses).sum().item() == pytest.approx(1.8)
    assert (scales("sequence_mean") * losses).sum().item() == pytest.approx(3.0)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_padding_counts_nothing_and_denominators_are_global(reduction: str) -> None:
    found = scales(reduction)
    assert (found[:, 4:] == 0).all()
    assert (found[2] == 0).all()
    assert scales(reduction, of=3).sum().item() == pytest.approx(1 / 3)


def test_a_global_batch_without_tokens_scales_to_zero_and_not_to_nan() -> None:
    term = Term.model_validate({"objective": "cross_entropy"})
    batch = tiny.batch([(3, 0)], extra_right=2)
    weight = weighting.weights(term.weighting, batch)
    assert (weighting.scales(term, weight, 0.0) == 0).all()


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_a_token_of_weight_zero_is_in_neither_numerator_nor_denominator(reduction: str) -> None:
    """The mean over the gated tokens, as if the others were not there."""
    term = Term.model_validate({"objective": "forward_kl", "weighting": "entropy_gate", "reduction": reduction})
    score = torch.tensor([[0.9, 0.1, 0.95, 0.2, 9, 9], [0.3, 9, 9, 9, 9, 9], [9.0] * 6])
    weight = weighting.weights(term.weighting, BATCH, score)
    assert weight.nonzero().tolist() == [[0, 0], [0, 2]]
    found = weighting.scales(term, weight, weighting.denominator(term, weight))
    assert found[0, [0, 2]].tolist() == [0.5, 0.5]
    assert found.sum().item() == pytest.approx(1)


# --- Weights ----------------------------------------------------------------------------------------------------------


SCORE = torch.tensor([[0.5, 2.0, 1.0, 3.0, 9, 9], [0.3, 9, 9, 9, 9, 9], [9.0] * 6])


def test_proportional_weights_are_the_scores_of_real_tokens() -> None:
    found = weighting.proportional(SCORE, MASK)
    assert found[0].tolist() == [0.5, 2.0, 1.0, 3.0, 0, 0]
    assert found[1, 0].item() == pytest.approx(0.3)
    assert found[1, 1:].sum() == found[2].sum() == 0


@pytest.mark.parametrize(("fraction", "chosen"), [(0.2, [3]), (0.25, [3]), (0.26, [1, 3]), (0.75, [1, 2, 3])])
def test_top_fraction_takes_the_ceiling_of_each_response(fraction: float, chosen: list[int]) -> None:
    found = weighting.top_fraction(SCORE, MASK, fraction)
    assert found[0].nonzero().flatten().tolist() == chosen
    assert found[1].nonzero().flatten().tolist() == [0]  # one of one
    assert found[2].sum() == 0


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 100), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_top_fraction_counts_exactly_and_takes_the_highest(lengths: list[int], percent: int, seed: int) -> None:
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    score = torch.randint(0, 4, mask.shape, generator=torch.Generator().manual_seed(seed)).float()  # many ties
    found = weighting.top_fraction(score, mask, percent / 100)
    assert found.sum(1).tolist() == [-(-length * percent // 100) for length in lengths]
    for row in range(len(lengths)):
        taken = found[row].bool()
        left = mask[row] & ~taken
        if taken.any() and left.any():
            assert score[row][taken].min() >= score[row][left].max()
            edge = score[row] == score[row][taken].min()
            # Of equal scores the earlier: no taken one stands after one that was left.
            later = (edge & taken).nonzero().flatten()
            earlier = (edge & left).nonzero().flatten()
            assert not len(later) or not len(earlier) or later.max() < earlier.min()
    wider = weighting.top_fraction(
        torch.nn.functional.pad(score, (0, 5), value=99), torch.nn.functional.pad(mask, (0, 5)), percent / 100
    )
    assert torch.equal(wider[:, :30], found)


def test_the_whole_fraction_is_uniform() -> None:
    assert torch.equal(weighting.top_fraction(SCORE, MASK, 1.0), weighting.uniform(MASK))


def test_position_decays_from_the_start_of_the_response() -> None:
    found = weighting.position(MASK, 0.5)
    assert found[0].tolist() == [1, 0.5, 0.25, 0.125, 0, 0]
    longer_prompts = tiny.batch(LENGTHS, extra_left=9, extra_right=2)
    assert torch.equal(weighting.position(longer_prompts.response_mask, 0.5), found)


# --- Scores -----------------------------------------------------------------------------------------------------------


STUDENT, TEACHER = Causal(tiny.llama(0, layers=2).double()), Causal(tiny.llama(1).double())
ROWS = tiny.batch([(3, 9), (7, 1), (5, 6)], extra_left=2, extra_right=3)


def both_logits() -> tuple[Tensor, Tensor]:
    mask = ROWS.response_mask
    with torch.no_grad():
        return STUDENT.head(STUDENT(ROWS)[mask]), TEACHER.head(TEACHER(ROWS)[mask])


def entropy_of(x: Tensor) -> Tensor:
    return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)


def expected_scores() -> dict[str, Tensor]:
    s, t = both_logits()
    ids = ROWS.response_ids[ROWS.response_mask]
    student_loss, teacher_loss = (torch.nn.functional.cross_entropy(x, ids, reduction="none") for x in (s, t))
    return {
        "student_entropy": entropy_of(s),
        "teacher_entropy": entropy_of(t),
        "student_loss": student_loss,
        "teacher_loss": teacher_loss,
        "loss_gap": student_loss - teacher_loss,
        "forward_kl": objectives.forward_kl(s, t),
        "reverse_kl": objectives.reverse_kl(s, t),
        "total_variation": objectives.total_variation(s, t),
        "squared_hellinger": objectives.squared_hellinger(s, t),
    }


@pytest.mark.parametrize("name", get_args(recipe.Score))
def test_scores_are_of_real_tokens_and_constant(name: recipe.Score) -> None:
    output, signal = STUDENT.output(ROWS), Live(TEACHER(ROWS).detach(), TEACHER.head)
    found = weighting.scores(name, output, signal, ROWS)
    assert not found.requires_grad
    assert (found[~ROWS.response_mask] == 0).all()
    torch.testing.assert_close(found[ROWS.response_mask], expected_scores()[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("section", get_args(recipe.AnyWeighting), ids=lambda section: section.__name__)
def test_every_weighting_of_a_recipe_is_detached_non_negative_and_none_at_padding(
    section: type[recipe.AnyWeighting],
) -> None:
    spec = section()
    output, signal = STUDENT.output(ROWS), Live(TEACHER(ROWS).detach(), TEACHER.head)
    score = weighting.scores(spec.score, output, signal, ROWS) if spec.score else None
    sampled = torch.full(ROWS.response_mask.shape, 0.7, dtype=torch.float64, requires_grad=True)
    found = weighting.weights(spec, replace(ROWS, importance_weights=sampled), score)
    assert not found.requires_grad
    assert (found >= 0).all()
    assert (found[~ROWS.response_mask] == 0).all()
    assert found.sum() > 0
    if spec.score:
        with pytest.raises(ValueError, match="which was not given"):
            weighting.weights(spec, ROWS)


def test_the_gate_opens_where_the_teacher_is_uncertain() -> None:
    spec = recipe.EntropyGateWeighting(threshold=math.log(2))
    certain, open_ = torch.full((3, 6), 0.6), torch.full((3, 6), 0.7)
    assert weighting.weights(spec, BATCH, certain).sum() == 0
    assert torch.equal(weighting.weights(spec, BATCH, open_), weighting.uniform(MASK))


# --- Importance -------------------------------------------------------------------------------------------------------


IMPORTANCE = Term.model_validate({"objective": "reverse_kl", "weighting": "importance"})
SAMPLED = replace(BATCH, importance_weights=torch.tensor([[0.5, 2.0, 1.0, 0.0, 9, 9], [3.0, 9, 9, 9, 9, 9], [9.0] * 6]))


def test_importance_weights_are_those_of_the_sampled_tokens() -> None:
    found = weighting.weights(IMPORTANCE.weighting, SAMPLED)
    assert found[0, :3].tolist() == [0.5, 2.0, 1.0]
    assert found[1].tolist() == [3.0, 0, 0, 0, 0, 0]
    assert found[2].sum() == 0


@pytest.mark.parametrize(("reduction", "expected"), [("token_mean", 6.5 / 5), ("sequence_mean", (3.5 / 4 + 3) / 2)])
def test_they_are_divided_by_the_number_of_tokens_and_not_by_their_sum(reduction: str, expected: float) -> None:
    """Divided by their sum the mean would be biased. A token the student would never write is still a token."""
    term = IMPORTANCE.model_copy(update={"reduction": reduction})
    weight = weighting.weights(term.weighting, SAMPLED)
    found = weighting.scales(term, weight, weighting.denominator(term, weight))
    assert found.sum().item() == pytest.approx(expected, rel=1e-12)


def test_text_that_nobody_sampled_has_no_importance() -> None:
    with pytest.raises(ValueError, match="these were not sampled"):
        weighting.weights(IMPORTANCE.weighting, BATCH)
