"""Divergences to a distribution between student and teacher: a target the student can reach.

In all docstrings p = softmax(teacher / T) and q = softmax(student / T).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.distances import alpha_beta_between
from potstill.objectives.distributions import kl_between, log_mixture, pair
from potstill.types import TeacherLogits


def interpolated_forward_kl(
    student_logits: Float[Tensor, "*pos vocab"], teacher_logits: TeacherLogits, *, t: float, temperature: float = 1.0
) -> Float[Tensor, "*pos"]:
    """KL(target || student) at each position, in nats, with TAID's target between the two models.

    target = softmax((1 - t) student + t teacher), the normalised geometric mean q**(1-t) p**t, taken as constant.
    Gradient at T = 1: q - target; 0 at t = 0 whatever the teacher says, forward KL's at t = 1. The effective step
    grows with t, so compare it with a forward KL whose learning rate is warmed up likewise.

    Args:
        student_logits: unnormalised; gradient flows through the student, not through the target.
        teacher_logits: unnormalised ``[*pos vocab]``; treated as constant.
        t: how far the target is towards the teacher, 0 <= t <= 1; ``schedules.TaidSchedule`` raises it.
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if t or T is out of range, or for a sparse teacher; ValueError if the vocabularies differ in
        size.
    Numerics: computed in at least float32, float64 kept; +inf only at t = 1, where q = 0 < p.
    Source: Shing et al. 2025, TAID, arXiv:2501.16937, section 3.
    """
    if not 0 <= t <= 1:
        raise ConfigError(f"t is {t}", "give a share from 0 (the student itself) to 1 (the teacher)")
    log_q, log_p = pair(student_logits, teacher_logits, temperature, "a geometric mean needs each token's probability")
    return kl_between(_power_mean(log_p, log_q.detach(), 0.0, t), log_q)


def assistant_divergence(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: TeacherLogits,
    *,
    alpha: float = -1.0,
    teacher_weight: float = 0.1,
    anchor: Literal["teacher", "student"] = "teacher",
    divergence_alpha: float = 0.2,
    divergence_beta: float = 0.7,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """D(anchor || assistant) at each position, with AMiD's family of mixtures of the two models as the assistant.

    assistant ~ (w p**c + (1 - w) q**c)**(1/c), c = (1 - alpha) / 2, normalised: the arithmetic mixture at alpha = -1,
    the geometric at 1, the harmonic at 3. D is ``alpha_beta``. Gradient flows through every q. With D = (1, 0) and
    alpha = -1 it is ``skew_forward_kl(skew=w)`` for the teacher as anchor and ``skew_reverse_kl(skew=1-w)`` for the
    student.

    Args:
        student_logits: unnormalised; gradient flows, through the assistant too.
        teacher_logits: unnormalised ``[*pos vocab]``; treated as constant.
        alpha: the kind of mean.
        teacher_weight: w, the teacher's share of the assistant, 0 <= w < 1 for the teacher as anchor and 0 < w <= 1
            for the student: at the other end anchor and assistant are one.
        anchor: the model the assistant is compared with.
        divergence_alpha, divergence_beta: which alpha-beta divergence compares; (1, 0) is KL(anchor || assistant).
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if a setting is out of range, or for a sparse teacher; ValueError if the vocabularies differ in
        size.
    Numerics: computed in at least float32, float64 kept; as ``alpha_beta``.
    Source: AMiD, arXiv:2510.15982; defaults are those of its instruction-following runs.
    """
    if anchor not in ("teacher", "student"):
        raise ConfigError(f"anchor is {anchor!r}", "choose teacher or student")
    if not 0 <= teacher_weight <= 1 or teacher_weight == (1 if anchor == "teacher" else 0):
        raise ConfigError(
            f"teacher_weight is {teacher_weight} with the {anchor} as anchor",
            "give a share between 0 and 1 at which the assistant is not the anchor itself",
        )
    log_q, log_p = pair(student_logits, teacher_logits, temperature, "the mixture needs each token's probability")
    log_r = _power_mean(log_p, log_q, (1 - alpha) / 2, teacher_weight)
    return alpha_beta_between(log_p if anchor == "teacher" else log_q, log_r, divergence_alpha, divergence_beta)


def _power_mean(log_p: Tensor, log_q: Tensor, power: float, weight_of_p: float) -> Tensor:
    """log of (w p**c + (1 - w) q**c)**(1/c), normalised; c = 0 is the geometric mean. -inf where neither has mass."""
    nowhere = torch.isneginf(log_p) & torch.isneginf(log_q)
    if weight_of_p in (0, 1):
        return log_p if weight_of_p == 1 else log_q
    a, b = log_p.masked_fill(nowhere, 0.0), log_q.masked_fill(nowhere, 0.0)
    if power == 0:
        mean = weight_of_p * a + (1 - weight_of_p) * b
    else:
        mean = log_mixture(power * a, power * b, weight_of_p) / power
    return torch.log_softmax(mean.masked_fill(nowhere, -torch.inf), -1)
