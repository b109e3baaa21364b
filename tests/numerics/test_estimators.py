"""Estimators from sampled tokens: their exact expectations, by summing over every token of a small vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.divergences import forward_kl, reverse_kl
from potstill.objectives.estimators import importance_weights, k1, k3, policy_gradient, squared_log_ratio

POSITIONS, VOCAB = 40, 12
TwoLogprobs = Callable[[Tensor, Tensor], Tensor]


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(POSITIONS, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def models(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A student's logits with a gradient, and a teacher's log-probabilities: [position, token]."""
    return logits(seed).requires_grad_(), logits(seed + 1).log_softmax(-1)


def expected_gradient(estimator: TwoLogprobs, student: Tensor, teacher: Tensor, sampled_from: Tensor) -> Tensor:
    """The mean over tokens of the estimator's gradient, the sampling itself left out of it."""
    values = estimator(student.log_softmax(-1), teacher)
    return torch.autograd.grad((sampled_from.detach() * values).sum(), student)[0]


def gradient(divergence: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    return torch.autograd.grad(divergence(student, teacher).sum(), student)[0]


def on_policy(student: Tensor, teacher: Tensor, baseline: float = 0.0) -> Tensor:
    return policy_gradient(student, student, teacher - student + baseline)


def k1_as_a_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return student - teacher


def k3_as_a_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher - student).exp() - 1 - (teacher - student)


def k3_of_forward_kl_as_a_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).exp() - 1 - (student - teacher)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", [on_policy, squared_log_ratio])
def test_losses_on_student_samples_have_reverse_kls_gradient(estimator: TwoLogprobs) -> None:
    student, teacher = models()
    actual = expected_gradient(estimator, student, teacher, student.softmax(-1))
    same(actual, gradient(reverse_kl, student, teacher))


@pytest.mark.parametrize("baseline", [-3.0, 0.5, 100.0])
def test_a_constant_baseline_changes_nothing_on_average(baseline: float) -> None:
    student, teacher = models(2)
    q = student.softmax(-1)
    actual = expected_gradient(lambda s, t: on_policy(s, t, baseline), student, teacher, q)
    torch.testing.assert_close(actual, gradient(reverse_kl, student, teacher), rtol=0, atol=1e-12 * max(1, baseline))


def test_areno_opd_defect_k1_as_a_loss_has_no_gradient_on_average() -> None:
    """The gradient of one sample is not 0, so training moves, by noise alone: why ``k1`` is a constant."""
    student, teacher = models(4)
    actual = expected_gradient(k1_as_a_loss, student, teacher, student.softmax(-1))
    same(actual, torch.zeros_like(actual))
    assert gradient(reverse_kl, student, teacher).abs().max() > 0.1
    same(k1(student.log_softmax(-1), teacher), k1_as_a_loss(student.log_softmax(-1), teacher).detach())


def test_torchrl_defect_k3_as_a_loss_on_student_samples_is_forward_kl() -> None:
    """Called reverse KL, and minimising the other direction: why ``k3`` is a constant."""
    student, teacher = models(6)
    actual = expected_gradient(k3_as_a_loss, student, teacher, student.softmax(-1))
    same(actual, gradient(forward_kl, student, teacher))
    assert (actual - gradient(reverse_kl, student, teacher)).abs().max() > 0.1
    same(k3(student.log_softmax(-1), teacher), k3_as_a_loss(student.log_softmax(-1), teacher).detach())


def test_k3_of_forward_kl_on_teacher_samples_is_forward_kl() -> None:
    student, teacher = models(8)
    actual = expected_gradient(k3_of_forward_kl_as_a_loss, student, teacher, teacher.exp())
    same(actual, gradient(forward_kl, student, teacher))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_values_to_log_average_to_reverse_kl(estimator: TwoLogprobs) -> None:
    student, teacher = models(10)
    values = estimator(student.log_softmax(-1), teacher)
    same((student.softmax(-1) * values).sum(-1), reverse_kl(student, teacher))


