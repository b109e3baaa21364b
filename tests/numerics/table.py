"""Every divergence with its definition, written out plainly in probabilities. A newcomer joins by adding a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from potstill import objectives

Divergence = Callable[..., Tensor]
OfProbabilities = Callable[[Tensor, Tensor], Tensor]  # (teacher's p, student's q) -> value, or gradient to the logits


@dataclass(frozen=True)
class Case:
    """A divergence at one setting.

    ``gradient`` is its closed form, where there is one; ``bound`` what its value stays below. ``merges``: takes a
    top-k teacher. ``excludes``: stays finite where the student excludes a token that the teacher does not. ``moves``:
    its gradient holds something constant that depends on the student, and so is not the derivative of the value.
    ``negative_power``: of a probability.
    """

    function: Divergence
    definition: OfProbabilities
    gradient: OfProbabilities | None = None
    bound: float = math.inf
    merges: bool = True
    excludes: bool = True
    moves: bool = False
    negative_power: bool = False


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def expected(weights: Tensor, values: Tensor) -> Tensor:
    return (weights * values).sum(-1, keepdim=True)


def centred(q: Tensor, h: Tensor) -> Tensor:
    """q (h - E_q h): what softmax makes of the derivative h with respect to log q, over q."""
    return q * (h - expected(q, h))


def reverse_gradient(p: Tensor, q: Tensor) -> Tensor:
    return centred(q, (q / p).log())


def js(w: float) -> OfProbabilities:
    def value(p: Tensor, q: Tensor) -> Tensor:
        m = w * p + (1 - w) * q
        return w * kl(p, m) + (1 - w) * kl(q, m)

    return value


def js_gradient(w: float) -> OfProbabilities:
    return lambda p, q: (1 - w) * centred(q, (q / (w * p + (1 - w) * q)).log())


def scaled(function: OfProbabilities, by: float) -> OfProbabilities:
    return lambda p, q: function(p, q) / by


def skl_gradient(a: float) -> OfProbabilities:
    def gradient(p: Tensor, q: Tensor) -> Tensor:
        m = a * p + (1 - a) * q
        return (1 - a) * q * (expected(q, p / m) - p / m)

    return gradient


def srkl_gradient(a: float) -> OfProbabilities:
    def gradient(p: Tensor, q: Tensor) -> Tensor:
        m = (1 - a) * p + a * q
        return centred(q, (q / m).log() + 1 - a * q / m)

    return gradient


def adaptive_weight(p: Tensor, q: Tensor, mass: float) -> Tensor:
    """One position at a time, token by token."""
    weights = []
    for row_p, row_q in zip(p, q, strict=True):
        order = sorted(range(len(row_p)), key=lambda v: -row_p[v].item())
        head, reached = [], 0.0
        for v in order:
            reached += row_p[v].item()
            if head and reached > mass:
                break
            head.append(v)
        gaps = (row_p - row_q).abs()
        weights.append(gaps[head].sum() / gaps.sum())
    return torch.stack(weights)


def adaptive(mass: float) -> OfProbabilities:
    def value(p: Tensor, q: Tensor) -> Tensor:
        w = adaptive_weight(p, q, mass)
        return w * kl(p, q) + (1 - w) * kl(q, p)

    return value


def adaptive_gradient(mass: float) -> OfProbabilities:
    def gradient(p: Tensor, q: Tensor) -> Tensor:
        w = adaptive_weight(p, q, mass)[:, None]
        return w * (q - p) + (1 - w) * reverse_gradient(p, q)

    return gradient


def ab(a: float, b: float) -> OfProbabilities:
    def value(p: Tensor, q: Tensor) -> Tensor:
        if a == b == 0:
            return ((p / q).log() ** 2).sum(-1) / 2
        if b == 0:
            return (p**a * (p**a / q**a).log() - p**a + q**a).sum(-1) / a**2
        if a == 0:
            return (q**b * (q**b / p**b).log() - q**b + p**b).sum(-1) / b**2
        if a == -b:
            return ((q**a / p**a).log() + p**a / q**a - 1).sum(-1) / a**2
        return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b)

    return value


def ab_gradient(a: float, b: float) -> OfProbabilities:
    def gradient(p: Tensor, q: Tensor) -> Tensor:
        u = q**b * (p**a - q**a)
        return (q * u.sum(-1, keepdim=True) - u) / a

    return gradient


def taid_target(p: Tensor, q: Tensor, t: float) -> Tensor:
    mean = q ** (1 - t) * p**t
    return mean / mean.sum(-1, keepdim=True)


def assistant(p: Tensor, q: Tensor, alpha: float, w: float) -> Tensor:
    c = (1 - alpha) / 2
    mean = p**w * q ** (1 - w) if c == 0 else (w * p**c + (1 - w) * q**c) ** (1 / c)
    return mean / mean.sum(-1, keepdim=True)


def csd(first: OfProbabilities, second: OfProbabilities) -> OfProbabilities:
    """All pairs, in a table; the logits are the log-probabilities up to a constant that gaps do not see."""

    def value(p: Tensor, q: Tensor) -> Tensor:
        d = (q / p).log()
        pairs = (d[:, :, None] - d[:, None, :]) ** 2
        return (first(p, q)[:, :, None] * second(p, q)[:, None, :] * pairs).sum((1, 2)) / 2

    return value


def of_student(p: Tensor, q: Tensor) -> Tensor:
    return q


def of_teacher(p: Tensor, q: Tensor) -> Tensor:
    return p


def of_all(p: Tensor, q: Tensor) -> Tensor:
    return torch.full_like(p, 1 / p.shape[-1])


def csd_gradient(p: Tensor, q: Tensor) -> Tensor:
    return 2 * centred(q, (q / p).log())


def entropy_of(w: float) -> float:
    return -w * math.log(w) - (1 - w) * math.log1p(-w)


CASES: dict[str, Case] = {
    "forward_kl": Case(objectives.forward_kl, kl, lambda p, q: q - p, excludes=False),
    "reverse_kl": Case(objectives.reverse_kl, lambda p, q: kl(q, p), reverse_gradient),
    "jeffreys": Case(
        objectives.jeffreys,
        lambda p, q: ((p - q) * (p / q).log()).sum(-1),
        lambda p, q: q - p + reverse_gradient(p, q),
        excludes=False,
    ),
    "jensen_shannon": Case(objectives.jensen_shannon, js(0.5), js_gradient(0.5), math.log(2)),
    **{
        f"jensen_shannon_{w}": Case(
            partial(objectives.jensen_shannon, teacher_weight=w), js(w), js_gradient(w), entropy_of(w)
        )
        for w in (0.1, 0.9)
    },
    "jensen_shannon_rescaled": Case(
        partial(objectives.jensen_shannon, teacher_weight=0.3, rescale=True),
        scaled(js(0.3), 0.21),
        scaled(js_gradient(0.3), 0.21),
        entropy_of(0.3) / 0.21,
    ),
    "skew_forward_kl": Case(
        objectives.skew_forward_kl, lambda p, q: kl(p, 0.1 * p + 0.9 * q), skl_gradient(0.1), math.log(10)
    ),
    "skew_reverse_kl": Case(
        objectives.skew_reverse_kl, lambda p, q: kl(q, 0.9 * p + 0.1 * q), srkl_gradient(0.1), math.log(10)
    ),
    "total_variation": Case(
        objectives.total_variation,
        lambda p, q: (p - q).abs().sum(-1) / 2,
        lambda p, q: centred(q, (q - p).sign()) / 2,
        1.0,
    ),
    "squared_hellinger": Case(
        objectives.squared_hellinger,
        lambda p, q: 1 - (p * q).sqrt().sum(-1),
        lambda p, q: (q * (p * q).sqrt().sum(-1, keepdim=True) - (p * q).sqrt()) / 2,
        1.0,
    ),
    "adaptive_kl": Case(
        objectives.adaptive_kl, adaptive(0.5), adaptive_gradient(0.5), merges=False, excludes=False, moves=True
    ),
    "adaptive_kl_0.8": Case(
        partial(objectives.adaptive_kl, head_mass=0.8),
        adaptive(0.8),
        adaptive_gradient(0.8),
        merges=False,
        moves=True,
        excludes=False,
    ),
    **{
        f"alpha_beta_{a}_{b}": Case(
            partial(objectives.alpha_beta, alpha=a, beta=b),
            ab(a, b),
            ab_gradient(a, b) if a else None,
            merges=a + b == 1,
            excludes=b > 0,
            negative_power=b < 0,
        )
        for a, b in [(0.2, 0.7), (1, 1), (0.5, 0.5), (1, 0), (0, 1), (0.7, 0), (0, 0.5), (0.5, -0.5), (0, 0), (2, -0.5)]
    },
    **{
        f"interpolated_forward_kl_{t}": Case(
            partial(objectives.interpolated_forward_kl, t=t),
            lambda p, q, t=t: kl(taid_target(p, q, t), q),  # type: ignore[misc]
            lambda p, q, t=t: q - taid_target(p, q, t),  # type: ignore[misc]
            merges=False,
            excludes=t < 1,
            moves=True,
        )
        for t in (0.4, 1.0)
    },
    **{
        f"assistant_divergence_{anchor}_{alpha}": Case(
            partial(objectives.assistant_divergence, anchor=anchor, alpha=alpha),  # type: ignore[arg-type]
            lambda p, q, anchor=anchor, alpha=alpha: ab(0.2, 0.7)(  # type: ignore[misc]
                p if anchor == "teacher" else q, assistant(p, q, alpha, 0.1)
            ),
            merges=False,
        )
        for anchor in ("teacher", "student")
        for alpha in (-1.0, 1.0, 3.0)
    },
    "logit_matching": Case(
        objectives.logit_matching, csd(of_student, of_student), csd_gradient, merges=False, moves=True
    ),
    "logit_matching_mixed": Case(
        partial(objectives.logit_matching, weights="teacher", other_weights="uniform"),
        csd(of_teacher, of_all),
        merges=False,
        excludes=False,
    ),
}


def logits(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(function: Divergence, student: Tensor, teacher: object) -> Tensor:
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(function(leaf, teacher).sum(), leaf)[0]
