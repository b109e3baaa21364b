"""What every divergence must do, over the table of them all."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill import objectives, recipe
from potstill.objectives.distributions import jensen_shannon_between, kl_between
from tests.numerics.table import CASES, Case, Divergence, gradient, logits

every_divergence = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_the_table_has_every_divergence() -> None:
    inside = {getattr(case.function, "func", case.function).__name__ for case in CASES.values()}
    assert inside == {section.model_fields["name"].default for section in get_args(recipe.AnyDivergence)}


@every_divergence
def test_value_equals_its_definition(case: Case) -> None:
    s, t = logits(1, 60, 11), logits(2, 60, 11)
    expected = case.definition(t.softmax(-1), s.softmax(-1))
    torch.testing.assert_close(case.function(s, t), expected, rtol=1e-12, atol=1e-12)


@every_divergence
def test_gradient_equals_its_closed_form_or_finite_differences(case: Case) -> None:
    s, t = logits(3, 60, 11), logits(4, 60, 11)
    found = gradient(case.function, s, t)
    if case.gradient is not None:
        torch.testing.assert_close(found, case.gradient(t.softmax(-1), s.softmax(-1)), rtol=1e-12, atol=1e-12)
    else:
        torch.testing.assert_close(found, _numerical_gradient(case, s, t), rtol=1e-6, atol=1e-7)


def _numerical_gradient(case: Case, s: Tensor, t: Tensor) -> Tensor:
    """Central differences, with what the objective takes as constant held at s."""
    name = getattr(case.function, "func", case.function).__name__
    step, columns = 1e-5, []
    for v in range(s.shape[-1]):
        nudge = torch.zeros_like(s)
        nudge[:, v] = step
        if name == "logit_matching":  # its weights are constant
            high, low = _pairs(s + nudge, t), _pairs(s - nudge, t)
        else:
            high, low = case.function(s + nudge, t), case.function(s - nudge, t)
        columns.append((high - low) / (2 * step))
    return torch.stack(columns, -1)


def _pairs(s: Tensor, t: Tensor) -> Tensor:
    """CSD with the teacher's weights on one side and none on the other, in a table."""
    d = s - t
    return (t.softmax(-1)[:, :, None] * (d[:, :, None] - d[:, None, :]) ** 2).sum((1, 2)) / (2 * s.shape[-1])


@pytest.mark.parametrize("w", [0.1, 0.5, 0.8])
def test_derivatives_written_by_hand_are_those_of_finite_differences(w: float) -> None:
    """In both arguments, though a teacher has none, and whether or not what comes before takes out their sum."""
    both = [logits(seed, 4, 7).log_softmax(-1).requires_grad_() for seed in (5, 6)]
    assert torch.autograd.gradcheck(kl_between, both)
    assert torch.autograd.gradcheck(lambda a, b: jensen_shannon_between(a, b, w), both)


@every_divergence
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_divides_both_models_logits(case: Case, temperature: float) -> None:
    s, t = logits(5, 20, 7), logits(6, 20, 7)
    found = case.function(s, t, temperature=temperature)
    torch.testing.assert_close(found, case.function(s / temperature, t / temperature), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, case.function(s, t))


@every_divergence
def test_zero_with_zero_gradient_where_student_is_teacher(case: Case) -> None:
    s = logits(7, 200, 9)
    assert case.function(s, s.clone()).abs().max() < 1e-14
    assert gradient(case.function, s, s.clone()).abs().max() < 2e-15
    # and where they agree up to a constant, which is the same distribution
    assert case.function(s, s + 3).abs().max() < 1e-13
    if case.function is not objectives.total_variation:  # no derivative there: the sign of a rounding error
        assert gradient(case.function, s, s + 3).abs().max() < 1e-14


@every_divergence
def test_never_negative_below_its_bound_and_changes_with_the_teacher(case: Case) -> None:
    s, t, other = logits(8, 200, 9), logits(9, 200, 9), logits(10, 200, 9)
    assert case.function(s, t).min() > 0
    assert case.function(s, t).max() < case.bound
    change = (gradient(case.function, s, t) - gradient(case.function, s, other)).abs().amax(-1)
    assert (change > 1e-6).double().mean() > 0.9  # total variation's knows the teacher only by signs


