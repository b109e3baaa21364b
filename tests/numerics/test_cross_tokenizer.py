"""Losses across tokenizers against plain references, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.cross_tokenizer import approximate_likelihood_matching, universal_logit_distillation
from tests import tiny

few = settings(max_examples=30, deadline=None)
exact = {"rtol": 0, "atol": 1e-12}


def logits(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def negative(seed: int, *shape: int) -> Tensor:
    """Log-probabilities of tokens."""
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log()


def prefix(lengths: list[int], width: int | None = None) -> Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


def grad(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(value(leaf).sum(), leaf)[0]


# Universal logit distillation


def uld(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Values where every position counts."""
    masks = (torch.ones(x.shape[:2], dtype=torch.bool) for x in (student, teacher))
    return universal_logit_distillation(student, teacher, *masks, temperature=temperature)[0]


def plain_uld(student: Tensor, teacher: Tensor, student_len: int, teacher_len: int, temperature: float) -> list[float]:
    values = []
    for at in range(min(student_len, teacher_len)):
        q = sorted((student[at] / temperature).softmax(-1).tolist(), reverse=True)
        p = sorted((teacher[at] / temperature).softmax(-1).tolist(), reverse=True)
        width = max(len(p), len(q))
        p, q = p + [0.0] * (width - len(p)), q + [0.0] * (width - len(q))
        values.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)))
    return values


@given(
    seed=st.integers(0, 2**31),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=3),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
@few
def test_uld_equals_a_plain_loop(
    seed: int, sizes: tuple[int, int], lengths: list[tuple[int, int]], temperature: float
) -> None:
    s, t = (logits(seed + at, len(lengths), 6, sizes[at]) for at in (0, 1))
    s_mask, t_mask = prefix([a for a, _ in lengths], 6), prefix([b for _, b in lengths], 6)
    values, pairs = universal_logit_distillation(s, t, s_mask, t_mask, temperature=temperature)
    for row, (a, b) in enumerate(lengths):
        expected = plain_uld(s[row], t[row], a, b, temperature)
        assert pairs[row].tolist() == [True] * len(expected) + [False] * (6 - len(expected))
        torch.testing.assert_close(values[row][pairs[row]], torch.tensor(expected, dtype=s.dtype), **exact)
        assert (values[row][~pairs[row]] == 0).all()


def test_uld_pairs_only_up_to_the_narrower_side() -> None:
    values, pairs = universal_logit_distillation(logits(1, 2, 3, 5), logits(2, 2, 7, 4), prefix([3, 2]), prefix([2, 7]))
    assert values.shape == pairs.shape == (2, 3)
    assert pairs.tolist() == [[True, True, False], [True, True, False]]


def test_uld_is_zero_exactly_where_sorted_probabilities_are_equal() -> None:
    s, t = logits(3, 4, 5, 11), logits(4, 4, 5, 11)
    order = torch.argsort(logits(5, 4, 5, 11), -1)
    same = s.gather(-1, order)
    assert uld(s, same).abs().max() < 1e-15
    assert uld(s, t).min() > 1e-3
    nearly = same.clone()
    nearly[..., 0] += 1e-3
    assert uld(s, nearly).min() > 1e-8


