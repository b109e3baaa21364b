"""Sparse teachers: K+1 outcomes, draws, and what they may and may not be used for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from potstill import objectives
from potstill.errors import ConfigError
from potstill.objectives import sparse
from potstill.types import Sampled, TopK
from tests.numerics.table import CASES, Case, Divergence, gradient, logits

MERGING = {name: case for name, case in CASES.items() if case.merges}
REFUSING = {name: case for name, case in CASES.items() if not case.merges}
every_merging = pytest.mark.parametrize("case", MERGING.values(), ids=MERGING.keys())
S, T = logits(30, 200, 9), logits(31, 200, 9)


def merged(x: Tensor, ids: Tensor) -> Tensor:
    """Probabilities of the listed tokens and of all the others together."""
    probs = x.softmax(-1)
    listed = probs.gather(-1, ids)
    return torch.cat([listed, 1 - listed.sum(-1, keepdim=True)], -1)


@every_merging
@pytest.mark.parametrize("k", [1, 3, 8])
def test_equals_the_divergence_of_k_plus_one_outcomes(case: Case, k: int) -> None:
    teacher = sparse.top_k(T, k)
    expected = case.definition(merged(T, teacher.ids), merged(S, teacher.ids))
    torch.testing.assert_close(case.function(S, teacher), expected, rtol=1e-9, atol=1e-12)


@every_merging
def test_never_above_the_full_divergence_and_closer_with_k(case: Case) -> None:
    full = case.function(S, T)
    previous = torch.zeros_like(full)
    for k in range(1, 10):
        value = case.function(S, sparse.top_k(T, k))
        assert (value <= full + 1e-12).all()
        assert (value >= previous - 1e-12).all()
        previous = value
    torch.testing.assert_close(previous, full, rtol=1e-12, atol=1e-12)


@every_merging
def test_with_every_token_listed_the_gradient_is_the_full_one(case: Case) -> None:
    found = gradient(case.function, S, sparse.top_k(T, 9))
    torch.testing.assert_close(found, gradient(case.function, S, T), rtol=1e-10, atol=1e-12)


@every_merging
def test_zero_at_the_teacher_and_a_gradient_that_sums_to_zero(case: Case) -> None:
    assert case.function(S, sparse.top_k(S, 3)).abs().max() < 1e-13
    if case.function is not objectives.total_variation:  # no derivative there: the sign of a rounding error
        assert gradient(case.function, S, sparse.top_k(S, 3)).abs().max() < 1e-13
    assert gradient(case.function, S, sparse.top_k(T, 3)).sum(-1).abs().max() < 1e-12


def test_one_listed_token_still_has_a_gradient() -> None:
    """Renormalised over itself, as elsewhere, a top 1 is the distribution (1): a constant without a gradient."""
    found = gradient(objectives.forward_kl, S, sparse.top_k(T, 1))
    assert found.abs().amax(-1).min() > 1e-3


def test_a_teacher_top_k_is_normalised_with_its_tail() -> None:
    teacher = sparse.top_k(T, 4)
    total = teacher.log_probs.exp().sum(-1) + teacher.log_tail_mass.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)
    torch.testing.assert_close(teacher.log_probs, T.log_softmax(-1).topk(4, -1).values, rtol=0, atol=1e-14)


@pytest.mark.parametrize("peak", [5.0, 12.0, 20.0, 70.0])
def test_a_tiny_tail_keeps_its_digits(peak: float) -> None:
    """1 - sum would leave few digits of a rest of 1e-5, and nothing of one of 1e-30: reverse KL would be infinite."""
    peaked = torch.zeros(1, 5, dtype=torch.float64)
    peaked[0, 0] = peak
    teacher = sparse.top_k(peaked.float(), 1)
    assert teacher.log_tail_mass.item() == pytest.approx(math.log(4) - math.log(math.exp(peak) + 4), rel=1e-6)
    student = torch.zeros(1, 5)
    assert objectives.reverse_kl(student, teacher).isfinite().all()


@pytest.mark.parametrize("vocab", [448, 447, 1000, 1024])
def test_the_most_likely_are_found_whether_or_not_by_groups(vocab: int) -> None:
    """Groups of 64 from 448 tokens on, where 7 are wanted, and those beyond the last whole group are looked at too."""
    scores = logits(8, 300, vocab)
    assert torch.equal(sparse.top_k(scores, 7).ids, scores.topk(7, -1).indices)


def test_no_tail_is_no_outcome() -> None:
    s, t = S.clone(), T.clone()
    s[:, 5:], t[:, 5:] = -torch.inf, -torch.inf
    teacher = sparse.top_k(t, 5)
    assert (teacher.log_tail_mass == -torch.inf).all()
    torch.testing.assert_close(objectives.forward_kl(s, teacher), objectives.forward_kl(s, t), rtol=1e-12, atol=1e-12)
    assert gradient(objectives.forward_kl, s, teacher).isfinite().all()


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_reverse_kl_wants_the_students_own_list() -> None:
    """Models that disagree, over a real vocabulary's width: what the student likes is not what the teacher lists."""
    generator = torch.Generator().manual_seed(0)
    t = 3 * torch.randn(64, 2000, generator=generator, dtype=torch.float64)
    s = t + 3 * torch.randn(64, 2000, generator=generator, dtype=torch.float64)
    exact = gradient(objectives.reverse_kl, s, t)
    own = cosine(gradient(objectives.reverse_kl, s, sparse.student_top_k(s, t, 32)), exact)
    teachers = cosine(gradient(objectives.reverse_kl, s, sparse.top_k(t, 32)), exact)
    assert own > 0.85
    assert teachers < own - 0.2