@every_divergence
def test_a_step_down_the_gradient_comes_closer_to_the_teacher(case: Case) -> None:
    if case.moves:
        pytest.skip("its gradient holds constant what moves with the student")
    s, t = logits(11, 200, 9), logits(12, 200, 9)
    step = gradient(case.function, s, t)
    closer = case.function(s - 1e-4 * step / step.norm(dim=-1, keepdim=True), t) < case.function(s, t)
    assert closer.all()


@every_divergence
@given(seed=st.integers(0, 2**31), shift=st.floats(-30, 30))
@settings(max_examples=15, deadline=None)
def test_invariances(case: Case, seed: int, shift: float) -> None:
    s, t = logits(seed, 6, 8), logits(seed + 1, 6, 8)
    value = case.function(s, t)
    torch.testing.assert_close(case.function(s + shift, t), value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(case.function(s, t - shift), value, rtol=1e-9, atol=1e-9)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(case.function(s[:, order], t[:, order]), value, rtol=1e-12, atol=1e-12)
    assert gradient(case.function, s, t).sum(-1).abs().max() < 1e-11


@every_divergence
def test_any_leading_shape_and_no_mixing_between_positions(case: Case) -> None:
    s, t = logits(13, 2, 3, 7), logits(14, 2, 3, 7)
    value = case.function(s, t)
    assert value.shape == (2, 3)
    torch.testing.assert_close(value[1, 2], case.function(s[1, 2], t[1, 2]), rtol=1e-13, atol=1e-14)
    assert case.function(s[:0], t[:0]).shape == (0, 3)


@every_divergence
def test_no_gradient_to_the_teacher(case: Case) -> None:
    s, t = logits(15, 3, 5).requires_grad_(), logits(16, 3, 5).requires_grad_()
    case.function(s, t).sum().backward()
    assert t.grad is None
    assert s.grad is not None


@every_divergence
def test_precise_in_float32_and_bfloat16_over_a_real_vocabulary(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(8, 32_000, generator=generator) for _ in range(2))
    exact = case.function(s.double(), t.double())
    torch.testing.assert_close(case.function(s, t).double(), exact, rtol=1e-5, atol=0)
    halved = case.function(s.bfloat16(), t.bfloat16())
    assert halved.dtype == torch.float32
    if not case.negative_power:  # which weighs the least likely tokens most, and those bfloat16 has two digits of
        torch.testing.assert_close(halved.double(), exact, rtol=2e-2, atol=0)
    if case.function is not objectives.total_variation:  # a sign of a difference has no digits
        exact_gradient = gradient(case.function, s.double(), t.double())
        assert (gradient(case.function, s, t) - exact_gradient).norm() < 1e-5 * exact_gradient.norm()


@every_divergence
def test_finite_with_its_gradient_for_extreme_logits(case: Case) -> None:
    s, t = (torch.empty(4, 32_000).uniform_(-50, 50, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    assert case.function(s, t).isfinite().all()
    assert gradient(case.function, s, t).isfinite().all()


@every_divergence
def test_tokens_masked_on_both_sides_contribute_nothing(case: Case) -> None:
    s, t = logits(17, 5, 6), logits(18, 5, 6)
    banned = torch.full((5, 2), -torch.inf, dtype=torch.float64)
    wide_s, wide_t = torch.cat([s, banned], -1), torch.cat([t, banned], -1)
    torch.testing.assert_close(case.function(wide_s, wide_t), case.function(s, t), rtol=0, atol=1e-13)
    found = gradient(case.function, wide_s, wide_t)
    torch.testing.assert_close(found[:, :6], gradient(case.function, s, t), rtol=0, atol=1e-13)
    assert (found[:, 6:] == 0).all()


@every_divergence
def test_infinite_exactly_where_the_student_excludes_what_the_teacher_does_not(case: Case) -> None:
    full, cut = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, -torch.inf]])
    assert case.function(cut, full).isfinite().all() == case.excludes
    if not case.excludes:
        assert case.function(cut, full).item() == math.inf


def test_reverse_kl_is_infinite_where_the_teacher_excludes_what_the_student_does_not() -> None:
    full, cut = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, -torch.inf]])
    assert objectives.reverse_kl(full, cut).item() == math.inf
    assert objectives.forward_kl(full, cut).isfinite().all()


