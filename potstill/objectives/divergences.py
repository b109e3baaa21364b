"""Divergences between a teacher's and a student's next-token distributions.

Direction is always in the name: forward is KL(teacher || student), reverse is KL(student || teacher). Every function
returns the true divergence, 0 where the two agree, never a cross-entropy that differs from it by the teacher's entropy.

Where a token has no probability (logit -inf) on both sides it contributes nothing; forward KL is +inf where the
teacher gives mass to a token and the student none, reverse KL the other way round.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import ConfigError


def forward_kl(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: Float[Tensor, "*pos vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """KL(teacher || student) at each position, in nats. Mode-covering.

    sum_v p_v (log p_v - log q_v), with p = softmax(teacher / T) and q = softmax(student / T).
    Gradient with respect to the student's logits at T = 1: q - p.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised; treated as constant.
        temperature: T > 0. No T**2 factor: scale with the term's coefficient.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; +inf where q = 0 < p.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    log_q, log_p = _pair(student_logits, teacher_logits, temperature)
    return kl_between(log_p, log_q)


def reverse_kl(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: Float[Tensor, "*pos vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """KL(student || teacher) at each position, in nats. Mode-seeking.

    sum_v q_v (log q_v - log p_v), with q = softmax(student / T) and p = softmax(teacher / T).
    Gradient with respect to the student's logits at T = 1: q * (log(q / p) - KL).

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised; treated as constant.
        temperature: T > 0. No T**2 factor: scale with the term's coefficient.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; +inf where p = 0 < q.
    Source: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.
    """
    log_q, log_p = _pair(student_logits, teacher_logits, temperature)
    return kl_between(log_q, log_p)


def jensen_shannon(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: Float[Tensor, "*pos vocab"],
    *,
    teacher_weight: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """Generalised Jensen-Shannon divergence at each position, in nats.

    w KL(p || m) + (1 - w) KL(q || m), m = w p + (1 - w) q, with w = teacher_weight, p the teacher's and q the student's
    distribution. It is at most -w log w - (1 - w) log(1 - w), and it vanishes with w or 1 - w: divided by w it tends to
    forward KL as w goes to 0, divided by 1 - w to reverse KL as w goes to 1.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised; treated as constant.
        teacher_weight: 0 < w < 1, the teacher's share of the mixture (GKD's beta).
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if w or T is out of range; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; always finite.
    Source: Agarwal et al. 2024, GKD, arXiv:2306.13649, section 2.
    """
    if not 0 < teacher_weight < 1:
        raise ConfigError(
            f"teacher_weight is {teacher_weight}; at 0 and 1 the divergence is 0 everywhere",
            "give a weight between 0 and 1, or use forward_kl or reverse_kl",
        )
    log_q, log_p = _pair(student_logits, teacher_logits, temperature)
    # logaddexp(-inf, -inf) has no gradient, so tokens that neither model gives mass leave before it.
    nowhere = torch.isneginf(log_p) & torch.isneginf(log_q)
    log_m = torch.logaddexp(
        log_p.masked_fill(nowhere, 0.0) + math.log(teacher_weight),
        log_q.masked_fill(nowhere, 0.0) + math.log1p(-teacher_weight),
    )
    return teacher_weight * kl_between(log_p, log_m) + (1 - teacher_weight) * kl_between(log_q, log_m)


def log_probs(logits: Float[Tensor, "*pos vocab"], temperature: float = 1.0) -> Float[Tensor, "*pos vocab"]:
    """log softmax(logits / T), in at least float32.

    Raises: ConfigError if T <= 0.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}", "give a temperature above 0")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(precise if temperature == 1 else precise / temperature, dim=-1)


def _pair(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both models' log-probabilities, the teacher's as a constant."""
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            f"the student has {student_logits.shape[-1]} logits and the teacher {teacher_logits.shape[-1]}: "
            "the two must share a vocabulary"
        )
    return log_probs(student_logits, temperature), log_probs(teacher_logits.detach(), temperature)


def kl_between(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) over the last axis; tokens with a = 0 contribute nothing, in value and in gradient."""
    a = log_a.exp()
    return (a * torch.where(a > 0, log_a - log_b, 0.0)).sum(-1)