def test_the_students_list_is_scored_by_the_teacher() -> None:
    teacher = sparse.student_top_k(S, T, 3)
    assert (teacher.ids == S.topk(3, -1).indices).all()
    torch.testing.assert_close(teacher.log_probs, T.log_softmax(-1).gather(-1, teacher.ids), rtol=0, atol=1e-14)


# --- Draws ------------------------------------------------------------------------------------------------------------


def dense(draws: Sampled, vocab: int) -> Tensor:
    return torch.zeros(*draws.ids.shape[:-1], vocab, dtype=draws.weights.dtype).scatter_add_(
        -1, draws.ids, draws.weights
    )


def repeated(num_draws: int, **settings: float) -> tuple[Tensor, Tensor]:
    """The mean of many draws from one teacher, with the standard error of each entry."""
    many = T[:1].expand(40_000, 9)
    weights = dense(sparse.draw(many, num_draws, generator=torch.Generator().manual_seed(0), **settings), 9)
    return weights.mean(0), weights.std(0) / math.sqrt(len(weights))


@pytest.mark.parametrize("settings", [{}, {"proposal_power": 0.5}, {"temperature": 2.0}])
def test_draws_average_to_the_teacher(settings: dict[str, float]) -> None:
    mean, error = repeated(6, **settings)
    expected = (T[0] / settings.get("temperature", 1.0)).softmax(-1)
    assert ((mean - expected).abs() < 4.5 * error + 1e-12).all()