# --- Identities, limits, bounds ---------------------------------------------------------------------------------------


S, T = logits(20, 100, 6), logits(21, 100, 6)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("w", [0.05, 0.3, 0.5, 0.95])
def test_jensen_shannon_is_a_mean_of_the_skewed_pair(w: float) -> None:
    forward = objectives.skew_forward_kl(S, T, skew=w)
    reverse = objectives.skew_reverse_kl(S, T, skew=1 - w)
    close(objectives.jensen_shannon(S, T, teacher_weight=w), w * forward + (1 - w) * reverse)


def test_symmetries() -> None:
    close(objectives.skew_reverse_kl(S, T, skew=0.2), objectives.skew_forward_kl(T, S, skew=0.2))
    one = objectives.jensen_shannon(S, T, teacher_weight=0.2)
    close(one, objectives.jensen_shannon(T, S, teacher_weight=0.8))
    close(objectives.jeffreys(S, T), objectives.jeffreys(T, S))
    close(objectives.alpha_beta(S, T, alpha=0.3, beta=0.8), objectives.alpha_beta(T, S, alpha=0.8, beta=0.3))


def test_special_points_of_alpha_beta() -> None:
    close(objectives.alpha_beta(S, T, alpha=1, beta=0), objectives.forward_kl(S, T))
    close(objectives.alpha_beta(S, T, alpha=0, beta=1), objectives.reverse_kl(S, T))
    close(objectives.alpha_beta(S, T, alpha=0.5, beta=0.5), 4 * objectives.squared_hellinger(S, T))
    distance = (S.softmax(-1) - T.softmax(-1)).square().sum(-1)
    close(objectives.alpha_beta(S, T, alpha=1, beta=1), distance / 2)


def test_special_points_of_the_assistant() -> None:
    kl = partial(objectives.assistant_divergence, divergence_alpha=1.0, divergence_beta=0.0)
    close(kl(S, T, teacher_weight=0.3), objectives.skew_forward_kl(S, T, skew=0.3))
    close(kl(S, T, teacher_weight=0.7, anchor="student"), objectives.skew_reverse_kl(S, T, skew=0.3))
    close(kl(S, T, teacher_weight=0.0, alpha=1.0), objectives.forward_kl(S, T))
    close(kl(S, T, teacher_weight=1.0, alpha=3.0, anchor="student"), objectives.reverse_kl(S, T))


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_taid_starts_with_no_gradient_and_ends_as_forward_kl(end: float) -> None:
    found = gradient(partial(objectives.interpolated_forward_kl, t=end), S, T)
    expected = gradient(objectives.forward_kl, S, T) if end else torch.zeros_like(S)
    close(found, expected, 1e-14)


def test_skew_zero_is_kl() -> None:
    close(objectives.skew_forward_kl(S, T, skew=0.0), objectives.forward_kl(S, T))
    close(objectives.skew_reverse_kl(S, T, skew=0.0), objectives.reverse_kl(S, T))


def test_bounds() -> None:
    far = torch.eye(4, dtype=torch.float64) * 200
    apart = far.roll(1, 0)
    for w in (0.1, 0.5, 0.9):
        mixed = -w * math.log(w) - (1 - w) * math.log(1 - w)
        for divergence, bound in [
            (partial(objectives.jensen_shannon, teacher_weight=w), mixed),
            (partial(objectives.skew_forward_kl, skew=w), -math.log(w)),
            (partial(objectives.skew_reverse_kl, skew=w), -math.log(w)),
        ]:
            close(divergence(far, apart), torch.full((4,), bound, dtype=torch.float64), 1e-9)
        assert (objectives.skew_forward_kl(S, T, skew=w) <= (1 - w) * objectives.forward_kl(S, T) + 1e-12).all()
    close(objectives.total_variation(far, apart), torch.ones(4).double(), 1e-9)
    close(objectives.squared_hellinger(far, apart), torch.ones(4).double(), 1e-9)
    total_variation = objectives.total_variation(S, T)
    assert (total_variation <= (objectives.forward_kl(S, T) / 2).sqrt()).all()  # Pinsker
    assert (objectives.squared_hellinger(S, T) <= total_variation + 1e-12).all()


