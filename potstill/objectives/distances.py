"""Divergences outside the Kullback-Leibler family: bounded ones, weighted ones, and one on the logits themselves.

In all docstrings p = softmax(teacher / T) and q = softmax(student / T).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.distributions import kl_between, log_probs, pair, same_positions
from potstill.types import Sampled, TeacherLogits, TopK

LogitWeights = Literal["student", "teacher", "uniform"]


def total_variation(
    student_logits: Float[Tensor, "*pos vocab"], teacher_logits: TeacherLogits, *, temperature: float = 1.0
) -> Float[Tensor, "*pos"]:
    """Total variation distance at each position: sum_v |p_v - q_v| / 2, from 0 to 1 (a probability, not nats).

    1 minus it is the expected share of the student's draws that a speculative verifier keeps. Gradient at T = 1:
    q * (s - sum_v q_v s_v) / 2 with s = sign(q - p), 0 where p = q: it does not fade as the models come closer, and
    next to agreement rounding decides the sign.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK; treated as constant.
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0, or for Sampled; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; always finite.
    Source: Wen et al. 2023, f-distill, arXiv:2307.15190, section 3.
    """
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def squared_hellinger(
    student_logits: Float[Tensor, "*pos vocab"], teacher_logits: TeacherLogits, *, temperature: float = 1.0
) -> Float[Tensor, "*pos"]:
    """Squared Hellinger distance at each position: sum_v (sqrt p_v - sqrt q_v)**2 / 2 = 1 - sum_v sqrt(p_v q_v).

    From 0 to 1. Gradient at T = 1: (q * sum_v sqrt(p_v q_v) - sqrt(p q)) / 2.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or TopK; treated as constant.
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0, or for Sampled; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; always finite.
    Source: Hellinger 1909; as a token difficulty: Xie et al. 2025, AdaKD, arXiv:2510.11615.
    """
    log_q, log_p = pair(student_logits, teacher_logits, temperature)
    return ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(-1) / 2


def adaptive_kl(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: TeacherLogits,
    *,
    head_mass: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """A mean of forward and reverse KL, weighted by where the models differ: head or tail of the teacher. In nats.

    w forward_kl + (1 - w) reverse_kl. The head is the longest run of the teacher's most likely tokens whose mass stays
    within ``head_mass``, at least one token; w = sum_head |p - q| / sum_all |p - q|, 1/2 where the models agree. The
    weights are constant: no gradient flows through them.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``; treated as constant.
        head_mass: the teacher's probability that the head holds, 0 < head_mass < 1 (AKL's mu).
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if head_mass or T is out of range, or for a sparse teacher; ValueError if the vocabularies
        differ in size.
    Numerics: computed in at least float32, float64 kept; +inf where one of p, q is 0 and the other is not. Tokens of
        equal teacher probability at the edge of the head join it in the order of their ids.
    Source: Wu et al. 2024, AKL, arXiv:2404.02657, section 4.
    """
    if not 0 < head_mass < 1:
        raise ConfigError(f"head_mass is {head_mass}", "give a share between 0 and 1; AKL uses 0.5")
    log_q, log_p = pair(student_logits, teacher_logits, temperature, "its weights need each token's own gap")
    w = _head_share_of_gap(log_p.detach().exp(), log_q.detach().exp(), head_mass)
    return w * kl_between(log_p, log_q) + (1 - w) * kl_between(log_q, log_p)


def alpha_beta(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: TeacherLogits,
    *,
    alpha: float,
    beta: float,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """The alpha-beta divergence at each position.

    sum_v [a/(a+b) p_v**(a+b) + b/(a+b) q_v**(a+b) - p_v**a q_v**b] / (a b), and its limits where a, b or a + b is 0:
    1/a**2 sum [p**a log(p**a / q**a) - p**a + q**a] at b = 0, the same with the models exchanged at a = 0,
    1/a**2 sum [log(q**a / p**a) + p**a / q**a - 1] at a = -b, and sum (log p - log q)**2 / 2 at a = b = 0.

    (1, 0) is forward KL, (0, 1) reverse KL, (1/2, 1/2) four times the squared Hellinger distance, (1, 1) half the
    squared Euclidean distance. Gradient for a != 0, at T = 1: (q sum_v u_v - u) / a with u = q**b (p**a - q**a).

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``, or, where alpha + beta = 1, TopK; treated as constant.
        alpha: power of the teacher.
        beta: power of the student. ABKD uses (0.2, 0.7) for instruction following.
        temperature: T > 0 of both distributions.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError if T <= 0, or for a sparse teacher it cannot take; ValueError if the vocabularies differ.
    Numerics: computed in at least float32, float64 kept; written with expm1 so that it is continuous into the limits.
        Finite for alpha, beta > 0; elsewhere infinite where a model gives 0.
    Source: Cichocki et al. 2011, doi:10.3390/e13010134; Wang et al. 2025, ABKD, arXiv:2505.04560.
    """
    if not math.isfinite(alpha) or not math.isfinite(beta):
        raise ConfigError(f"alpha is {alpha} and beta {beta}", "give two finite powers; ABKD uses 0.2 and 0.7")
    why_not = "" if alpha + beta == 1 else "with alpha + beta other than 1, merging tokens is no lower bound"
    log_q, log_p = pair(student_logits, teacher_logits, temperature, why_not)
    return alpha_beta_between(log_p, log_q, alpha, beta)


def logit_matching(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: TeacherLogits,
    *,
    weights: LogitWeights = "student",
    other_weights: LogitWeights | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """Squared difference of all logit gaps at each position (concrete score distillation): no softmax in between.

    1/2 sum_{x,y} w1_y w2_x (d_x - d_y)**2 with d = (student - teacher) / T. A constant added to either model's logits
    changes nothing, and it is 0 only where the logits agree up to one. With equal weights it is the variance of d, and
    its gradient 2 w (d - mean of d) / T. The weights are constant: no gradient flows through them.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher_logits: unnormalised ``[*pos vocab]``; treated as constant.
        weights: w1, whose distribution weighs the tokens.
        other_weights: w2; the same as ``weights`` where unset.
        temperature: T > 0, of the logits and the weights.
    Returns: non-negative, unmasked, unreduced; squared logits, not nats.
    Raises: ConfigError for unknown weights, T <= 0 or a sparse teacher; ValueError if the vocabularies differ in size.
    Numerics: computed in at least float32, float64 kept; tokens of weight 0 and tokens that both models exclude are
        left out; infinite where a token of some weight is excluded by one model.
    Source: Kim et al. 2025, CSD, arXiv:2509.25837.
    """
    for name in (weights, other_weights or weights):
        if name not in get_args(LogitWeights):
            raise ConfigError(f"weights is {name!r}", f"choose one of {', '.join(get_args(LogitWeights))}")
    if isinstance(teacher_logits, TopK | Sampled):
        raise ConfigError("a sparse teacher has no logits of the other tokens to match", "give the teacher's logits")
    same_positions(student_logits, teacher_logits)
    log_q, log_p = log_probs(student_logits, temperature), log_probs(teacher_logits.detach(), temperature)
    # Log-probabilities are logits less a constant, which the centring below takes out again.
    no_p, no_q = torch.isneginf(log_p), torch.isneginf(log_q)
    gap = log_q.masked_fill(no_p | no_q, 0.0) - log_p.masked_fill(no_p | no_q, 0.0)
    first = _token_weights(weights, log_q.detach(), log_p, no_p & no_q)
    second = _token_weights(other_weights or weights, log_q.detach(), log_p, no_p & no_q)
    centred = gap - _mean(second, gap).detach()[..., None]
    # sum_y w1_y E_w2 (d - d_y)**2 / 2, with d measured from its w2 mean so that no large numbers cancel.
    spread = (_mean(first, centred.square()) + _mean(second, centred.square())) / 2
    infinite = ((no_p ^ no_q) & (first + second > 0)).any(-1)
    return (spread - _mean(first, centred) * _mean(second, centred)).masked_fill(infinite, torch.inf)


def alpha_beta_between(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """The alpha-beta divergence of p and q over the last axis, from log-probabilities.

    With u = log(q / p) and s = alpha + beta it is sum p**s [f(s) - f(beta)] / alpha, f(c) = (exp(c u) - 1) / c, where
    f(0) = u is every limit at once.
    """
    nowhere = torch.isneginf(log_p) & torch.isneginf(log_q)
    log_p, log_q = log_p.masked_fill(nowhere, 0.0), log_q.masked_fill(nowhere, 0.0)
    if alpha == beta == 0:
        return (log_p - log_q).square().sum(-1) / 2
    if abs(beta) > abs(alpha):  # D_ab(p, q) = D_ba(q, p): divide by the larger of the two
        log_p, log_q, alpha, beta = log_q, log_p, beta, alpha
    start, gap = _times(alpha + beta, log_p), log_q - log_p
    both = _quotient(start, _times(alpha + beta, log_q), alpha + beta, gap)
    mixed = _quotient(start, _times(alpha, log_p) + _times(beta, log_q), beta, gap)
    summands = ((both - mixed) / alpha).masked_fill(nowhere, 0.0)
    # Two infinities meet where one model gives 0 and powers are negative: the larger one, inf, is the value.
    return summands.masked_fill(summands.isnan() & torch.isinf(gap), torch.inf).sum(-1)


def _times(power: float, log_a: Tensor) -> Tensor:
    """power * log a, 0 for power 0 whatever a is."""
    return power * log_a if power else torch.zeros_like(log_a)


def _quotient(start: Tensor, end: Tensor, power: float, gap: Tensor) -> Tensor:
    """(exp(end) - exp(start)) / power where end - start = power * gap; its limit exp(start) * gap at power 0.

    Exact for a small difference, which is not taken between the exponents, and without overflow for a large one.
    """
    if power == 0:
        return torch.where(torch.isneginf(start), 0.0, start.exp() * gap)
    rise = power * gap
    up = -end.exp() * torch.expm1(-rise.clamp_min(0))
    down = start.exp() * torch.expm1(rise.clamp_max(0))
    return torch.where(rise >= 0, up, down) / power


def _head_share_of_gap(p: Tensor, q: Tensor, head_mass: float) -> Tensor:
    """The share of sum |p - q| that lies in the teacher's head; everything in the order of the sorted teacher."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    head = ordered.cumsum(-1) <= head_mass
    head[..., 0] = True
    gaps = (p - q).abs().gather(-1, order)
    total = gaps.sum(-1)
    return torch.where(total > 0, (gaps * head).sum(-1) / total, 0.5)


def _token_weights(name: LogitWeights, log_q: Tensor, log_p: Tensor, nowhere: Tensor) -> Tensor:
    if name == "uniform":
        return (~nowhere).to(log_q.dtype) / (~nowhere).sum(-1, keepdim=True)
    return (log_q if name == "student" else log_p).exp()


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return (weights * values).sum(-1)