def test_draws_are_counts_over_their_number_without_repeats() -> None:
    draws = sparse.draw(T, 20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draws.weights.sum(-1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-14)
    counts = draws.weights * 20
    assert torch.equal(counts.round(), counts.round(decimals=9))
    for ids, weights in zip(draws.ids, draws.weights, strict=True):
        used = ids[weights > 0].tolist()
        assert len(used) == len(set(used))


def test_number_of_distinct_draws_is_the_expected_one() -> None:
    p = T.softmax(-1)
    expected = (1 - (1 - p) ** 12).sum(-1)
    seen = torch.zeros(200)
    for seed in range(200):
        draws = sparse.draw(T, 12, generator=torch.Generator().manual_seed(seed))
        seen += (draws.weights > 0).sum(-1) / 200
    assert (seen.double() - expected).abs().max() < 0.5
    assert (seen.double() - expected).mean().abs() < 0.02


@pytest.mark.parametrize("proposal_power", [1.0, 0.5])
def test_forward_kl_from_draws_has_the_full_gradient_on_average(proposal_power: float) -> None:
    """Exact in expectation: the gradient is (sum w) q - w, and E[w] is the teacher."""
    many, student = T[:1].expand(40_000, 9), S[:1].expand(40_000, 9)
    draws = sparse.draw(many, 6, proposal_power=proposal_power, generator=torch.Generator().manual_seed(2))
    grads = gradient(objectives.forward_kl, student, draws)
    weights = dense(draws, 9)
    expected = weights.sum(-1, keepdim=True) * student.softmax(-1) - weights
    torch.testing.assert_close(grads, expected, rtol=0, atol=1e-12)
    error = grads.std(0) / math.sqrt(len(grads))
    assert ((grads.mean(0) - (S[0].softmax(-1) - T[0].softmax(-1))).abs() < 4.5 * error).all()


def test_normalising_proposal_weights_would_bias_them() -> None:
    many = T[:1].expand(40_000, 9)
    weights = dense(sparse.draw(many, 6, proposal_power=0.3, generator=torch.Generator().manual_seed(3)), 9)
    normalised = (weights / weights.sum(-1, keepdim=True)).mean(0)
    assert (normalised - T[0].softmax(-1)).abs().max() > 0.02
    assert (weights.mean(0) - T[0].softmax(-1)).abs().max() < 0.01


def test_a_top_k_renormalised_is_biased_by_the_missing_mass_and_draws_are_not() -> None:
    """What 'top-k KD' elsewhere trains towards: off by twice the mass outside the list, in total."""
    teacher = sparse.top_k(T, 3)
    p, outside = T.softmax(-1), teacher.log_tail_mass.exp()
    renormalised = torch.zeros_like(p).scatter_(-1, teacher.ids, teacher.log_probs.exp() / (1 - outside)[:, None])
    torch.testing.assert_close((renormalised - p).abs().sum(-1), 2 * outside, rtol=1e-9, atol=1e-12)


def test_the_value_from_draws_is_a_divergence_to_the_draws() -> None:
    draws = sparse.draw(T, 6, generator=torch.Generator().manual_seed(4))
    target = dense(draws, 9)
    expected = torch.where(target > 0, target * (target / S.softmax(-1)).log(), 0.0).sum(-1)
    torch.testing.assert_close(objectives.forward_kl(S, draws), expected, rtol=1e-12, atol=1e-12)
    log_target = target.clamp_min(1e-300).log()
    assert objectives.forward_kl(log_target, draws).abs().max() < 1e-12


@pytest.mark.parametrize("skew", [0.1, 0.5])
def test_plugging_draws_into_a_skewed_divergence_would_be_biased(skew: float) -> None:
    """Why the others refuse: with as many draws as you like to average over, the gradient stays wrong."""
    weights = dense(sparse.draw(T[:1].expand(40_000, 9), 4, generator=torch.Generator().manual_seed(5)), 9)
    skewed: Divergence = partial(objectives.skew_forward_kl, skew=skew)
    plugged = gradient(skewed, S[:1].expand(40_000, 9), weights.log())
    exact = gradient(skewed, S[:1], T[:1])[0]
    error = plugged.std(0) / math.sqrt(40_000)
    assert ((plugged.mean(0) - exact).abs() / error).max() > 20


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REFUSING.values(), ids=REFUSING.keys())
def test_objectives_that_need_every_token_refuse_a_top_k_with_the_reason(case: Case) -> None:
    with pytest.raises(ConfigError, match=r"(?s)top-k teacher does not say enough.*|sparse teacher.*fix: give the"):
        case.function(S, sparse.top_k(T, 3))


@pytest.mark.parametrize("name", [name for name in CASES if name != "forward_kl"])
def test_everything_but_forward_kl_refuses_draws_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=r"biased|sparse teacher"):
        CASES[name].function(S, sparse.draw(T, 5))


def sparse_forms() -> list[Callable[[], TopK | Sampled]]:
    return [lambda: sparse.top_k(T, 3, temperature=2.0), lambda: sparse.draw(T, 3, temperature=2.0)]


@pytest.mark.parametrize("form", sparse_forms())
def test_another_temperature_than_it_was_made_at_is_refused(form: Callable[[], TopK | Sampled]) -> None:
    with pytest.raises(ConfigError, match=r"temperature 2.0, not 1.0"):
        objectives.forward_kl(S, form())
    objectives.forward_kl(S, form(), temperature=2.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sparse.top_k(T, 0),
        lambda: sparse.top_k(T, 10),
        lambda: sparse.draw(T, 0),
        lambda: sparse.draw(T, 5, proposal_power=0.0),
        lambda: sparse.top_k(T, 3, temperature=0.0),
    ],
)
def test_settings_out_of_range_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="fix: give"):
        call()