@pytest.mark.parametrize("w", [1e-2, 1e-4, 1e-6])
@pytest.mark.filterwarnings("ignore:jensen_shannon with teacher_weight")
def test_limits_of_jensen_shannon(w: float) -> None:
    """The first-order error shrinks with w: the rate is part of the limit."""
    low = objectives.jensen_shannon(S, T, teacher_weight=w) / w
    high = objectives.jensen_shannon(S, T, teacher_weight=1 - w) / w
    assert (low / objectives.forward_kl(S, T) - 1).abs().max() < 500 * w + 1e-8
    assert (high / objectives.reverse_kl(S, T) - 1).abs().max() < 500 * w + 1e-8


def test_rescaled_jensen_shannon_is_continuous_from_forward_to_reverse_kl() -> None:
    weights = [0.0, 1e-7, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1 - 1e-7, 1.0]
    values = [objectives.jensen_shannon(S, T, teacher_weight=w, rescale=True) for w in weights]
    close(values[0], objectives.forward_kl(S, T), 0)
    close(values[-1], objectives.reverse_kl(S, T), 0)
    close(values[0], values[1], 1e-4)
    close(values[-1], values[-2], 1e-4)
    norms = [gradient(partial(objectives.jensen_shannon, teacher_weight=w, rescale=True), S, T).norm() for w in weights]
    assert max(norms) / min(norms) < 20  # the textbook scale falls by a factor of a million on the way
    for a, b in pairwise(norms):
        assert 0.2 < a / b < 5


@pytest.mark.parametrize(
    ("at", "beside"), [((0, 0.5), (1e-6, 0.5)), ((0.7, 0), (0.7, 1e-6)), ((0.5, -0.5), (0.5, -0.499999))]
)
def test_limits_of_alpha_beta(at: tuple[float, float], beside: tuple[float, float]) -> None:
    """The public code's limit branches are off by 1/a (measured there: 0.5 times the limit at a = 0.5)."""
    limit = objectives.alpha_beta(S, T, alpha=at[0], beta=at[1])
    near = objectives.alpha_beta(S, T, alpha=beside[0], beta=beside[1])
    assert (near / limit - 1).abs().max() < 2e-5


def test_alpha_beta_keeps_its_digits_on_the_way_into_the_limit() -> None:
    limit = objectives.alpha_beta(S, T, alpha=0.0, beta=0.5)
    near = objectives.alpha_beta(S.float(), T.float(), alpha=1e-7, beta=0.5)
    torch.testing.assert_close(near.double(), limit, rtol=1e-4, atol=0)


@pytest.mark.parametrize("temperature", [10.0, 100.0, 1000.0])
def test_high_temperature_is_logit_matching(temperature: float) -> None:
    """T**2 times the gradient tends to the centred difference of the logits over the vocabulary's size."""
    found = temperature**2 * gradient(partial(objectives.forward_kl, temperature=temperature), S, T)
    difference = S - T
    expected = (difference - difference.mean(-1, keepdim=True)) / S.shape[-1]
    assert (found - expected).abs().max() < 10 / temperature


def test_logit_matching_is_the_variance_of_the_difference_and_blind_to_shifts() -> None:
    q, d = S.softmax(-1), S - T
    mean = (q * d).sum(-1, keepdim=True)
    close(objectives.logit_matching(S, T), (q * (d - mean) ** 2).sum(-1))
    close(objectives.logit_matching(S + 1000, T - 1000), objectives.logit_matching(S, T), 1e-9)


def weak(w: float) -> Divergence:
    return partial(objectives.jensen_shannon, teacher_weight=w)


@pytest.mark.parametrize("w", [0.049, 0.951])
def test_small_weights_warn_unless_rescaled(w: float) -> None:
    with pytest.warns(UserWarning, match="set rescale=True"):
        weak(w)(S, T)


@pytest.mark.filterwarnings("error")
def test_other_weights_do_not_warn() -> None:
    weak(0.05)(S, T)
    weak(0.95)(S, T)
    objectives.jensen_shannon(S, T, teacher_weight=0.01, rescale=True)
