"""Entropy, repetition and sameness: right values, real gradients, the right sign."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from potstill.objectives import embedding_similarity, entropy, unlikelihood
from potstill.objectives.regularisers import seen_before
from tests.numerics.table import logits

S = logits(40, 30, 9)


def grad(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), leaf)[0]


# --- Entropy ----------------------------------------------------------------------------------------------------------


def test_entropy_is_of_probabilities() -> None:
    q = S.softmax(-1)
    torch.testing.assert_close(entropy(S), -(q * q.log()).sum(-1), rtol=0, atol=1e-13)
    assert ((entropy(S) > 0) & (entropy(S) < math.log(9))).all()
    assert entropy(torch.zeros(1, 9)).item() == pytest.approx(math.log(9))


def test_entropy_of_log_probabilities_as_in_public_code_is_not_a_number() -> None:
    log_q = S.log_softmax(-1)
    assert (-(log_q * log_q.log()).sum(-1)).isnan().all()  # what was meant to be an entropy bonus
    assert entropy(S).isfinite().all()


def test_gradient_of_entropy() -> None:
    leaf = S.clone().requires_grad_()
    q = S.softmax(-1)
    expected = -q * (q.log() + entropy(S)[:, None])
    torch.testing.assert_close(grad(entropy(leaf), leaf), expected, rtol=0, atol=1e-13)


def test_entropy_leaves_excluded_tokens_out() -> None:
    wide = torch.cat([S, torch.full((30, 2), -torch.inf, dtype=torch.float64)], -1).requires_grad_()
    torch.testing.assert_close(entropy(wide), entropy(S), rtol=0, atol=1e-13)
    found = grad(entropy(wide), wide)
    assert found.isfinite().all()
    assert (found[:, 9:] == 0).all()


def test_a_step_with_a_negative_coefficient_spreads_out() -> None:
    leaf = S.clone().requires_grad_()
    step = grad(-1.0 * entropy(leaf), leaf)
    assert (entropy(S - 0.01 * step) > entropy(S)).all()


# --- Unlikelihood -----------------------------------------------------------------------------------------------------


SEEN = torch.tensor([3, 5, 3, 7, 0])
MASK = torch.tensor([True, True, True, True, False])


def penalty(s: Tensor, target: int = 7) -> Tensor:
    rows = len(s)
    return unlikelihood(s, SEEN.expand(rows, -1), MASK.expand(rows, -1), torch.full((rows,), target))


def test_each_distinct_earlier_token_counts_once_and_the_right_one_never() -> None:
    q = S.softmax(-1)
    torch.testing.assert_close(penalty(S), -(1 - q[:, [3, 5]]).log().sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(penalty(S, target=1), -(1 - q[:, [3, 5, 7]]).log().sum(-1), rtol=0, atol=1e-12)


def test_unlikelihood_has_a_gradient_that_lowers_what_was_seen() -> None:
    """The public penalty counts arg-max tokens, so it has none; and it grows when nothing is repeated."""
    leaf = S.clone().requires_grad_()
    step = grad(penalty(leaf), leaf)
    assert step.abs().amax(-1).min() > 1e-5
    after = (S - 0.01 * step).softmax(-1)
    assert (after[:, [3, 5]].sum(-1) < S.softmax(-1)[:, [3, 5]].sum(-1)).all()
    assert torch.autograd.gradcheck(penalty, (S[:4].clone().requires_grad_(),))
    assert step.sum(-1).abs().max() < 1e-12


def test_more_repetition_costs_more() -> None:
    likely, unlikely = torch.zeros(1, 9), torch.zeros(1, 9)
    likely[0, 3], unlikely[0, 3] = 4.0, -4.0
    assert penalty(likely) > penalty(torch.zeros(1, 9)) > penalty(unlikely)


@pytest.mark.parametrize("size", [30.0, 60.0, 200.0])
def test_a_token_the_student_is_sure_of_keeps_its_digits(size: float) -> None:
    """1 - q would be 0 here, and its logarithm minus infinity."""
    sure = torch.zeros(1, 9)
    sure[0, 3] = size
    leaf = sure.requires_grad_()
    assert penalty(leaf).item() == pytest.approx(size - math.log(8), rel=1e-5)
    found = grad(penalty(leaf), leaf)
    assert found[0, 3].item() == pytest.approx(1.0, rel=1e-5)
    assert found.isfinite().all()


def test_nothing_seen_costs_nothing() -> None:
    s = S.clone().requires_grad_()
    value = unlikelihood(s, SEEN.expand(30, -1), torch.zeros(30, 5, dtype=torch.bool), torch.zeros(30).long())
    assert (value == 0).all()
    assert (grad(value, s) == 0).all()


def test_seen_before_is_earlier_real_and_of_the_same_response() -> None:
    ids, mask = seen_before(torch.tensor([[4, 5, 6], [7, 8, 0]]), torch.tensor([[True] * 3, [True, True, False]]))
    assert [[ids[b, t][mask[b, t]].tolist() for t in range(3)] for b in range(2)] == [
        [[], [4], [4, 5]],
        [[], [7], [7, 8]],
    ]
    _, gap = seen_before(torch.tensor([[4, 5, 6]]), torch.tensor([[True, False, True]]))
    assert gap[0, 2].tolist() == [True, False, False]


def test_unlikelihood_of_a_response_equals_a_loop_over_its_positions() -> None:
    response, real = torch.tensor([[3, 5, 3, 5], [7, 7, 1, 0]]), torch.tensor([[True] * 4, [True] * 3 + [False]])
    s = logits(43, 2, 4, 9)
    found = unlikelihood(s, *seen_before(response, real), response)
    for b, length in enumerate([4, 3]):
        for t in range(length):
            distinct = set(response[b, :t].tolist()) - {response[b, t].item()}
            q = s[b, t].softmax(0)
            expected = -sum(math.log1p(-q[token].item()) for token in distinct)
            assert found[b, t].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("filler", [-100, 0, 7, 10**6])
def test_ids_that_are_not_real_change_nothing_whatever_they_are(filler: int) -> None:
    ids, real = torch.full((30, 8), filler), torch.zeros(30, 8, dtype=torch.bool)
    ids[:, :5], real[:, :5] = torch.where(MASK, SEEN, filler), MASK
    found = unlikelihood(S, ids, real, torch.full((30,), 7))
    assert torch.equal(found, penalty(S))


def test_shapes_that_do_not_fit_are_refused() -> None:
    """scatter would take the short ones and leave the other rows without a penalty, or with one on their target."""
    ids, real, target = SEEN.expand(30, -1), MASK.expand(30, -1), torch.full((30,), 7)
    for call in (
        lambda: unlikelihood(S, ids[:1], real[:1], target),
        lambda: unlikelihood(S, ids, real, target[:1]),
        lambda: unlikelihood(S, ids, real[:, :4], target),
        lambda: embedding_similarity(ROWS, logits(41, 12, 4), REAL),
        lambda: embedding_similarity(ROWS, EMBEDDINGS, REAL[:, :5]),
    ):
        with pytest.raises(ValueError, match="of \\["):
            call()


# --- Embedding similarity ---------------------------------------------------------------------------------------------


EMBEDDINGS = logits(41, 9, 4)
ROWS = logits(42, 3, 6, 9)
REAL = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]


def by_pairs(s: Tensor, mask: Tensor) -> Tensor:
    expected = s.softmax(-1) @ EMBEDDINGS
    values = []
    for row, real in zip(expected, mask, strict=True):
        vectors = [v / v.norm() for v in row[real]]
        pairs = [a @ b for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j]
        values.append(torch.stack(pairs).mean() if pairs else s.new_zeros(()))
    return torch.stack(values)


def test_embedding_similarity_is_the_mean_over_pairs() -> None:
    found = embedding_similarity(ROWS, EMBEDDINGS, REAL)
    torch.testing.assert_close(found, by_pairs(ROWS, REAL), rtol=0, atol=1e-12)
    assert (found.abs() <= 1).all()
    assert found[2] == 0


def test_embedding_similarity_is_bounded_and_one_for_equal_positions() -> None:
    same = ROWS[:, :1].expand(-1, 6, -1)
    found = embedding_similarity(same, EMBEDDINGS, REAL)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.0]).double(), rtol=0, atol=1e-12)
    far = 300 * torch.eye(9, dtype=torch.float64)[:2][None]
    opposite = torch.cat([torch.ones(1, 4), -torch.ones(1, 4), torch.zeros(7, 4)]).double()
    value = embedding_similarity(far, opposite, torch.ones(1, 2, dtype=torch.bool))
    assert value.item() == pytest.approx(-1)


def test_embedding_similarity_has_a_gradient_that_makes_a_response_more_varied() -> None:
    """The public measure is clamped at 1 from a raw size of hundreds: a constant."""
    leaf = ROWS.clone().requires_grad_()
    step = grad(embedding_similarity(leaf, EMBEDDINGS, REAL), leaf)
    assert (step[:2].flatten(1).norm(dim=1) > 1e-4).all()
    assert (step[~REAL] == 0).all()
    assert (step[2] == 0).all()
    after = embedding_similarity(ROWS - 0.1 * step, EMBEDDINGS, REAL)
    assert (after[:2] < embedding_similarity(ROWS, EMBEDDINGS, REAL)[:2]).all()
    one = ROWS[:1, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: embedding_similarity(s, EMBEDDINGS, REAL[:1, :3]), (one,))


def test_what_stands_in_padding_and_how_much_of_it_changes_nothing() -> None:
    expected = embedding_similarity(ROWS, EMBEDDINGS, REAL)
    other = ROWS.clone()
    other[~REAL] = torch.nan
    torch.testing.assert_close(embedding_similarity(other, EMBEDDINGS, REAL), expected, rtol=0, atol=0)
    leaf = other.requires_grad_()
    found = grad(embedding_similarity(leaf, EMBEDDINGS, REAL), leaf)
    assert (found[~REAL] == 0).all()
    assert found.isfinite().all()
    wide = torch.nn.functional.pad(ROWS, (0, 0, 0, 4))
    wider = embedding_similarity(wide, EMBEDDINGS, torch.nn.functional.pad(REAL, (0, 4)))
    torch.testing.assert_close(wider, expected, rtol=0, atol=1e-14)


def test_the_order_of_the_positions_changes_nothing_and_embeddings_get_no_gradient() -> None:
    embeddings = EMBEDDINGS.clone().requires_grad_()
    leaf = ROWS.clone().requires_grad_()
    value = embedding_similarity(leaf.flip(1), embeddings, REAL.flip(1))
    torch.testing.assert_close(value, embedding_similarity(ROWS, EMBEDDINGS, REAL), rtol=0, atol=1e-13)
    value.sum().backward()
    assert embeddings.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    low = S.to(dtype)
    assert entropy(low).dtype == torch.float32
    torch.testing.assert_close(entropy(low).double(), entropy(low.double()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(penalty(low).double(), penalty(low.double()), rtol=1e-5, atol=1e-6)
    found = embedding_similarity(ROWS.to(dtype), EMBEDDINGS.to(dtype), REAL)
    exact = embedding_similarity(ROWS.to(dtype).double(), EMBEDDINGS.to(dtype).double(), REAL)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
