"""The Kullback-Leibler family: forward, reverse, their sum, and both against a mixture of the two models.

Direction is always in the name: forward is KL(teacher || student), reverse is KL(student || teacher). Every function
returns the true divergence, 0 where the two agree, never a cross-entropy that differs from it by the teacher's entropy.

Where a token has no probability (logit -inf) on both sides it contributes nothing; forward KL is +inf where the
teacher gives mass to a token and the student none, reverse KL the other way round.

In all docstrings p = softmax(teacher / T) and q = softmax(student / T). A teacher may also be ``TopK``, and in
``forward_kl`` ``Sampled``: see ``potstill.objectives.sparse``.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.distributions import (
    check_sparse,
    jensen_shannon_between,
    kl_between,
    log_mixture,
    log_probs,
    pair,
)
from potstill.types import Sampled, TeacherLogits

SMALL_WEIGHT = 0.05  # of a model in a Jensen-Shannon mixture: below it the divergence has under a tenth of KL's scale


def forward_kl(
    student_logits: Float[Tensor, "*pos vocab"], teacher_logits: TeacherLogits, *, temperature: float = 1.0
) -> Float[Tensor, "*pos"]:
    """KL(teacher || student) at each position, in nats. Mode-covering.

    sum_v p_v (log p_v - log q_v). Gradient with respect to the student's logits at T = 1: q - p.

    From sampled tokens it is KL(drawn weights || student), whose gradient is that of the full forward KL on average;
    its value is larger, because a draw is more certain than what it was drawn from.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK, or Sampled; treated as constant.
        temperature: T > 0. No T**2 factor: scale with the term's coefficient.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; +inf where q = 0 < p.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2. Sampled: Anshumann et al. 2025, arXiv:2503.16870.
    """
    if isinstance(teacher_logits, Sampled):
        return _kl_from_draws(student_logits, teacher_logits, temperature)
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    return kl_between(log_p, log_q)


def reverse_kl(
    student_logits: Float[Tensor, "*pos vocab"], teacher_logits: TeacherLogits, *, temperature: float = 1.0
) -> Float[Tensor, "*pos"]:
    """KL(student || teacher) at each position, in nats. Mode-seeking.

    sum_v q_v (log q_v - log p_v). Gradient with respect to the student's logits at T = 1: q * (log(q / p) - KL).

    From a top-k teacher, let the student choose the tokens (``sparse.student_top_k``): reverse KL weighs a token by the
    student's probability, and what the student likes outside the teacher's own list would be one outcome.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK; treated as constant.
        temperature: T > 0. No T**2 factor: scale with the term's coefficient.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0, or for Sampled; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; +inf where p = 0 < q.
    Source: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.
    """
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    return kl_between(log_q, log_p)


def jeffreys(
    student_logits: Float[Tensor, "*pos vocab"], teacher_logits: TeacherLogits, *, temperature: float = 1.0
) -> Float[Tensor, "*pos"]:
    """Jeffreys divergence at each position, in nats: forward KL + reverse KL, not their mean.

    sum_v (q_v - p_v) (log q_v - log p_v). Its gradient is the sum of the two.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK; treated as constant.
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0, or for Sampled; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; +inf where one of p, q is 0 and the other is not.
    Source: Jeffreys 1946, doi:10.1098/rspa.1946.0056.
    """
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    return kl_between(log_p, log_q) + kl_between(log_q, log_p)


def jensen_shannon(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: TeacherLogits,
    *,
    teacher_weight: float = 0.5,
    rescale: bool = False,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """Generalised Jensen-Shannon divergence at each position, in nats.

    w KL(p || m) + (1 - w) KL(q || m), m = w p + (1 - w) q, with w = teacher_weight. It is at most
    -w log w - (1 - w) log(1 - w), and it vanishes with w or 1 - w: at w = 0.01 its gradient is a hundredth of forward
    KL's, or less. ``rescale`` divides by w (1 - w), which makes the scale continuous: forward KL at w = 0, reverse KL
    at w = 1, four times the textbook value at 0.5.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK; treated as constant.
        teacher_weight: w, the teacher's share of the mixture (GKD's beta): 0 < w < 1, with ``rescale`` 0 <= w <= 1.
        rescale: divide by w (1 - w).
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if w or T is out of range, or for Sampled; ValueError if the vocabularies differ in size.
    Warns: UserWarning where w or 1 - w is under 0.05 without ``rescale``.
    Numerics: computed in at least float32, float64 kept; finite for 0 < w < 1.
    Source: Agarwal et al. 2024, GKD, arXiv:2306.13649, section 2.
    """
    _check_teacher_weight(teacher_weight, rescale)
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    if teacher_weight in (0, 1):
        return kl_between(log_p, log_q) if teacher_weight == 0 else kl_between(log_q, log_p)
    w = teacher_weight
    value = jensen_shannon_between(log_p, log_q, w)
    return value / (w * (1 - w)) if rescale else value


def skew_forward_kl(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: TeacherLogits,
    *,
    skew: float | Float[Tensor, "*pos"] = 0.1,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """KL(teacher || skew * teacher + (1 - skew) * student) at each position, in nats.

    At most -log(skew), and at most (1 - skew) times forward KL, which it is at skew = 0. Gradient at T = 1:
    (1 - skew) q * (sum_v q_v p_v / m_v - p / m), m the mixture: tokens the student cannot reach weigh less.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK; treated as constant.
        skew: the teacher's share of the mixture, 0 <= skew < 1 (DistiLLM's alpha); one, or one for each position.
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if skew or T is out of range, or for Sampled; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; finite for skew > 0.
    Source: Ko et al. 2024, DistiLLM, arXiv:2402.03898, section 3.1.
    """
    _check_skew(skew)
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    return kl_between(log_p, _skewed(log_p, log_q, skew))


def skew_reverse_kl(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: TeacherLogits,
    *,
    skew: float | Float[Tensor, "*pos"] = 0.1,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """KL(student || (1 - skew) * teacher + skew * student) at each position, in nats.

    At most -log(skew), and reverse KL at skew = 0. Gradient at T = 1: q * (h - sum_v q_v h_v),
    h = log(q / m) + 1 - skew q / m, m the mixture. The gradient flows through both q's.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK; treated as constant.
        skew: the student's share of the mixture, 0 <= skew < 1 (DistiLLM's alpha); one, or one for each position.
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if skew or T is out of range, or for Sampled; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; finite for skew > 0.
    Source: Ko et al. 2024, DistiLLM, arXiv:2402.03898, section 3.1.
    """
    _check_skew(skew)
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    return kl_between(log_q, _skewed(log_q, log_p, skew))


def _kl_from_draws(student_logits: Tensor, teacher: Sampled, temperature: float) -> Tensor:
    """sum w (log w - log q): its gradient, (sum w) q - w, is linear in the weights and so right on average."""
    check_sparse(student_logits, teacher, temperature)
    log_q = log_probs(student_logits, temperature).gather(-1, teacher.ids)
    weights = teacher.weights.detach().to(log_q.dtype)
    return torch.where(weights > 0, torch.xlogy(weights, weights) - weights * log_q, 0.0).sum(-1)


def _check_teacher_weight(teacher_weight: float, rescale: bool) -> None:
    if rescale:
        if not 0 <= teacher_weight <= 1:
            raise ConfigError(f"teacher_weight is {teacher_weight}", "give a weight from 0 to 1")
        return
    if not 0 < teacher_weight < 1:
        raise ConfigError(
            f"teacher_weight is {teacher_weight}; at 0 and 1 the divergence is 0 everywhere",
            "give a weight between 0 and 1, or set rescale, or use forward_kl or reverse_kl",
        )
    if min(teacher_weight, 1 - teacher_weight) < SMALL_WEIGHT:
        scale = teacher_weight * (1 - teacher_weight)
        warnings.warn(
            f"jensen_shannon with teacher_weight {teacher_weight} has about {scale:.2g} of KL's gradient; "
            "set rescale=True to divide that out",
            stacklevel=3,
        )


def _skewed(log_a: Tensor, log_b: Tensor, skew: float | Tensor) -> Tensor:
    return log_b if isinstance(skew, int | float) and skew == 0 else log_mixture(log_a, log_b, skew)


def _check_skew(skew: float | Tensor) -> None:
    inside = torch.as_tensor(skew).ge(0) & torch.as_tensor(skew).lt(1)  # false for what is not a number
    if not inside.all():
        raise ConfigError(
            f"skew is {skew}; at 1 the divergence is 0 everywhere", "give a skew from 0 to below 1; DistiLLM uses 0.1"
        )