def test_k2s_value_is_not_reverse_kl() -> None:
    student, teacher = models(10)
    mean = (student.softmax(-1) * squared_log_ratio(student.log_softmax(-1), teacher)).sum(-1)
    assert (mean / reverse_kl(student, teacher) - 1).abs().max() > 0.5


@pytest.mark.parametrize("estimator", [k1, k3])
def test_values_to_log_cannot_be_minimised(estimator: TwoLogprobs) -> None:
    student, teacher = models()
    values = estimator(student.log_softmax(-1), teacher.clone().requires_grad_())
    assert not values.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        values.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_k3_is_never_negative(dtype: torch.dtype) -> None:
    student = -torch.rand(2000, dtype=dtype)
    near = student + 1e-3 * torch.randn(2000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert (k3(student, near) >= 0).all()
    assert (k3(student, student) == 0).all()


def test_the_gradient_goes_to_the_student_alone() -> None:
    student, behaviour, advantages, weights = (logits(i).log_softmax(-1).requires_grad_() for i in range(4))
    policy_gradient(student, behaviour, advantages, clip=0.2, importance_weights=weights).sum().backward()
    assert student.grad is not None
    assert behaviour.grad is advantages.grad is weights.grad is None
    squared_log_ratio(student, advantages).sum().backward()
    assert advantages.grad is None
    assert not importance_weights(student, advantages, 0.2).requires_grad


def test_on_policy_it_is_the_score_function() -> None:
    student, teacher = models(12)
    advantages = teacher + 1
    student_logprobs = student.log_softmax(-1)
    loss = policy_gradient(student_logprobs, student_logprobs, advantages)
    assert torch.equal(loss, -advantages)
    score = torch.autograd.grad(-(advantages * student_logprobs).sum(), student, retain_graph=True)[0]
    same(torch.autograd.grad(loss.sum(), student)[0], score)


def test_off_policy_the_ratio_corrects_who_sampled() -> None:
    """Tokens by another student, one step's worth of reward: the mean gradient is the on-policy one."""
    student, teacher = models(14)
    behaviour, q = logits(16).log_softmax(-1), student.log_softmax(-1).detach()
    loss = policy_gradient(student.log_softmax(-1), behaviour, teacher - q)
    actual = torch.autograd.grad((behaviour.exp() * loss).sum(), student)[0]
    same(actual, gradient(reverse_kl, student, teacher))


def ratio_gradient(ratio: float, advantage: float, weight: float | None = None) -> tuple[float, float]:
    """Value and gradient of the clipped loss, at a ratio of student to behaviour."""
    student = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    weights = None if weight is None else torch.tensor([weight], dtype=torch.float64)
    zero, advantages = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    loss = policy_gradient(student, zero, advantages, clip=0.2, importance_weights=weights)
    return loss.item(), torch.autograd.grad(loss.sum(), student)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),  # within the clip
        (1.5, 2.0, -2.4, 0.0),  # moved up enough
        (0.5, -2.0, 1.6, 0.0),  # moved down enough
        (0.5, 2.0, -1.0, -1.0),  # moved the wrong way: no clip
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_clip_stops_what_has_moved_far_enough(ratio: float, advantage: float, value: float, slope: float) -> None:
    assert ratio_gradient(ratio, advantage) == pytest.approx((value, slope))


def test_the_clip_is_inactive_in_the_first_epoch_whatever_the_weights() -> None:
    """MiniLLM's public code multiplies the weight into the ratio before the clip, and so clips at once."""
    student, teacher = models(18)
    student_logprobs = student.log_softmax(-1)
    advantages = teacher - student_logprobs
    weights = importance_weights(student_logprobs, teacher, 0.5)
    clipped, free = (
        policy_gradient(student_logprobs, student_logprobs, advantages, clip=clip, importance_weights=weights)
        for clip in (0.2, None)
    )
    assert torch.equal(clipped, free)
    gradients = [torch.autograd.grad(loss.sum(), student, retain_graph=True)[0] for loss in (clipped, free)]
    assert torch.equal(*gradients)
    assert ((weights < 0.8) | (weights > 1.2)).double().mean() > 0.5  # the public code's clip would have acted here
    assert ratio_gradient(1.0, 2.0, weight=0.1) == pytest.approx((-0.2, -0.2))