def test_uld_is_blind_to_which_token_is_meant() -> None:
    """The documented weakness: the teacher is sure of another token than the student, and all is well."""
    s, t = logits(6, 3, 4, 9), logits(7, 3, 4, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(uld(s, t[..., order]), uld(s, t), **exact)
    torch.testing.assert_close(uld(s.flip(-1), t), uld(s, t), **exact)
    right = torch.tensor([[[2.0, 0.0]]], dtype=torch.float64)  # of two, whose sum rounds alike in either order
    wrong = right.flip(-1)
    assert uld(right, wrong).item() == 0
    assert grad(lambda x: uld(x, wrong), right).abs().max() == 0


def test_uld_ignores_tokens_without_probability() -> None:
    s, t = logits(8, 2, 3, 7), logits(9, 2, 3, 5)
    more = torch.cat([t, torch.full((2, 3, 6), -torch.inf, dtype=t.dtype)], -1)
    torch.testing.assert_close(uld(s, more), uld(s, t), **exact)
    torch.testing.assert_close(uld(more, s), uld(t, s), **exact)
    torch.testing.assert_close(grad(lambda x: uld(x, more), s), grad(lambda x: uld(x, t), s), **exact)
    assert grad(lambda x: uld(x, s), more).isfinite().all()


@given(seed=st.integers(0, 2**31), scale=st.floats(0, 20), sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@few
def test_uld_is_at_most_two_and_twice_the_total_variation(seed: int, scale: float, sizes: tuple[int, int]) -> None:
    s, t = scale * logits(seed, 2, 8, sizes[0]), logits(seed + 1, 2, 8, sizes[1])
    assert 0 <= uld(s, t).min() <= uld(s, t).max() <= 2 + 1e-12
    same = scale * logits(seed + 2, 2, 8, sizes[1])
    twice = (same.softmax(-1) - t.softmax(-1)).abs().sum(-1)
    assert (uld(same, t) <= twice + 1e-12).all()


def test_uld_comes_close_to_two() -> None:
    sure, unsure = torch.zeros(1, 1, 1000, dtype=torch.float64), torch.zeros(1, 1, 1000, dtype=torch.float64)
    sure[..., 3] = 100
    torch.testing.assert_close(uld(sure, unsure).item(), 2 * (1 - 1e-3), **exact)


@pytest.mark.parametrize("rubbish", [1e4, torch.inf, -torch.inf, torch.nan])
def test_uld_masked_positions_take_no_part(rubbish: float) -> None:
    s, t = logits(10, 2, 5, 7), logits(11, 2, 4, 9)
    masks = prefix([2, 4], 5), prefix([3, 1], 4)
    values, pairs = universal_logit_distillation(s, t, *masks)
    expected = grad(lambda x: universal_logit_distillation(x, t, *masks)[0], s)
    assert (values[~pairs] == 0).all()
    assert (expected[:, :4][~pairs] == 0).all()
    assert (expected[:, 4:] == 0).all()
    assert (expected[:, :4][pairs].abs().amax(-1) > 0).all()
    spoilt_s, spoilt_t = s.clone(), t.clone()
    spoilt_s[:, :4][~pairs], spoilt_s[:, 4:], spoilt_t[~pairs] = rubbish, rubbish, rubbish
    torch.testing.assert_close(universal_logit_distillation(spoilt_s, spoilt_t, *masks)[0], values, **exact)
    found = grad(lambda x: universal_logit_distillation(x, spoilt_t, *masks)[0], spoilt_s)
    torch.testing.assert_close(found, expected, **exact)


def test_uld_more_padding_changes_nothing() -> None:
    s, t = logits(12, 2, 3, 5), logits(13, 2, 4, 6)
    values, pairs = universal_logit_distillation(s, t, prefix([3, 2]), prefix([2, 4]))
    wide_s, wide_t = torch.cat([s, logits(14, 2, 6, 5)], 1), torch.cat([t, logits(15, 2, 3, 6)], 1)
    more, more_pairs = universal_logit_distillation(wide_s, wide_t, prefix([3, 2], 9), prefix([2, 4], 7))
    assert more_pairs[:, 3:].any().item() is False
    torch.testing.assert_close(more[:, :3], values, **exact)
    torch.testing.assert_close(more_pairs[:, :3], pairs)


def test_uld_teacher_is_constant_and_gradcheck() -> None:
    s, t = logits(16, 2, 3, 5).requires_grad_(), logits(17, 2, 3, 6).requires_grad_()
    uld(s, t, temperature=2.0).sum().backward()
    assert t.grad is None
    assert s.grad is not None
    assert torch.autograd.gradcheck(lambda x: uld(x, t.detach(), temperature=2.0), (s,))


def test_uld_of_no_pair_is_empty_and_has_no_gradient() -> None:
    s = logits(18, 2, 3, 5).requires_grad_()
    values, pairs = universal_logit_distillation(s, logits(19, 2, 2, 4), prefix([0, 3], 3), prefix([2, 0], 2))
    assert not pairs.any()
    values.sum().backward()
    assert (s.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_uld_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    s, t = logits(20, 2, 3, 500).to(dtype), logits(21, 2, 3, 400).to(dtype)
    assert uld(s, t).dtype == torch.float32
    torch.testing.assert_close(uld(s, t).double(), uld(s.double(), t.double()), rtol=0, atol=1e-6)


def test_uld_refuses_what_does_not_fit() -> None:
    s, t, s_mask, t_mask = logits(1, 2, 3, 5), logits(2, 2, 4, 6), prefix([3, 2]), prefix([4, 1])
    with pytest.raises(ConfigError, match="temperature is 0"):
        universal_logit_distillation(s, t, s_mask, t_mask, temperature=0.0)
    with pytest.raises(ValueError, match="student_mask"):
        universal_logit_distillation(s, t, t_mask, t_mask)
    with pytest.raises(ValueError, match="teacher_mask"):
        universal_logit_distillation(s, t, s_mask, s_mask)
    with pytest.raises(ValueError, match="2 rows and the teacher 1"):
        universal_logit_distillation(s, t[:1], s_mask, t_mask[:1])


# Approximate likelihood matching


def alm(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Values where each token is a chunk of its own."""
    chunks = torch.arange(student.shape[1]).expand(student.shape)
    return approximate_likelihood_matching(student, teacher, chunks, chunks, temperature=temperature)[0]


def plain_binary_kl(p: float, q: float) -> float:
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


def random_chunks(seed: int, rows: int, width: int, lengths: list[int]) -> Tensor:
    """Chunks of each row in order, every one of them there, with tokens in none here and there and at the end."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.full((rows, width), -1)
    for row, count in enumerate(lengths):
        places = torch.randperm(width - 1, generator=generator)[: max(count, width // 2)].sort().values
        more = torch.randint(0, max(count, 1), (len(places) - count,), generator=generator)
        if count:
            made[row, places] = torch.cat([torch.arange(count), more]).sort().values
    return made


@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    temperature=st.sampled_from([0.5, 1.0, 10.0]),
)
@few
def test_alm_equals_a_plain_loop(seed: int, counts: list[int], temperature: float) -> None:
    rows = len(counts)
    s, t = negative(seed, rows, 9), negative(seed + 1, rows, 7)
    s_chunks, t_chunks = random_chunks(seed, rows, 9, counts), random_chunks(seed + 1, rows, 7, counts)
    values, mask = approximate_likelihood_matching(s, t, s_chunks, t_chunks, temperature=temperature)
    assert values.shape == mask.shape == (rows, max(counts))
    assert mask.tolist() == prefix(counts, max(counts)).tolist()
    for row, chunk in product(range(rows), range(max(counts))):
        if chunk >= counts[row]:
            assert values[row, chunk] == 0
            continue
        p, q = (
            math.exp(sum(x for x, at in zip(lp[row].tolist(), chunks[row].tolist(), strict=True) if at == chunk))
            for lp, chunks in ((t, t_chunks), (s, s_chunks))
        )
        expected = plain_binary_kl(p ** (1 / temperature), q ** (1 / temperature))
        assert values[row, chunk].item() == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 100.0])
def test_alm_is_zero_with_zero_gradient_at_equality_and_only_there(temperature: float) -> None:
    x = torch.cat([negative(1, 1, 200), torch.tensor([[0.0, -1e-17, -1e-12, -1e-5, -30.0, -80.0, -1e4]])], -1).double()
    assert alm(x, x.clone(), temperature=temperature).abs().max() < 1e-15
    assert grad(lambda v: alm(v, x, temperature=temperature), x).abs().max() < 1e-14
    assert alm(negative(2, 1, 200), negative(3, 1, 200), temperature=temperature).min() > 0


def test_alm_with_every_likelihood_one() -> None:
    ones = torch.zeros(2, 6, dtype=torch.float64)
    chunks = torch.tensor([[0, 0, 1, 1, 1, -1]] * 2)
    assert (approximate_likelihood_matching(ones, ones, chunks, chunks)[0] == 0).all()
    found = grad(lambda x: approximate_likelihood_matching(x, ones, chunks, chunks)[0], ones)
    assert found.abs().max() < 1e-15


def test_alm_with_chunks_of_one_token_is_the_binary_kl_of_each_token() -> None:
    s, t = logits(4, 3, 6, 11), logits(5, 3, 6, 11)
    ids = torch.randint(0, 11, (3, 6, 1), generator=torch.Generator().manual_seed(0))
    log_q, log_p = (x.log_softmax(-1).gather(-1, ids).squeeze(-1) for x in (s, t))
    p, q = log_p.exp(), log_q.exp()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(alm(log_q, log_p), expected, **exact)
    full = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)
    assert (alm(log_q, log_p) <= full + 1e-12).all()


def test_alm_gradient_equals_its_closed_form() -> None:
    s, t = negative(6, 4, 50), negative(7, 4, 50)
    p, q = t.exp(), s.exp()
    torch.testing.assert_close(grad(lambda x: alm(x, t), s), (q - p) / (1 - q), rtol=1e-10, atol=1e-12)


def test_alm_the_gradient_reaches_every_token_of_a_chunk_and_no_other() -> None:
    s, t = negative(8, 1, 5), negative(9, 1, 3)
    s_chunks, t_chunks = torch.tensor([[0, 0, -1, 1, -1]]), torch.tensor([[0, 1, 1]])
    found = grad(lambda x: approximate_likelihood_matching(x, t, s_chunks, t_chunks)[0], s)[0]
    q, p = (s[0, 0] + s[0, 1]).exp(), t[0, 0].exp()
    torch.testing.assert_close(found[:2], ((q - p) / (1 - q)).expand(2), rtol=1e-10, atol=1e-12)
    q, p = s[0, 3].exp(), (t[0, 1] + t[0, 2]).exp()
    torch.testing.assert_close(found[3], (q - p) / (1 - q), rtol=1e-10, atol=1e-12)
    assert found[2] == found[4] == 0


def test_alm_chain_rule() -> None:
    """Where and how a side cuts a chunk is all one: only the sum of its log-probabilities counts."""
    s, t = negative(10, 2, 6), negative(11, 2, 4)
    s_chunks, t_chunks = torch.tensor([[0, 0, 0, 1, 2, 2]] * 2), torch.tensor([[0, 1, 1, 2]] * 2)
    merged_s = torch.stack([s[:, :3].sum(-1), s[:, 3], s[:, 4:].sum(-1)], -1)
    merged_t = torch.stack([t[:, 0], t[:, 1:3].sum(-1), t[:, 3]], -1)
    found, _ = approximate_likelihood_matching(s, t, s_chunks, t_chunks)
    torch.testing.assert_close(found, alm(merged_s, merged_t), **exact)


@given(seed=st.integers(0, 2**31))
@few
def test_alm_is_a_lower_bound_of_the_kl_over_all_chunks_of_two_tokens(seed: int) -> None:
    """By enumeration: three tokens, chunks of two, nine chunks that could have come."""
    first_s, first_t = (logits(seed + at, 3).log_softmax(-1) for at in (0, 1))
    then_s, then_t = (logits(seed + at, 3, 3).log_softmax(-1) for at in (2, 3))
    joint_s, joint_t = first_s[:, None] + then_s, first_t[:, None] + then_t
    torch.testing.assert_close(joint_t.exp().sum().item(), 1.0, **exact)
    full = (joint_t.exp() * (joint_t - joint_s)).sum().item()
    chunks = torch.zeros(1, 2, dtype=torch.long)
    for one, two in product(range(3), repeat=2):
        s, t = (
            torch.stack([first[one], then[one, two]])[None] for first, then in ((first_s, then_s), (first_t, then_t))
        )
        value = approximate_likelihood_matching(s, t, chunks, chunks)[0].item()
        assert -1e-15 <= value <= full + 1e-12


def test_alm_gradient_changes_with_the_teacher() -> None:
    s, t, other = negative(12, 1, 100), negative(13, 1, 100), negative(14, 1, 100)
    assert (grad(lambda x: alm(x, t), s) - grad(lambda x: alm(x, other), s)).abs().min() > 1e-6


EXTREMES = [0.0, -1e-20, -1e-12, -1e-7, -0.5, -80.0, -1e4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 100.0])
def test_alm_is_finite_at_extreme_likelihoods(dtype: torch.dtype, temperature: float) -> None:
    pairs = torch.tensor(list(product(EXTREMES, EXTREMES)), dtype=dtype)
    s, t = pairs[:, :1].T, pairs[:, 1:].T
    values = alm(s, t, temperature=temperature)
    assert values.isfinite().all()
    assert values.min() > -1e-6
    assert grad(lambda x: alm(x, t, temperature=temperature), s).isfinite().all()


def test_alm_extreme_likelihoods_by_hand() -> None:
    def one(student: float, teacher: float) -> float:
        return alm(*(torch.tensor([[x]], dtype=torch.float64) for x in (student, teacher))).item()

    assert one(-80, 0) == pytest.approx(80, rel=1e-12)
    assert one(0, -80) == pytest.approx(-math.log(torch.finfo(torch.float64).eps), rel=1e-12)
    assert one(-1e-12, -80) == pytest.approx(-math.log(1e-12), rel=1e-9)
    assert one(-80, -1e-12) == pytest.approx(80, rel=1e-9)
    assert one(-80, -90) == pytest.approx(math.exp(-80) - 11 * math.exp(-90), rel=1e-9, abs=0)
    assert one(-torch.inf, -1) == math.inf
    assert one(-1, -torch.inf) == pytest.approx(-math.log1p(-math.exp(-1)), rel=1e-12)
    assert one(-torch.inf, -torch.inf) == 0


def test_alm_a_student_too_sure_is_pulled_back() -> None:
    """Rounding has made its likelihood 1, the teacher's is not: the gradient must not have died."""
    for dtype in (torch.float32, torch.float64):
        s, t = torch.tensor([[50.0, 0.0, 0.0]], dtype=dtype), torch.tensor([[-0.7]], dtype=dtype)
        assert s.log_softmax(-1)[0, 0].item() > -torch.finfo(dtype).eps
        found = grad(lambda x, t=t: alm(x.log_softmax(-1)[:, :1], t), s)
        assert found.isfinite().all()
        assert found[0, 1] < 0  # the rest of the vocabulary gains
        assert found.abs().max() <= 1


def test_alm_temperature_is_the_exponent_of_the_likelihoods() -> None:
    s, t = negative(15, 2, 20), negative(16, 2, 20)
    for temperature in (0.5, 3.0, 100.0):
        torch.testing.assert_close(alm(s, t, temperature=temperature), alm(s / temperature, t / temperature), **exact)
        assert not torch.allclose(alm(s, t, temperature=temperature), alm(s, t))


@pytest.mark.parametrize("rubbish", [5.0, -torch.inf, torch.nan])
def test_alm_tokens_in_no_chunk_contribute_nothing(rubbish: float) -> None:
    s, t = negative(17, 2, 4), negative(18, 2, 3)
    s_chunks, t_chunks = torch.tensor([[0, 0, 1, 2], [0, 1, -1, -1]]), torch.tensor([[0, 1, 2], [0, 0, 1]])
    values, mask = approximate_likelihood_matching(s, t, s_chunks, t_chunks)
    wide_s, wide_t = (torch.full((2, width), rubbish, dtype=s.dtype) for width in (9, 5))
    wide_s[:, 1:5], wide_t[:, :3] = s, t
    wide_s[1, 3:5] = rubbish
    more_s, more_t = torch.full((2, 9), -1), torch.full((2, 5), -1)
    more_s[:, 1:5], more_t[:, :3] = s_chunks, t_chunks
    found, found_mask = approximate_likelihood_matching(wide_s, wide_t, more_s, more_t)
    torch.testing.assert_close(found, values, **exact)
    assert torch.equal(found_mask, mask)
    gradient = grad(lambda x: approximate_likelihood_matching(x, wide_t, more_s, more_t)[0], wide_s)
    assert (gradient[more_s < 0] == 0).all()
    assert (gradient[more_s >= 0] != 0).all()


def test_masks_and_chunks_may_be_of_any_integer_type() -> None:
    s, t, masks = logits(24, 2, 3, 5), logits(25, 2, 4, 6), (prefix([3, 2]), prefix([2, 4]))
    expected, _ = universal_logit_distillation(s, t, *masks)
    found, pairs = universal_logit_distillation(s, t, *(mask.long() for mask in masks))
    assert pairs.dtype == torch.bool
    torch.testing.assert_close(found, expected, **exact)
    log_q, log_p = negative(26, 1, 2), negative(27, 1, 2)
    chunks = torch.tensor([[0, 1]], dtype=torch.int32)
    found, _ = approximate_likelihood_matching(log_q, log_p, chunks, chunks)
    torch.testing.assert_close(found, alm(log_q, log_p), **exact)


def test_alm_of_no_chunk_is_empty() -> None:
    s = negative(19, 2, 3).requires_grad_()
    none = torch.full((2, 3), -1)
    for chunks in (none, none[:, :0]):
        values, mask = approximate_likelihood_matching(s[:, : chunks.shape[1]], s.detach(), chunks, none)
        assert values.shape == mask.shape == (2, 0)
        assert torch.autograd.grad(values.sum(), s)[0].abs().max() == 0


def test_alm_teacher_is_constant_and_gradcheck() -> None:
    s, t = negative(20, 2, 5).requires_grad_(), negative(21, 2, 4).requires_grad_()
    s_chunks, t_chunks = torch.tensor([[0, 0, 1, 1, -1]] * 2), torch.tensor([[0, 1, 1, 1]] * 2)

    def value(x: Tensor) -> Tensor:
        return approximate_likelihood_matching(x, t, s_chunks, t_chunks, temperature=2.0)[0]

    value(s).sum().backward()
    assert t.grad is None
    assert torch.autograd.gradcheck(value, (s,))


def test_alm_is_computed_in_float32_at_least() -> None:
    s, t = negative(22, 2, 50), negative(23, 2, 50)
    assert alm(s.bfloat16(), t.bfloat16()).dtype == torch.float32
    assert alm(s.float(), t.double()).dtype == torch.float64
    torch.testing.assert_close(alm(s.float(), t.float()).double(), alm(s, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_student_that_is_its_teacher_has_no_loss_unless_rows_are_off_by_one(shift: int) -> None:
    """The state before a token predicts it. To take the row at the token itself is a known defect."""
    ids = tiny.batch([(1, 12), (1, 12)]).response_ids
    with torch.no_grad():
        rows = tiny.llama().double()(ids).logits
    student, teacher = rows[:, :-2], rows[:, shift : rows.shape[1] - 2 + shift]
    tokens = ids[:, 1:-1, None]
    values = alm(*(x.log_softmax(-1).gather(-1, tokens).squeeze(-1) for x in (student, teacher)))
    shapes = uld(student, teacher)
    if shift:
        assert values.mean() > 1e-3
        assert shapes.mean() > 1e-3
    else:
        assert values.abs().max() == 0
        assert shapes.abs().max() == 0


def test_alm_refuses_what_does_not_fit() -> None:
    s, t = negative(1, 2, 3), negative(2, 2, 4)
    s_chunks, t_chunks = torch.tensor([[0, 1, 1]] * 2), torch.tensor([[0, 0, 1, -1]] * 2)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="temperature is") as refused:
            approximate_likelihood_matching(s, t, s_chunks, t_chunks, temperature=temperature)
        assert refused.value.fix
    with pytest.raises(ValueError, match="student_chunks"):
        approximate_likelihood_matching(s, t, t_chunks, t_chunks)
    with pytest.raises(ValueError, match="teacher_chunks"):
        approximate_likelihood_matching(s, t, s_chunks, s_chunks)
    with pytest.raises(ValueError, match="2 rows and the teacher 1"):
        approximate_likelihood_matching(s, t[:1], s_chunks, t_chunks[:1])
    t_chunks[1, 2] = -1
    with pytest.raises(ValueError, match="row 1: only the student has tokens in chunk 1"):
        approximate_likelihood_matching(s, t, s_chunks, t_chunks)


def test_alm_refuses_what_are_no_log_probabilities() -> None:
    """A cross-entropy that was not negated would be a likelihood above 1: a loss of 0 without a gradient."""
    chunks = torch.tensor([[0, 1]])
    good, bad = torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 2.0]])
    for student, teacher, whose in ((bad, good, "student"), (good, bad, "teacher")):
        with pytest.raises(ValueError, match=f"the {whose}'s log-probabilities are above 0"):
            approximate_likelihood_matching(student, teacher, chunks, chunks)