def test_the_weight_multiplies_outside_the_clip() -> None:
    assert ratio_gradient(1.5, 2.0, weight=0.5) == pytest.approx((-1.2, 0.0))
    assert ratio_gradient(1.1, 2.0, weight=0.5) == pytest.approx((-1.1, -1.1))


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_importance_weights_are_student_over_mixture(share: float) -> None:
    student, teacher = models(20)
    q, p = student.softmax(-1).detach(), teacher.exp()
    weights = importance_weights(student.log_softmax(-1), teacher, share)
    torch.testing.assert_close(weights, q / ((1 - share) * q + share * p), rtol=1e-12, atol=0)
    assert (weights <= 1 / (1 - share) if share < 1 else weights > 0).all()
    same((((1 - share) * q + share * p) * weights).sum(-1), torch.ones(POSITIONS, dtype=torch.float64))


def test_without_a_teacher_in_the_mixture_every_weight_is_exactly_one() -> None:
    student, teacher = models(22)
    student_logprobs = student.log_softmax(-1).masked_fill(teacher > -1, -torch.inf)
    assert torch.equal(importance_weights(student_logprobs, teacher, 0.0), torch.ones_like(teacher))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_seed_pg_kd_defect_weights_are_one_where_the_models_agree(share: float) -> None:
    """A ratio of log-probabilities with a large constant under it is 0 everywhere, and so was the gradient."""
    student = logits(24).log_softmax(-1)
    same(importance_weights(student, student, share), torch.ones_like(student))


def test_importance_weights_hold_at_the_extremes() -> None:
    student = torch.tensor([-1.0, -200.0, -1.0, -torch.inf, -1.0])
    teacher = torch.tensor([-200.0, -1.0, -torch.inf, -1.0, -1.0])
    expected = torch.tensor([1.25, 0.0, 1.25, 0.0, 1.0])
    torch.testing.assert_close(importance_weights(student, teacher, 0.2), expected)


def test_weighted_mixture_samples_have_reverse_kls_gradient() -> None:
    student, teacher = models(26)
    q, p = student.softmax(-1).detach(), teacher.exp()

    def weighted(s: Tensor, t: Tensor) -> Tensor:
        return policy_gradient(s, s, t - s, importance_weights=importance_weights(s, t, 0.2))

    actual = expected_gradient(weighted, student, teacher, 0.8 * q + 0.2 * p)
    same(actual, gradient(reverse_kl, student, teacher))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="teacher_share"):
        importance_weights(torch.zeros(3), torch.zeros(3), share)


@pytest.mark.parametrize("clip", [0.0, -0.2, 1.0, float("nan")])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    with pytest.raises(ConfigError, match="clip"):
        policy_gradient(torch.zeros(3), torch.zeros(3), torch.zeros(3), clip=clip)


def test_shapes_are_not_broadcast() -> None:
    """A column of sequence rewards beside a table of tokens would be spread without a word."""
    table, column = torch.zeros(3, 4), torch.zeros(3, 1)
    for estimator in (squared_log_ratio, k1, k3):
        with pytest.raises(ValueError, match="teacher_logprobs has shape"):
            estimator(table, column)
    with pytest.raises(ValueError, match="advantages has shape"):
        policy_gradient(table, table, column)
    with pytest.raises(ValueError, match="importance_weights has shape"):
        policy_gradient(table, table, table, importance_weights=column)
    with pytest.raises(ValueError, match="teacher_logprobs has shape"):
        importance_weights(table, column, 0.0)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_computed_in_at_least_float32(dtype: torch.dtype, kept: torch.dtype) -> None:
    student, teacher = torch.full((2,), -1.0, dtype=dtype), torch.full((2,), -2.0, dtype=dtype)
    for values in (
        squared_log_ratio(student, teacher),
        k1(student, teacher),
        k3(student, teacher),
        importance_weights(student, teacher, 0.2),
        importance_weights(student, teacher, 0.0),
        policy_gradient(student, teacher, teacher, clip=0.2, importance_weights=teacher),
    ):
        assert values.dtype == kept
