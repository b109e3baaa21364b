"""What is measured of a student: the panel, the noise of two gradients, and the bounds of the skewed losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from methods import METHODS, method_loss, next_token_logits, written
from models import EVALUATION, ROLLOUT
from settings import Settings
from torch import Tensor

from potstill.evaluation.exposure import Samples, accumulated_error, draw_samples, excess_error, exposure
from potstill.evaluation.metrics.diversity import distinct_n
from potstill.models.families import Causal
from potstill.objectives import cross_entropy, forward_kl, reverse_kl, skew_forward_kl, skew_reverse_kl
from potstill.sampling.distributions import Decoding
from potstill.teachers.local import LocalTeacher

ROWS = 128  # at a time
SCALES = (1.0, 5.0, 25.0)  # of the student's logits in the check of the skewed losses


def held_out_samples(writer: Causal, ids: Int[Tensor, "window token"], settings: Settings) -> Samples:
    """A response to each held-out prompt; the same random numbers for every model."""
    decoding = Decoding(settings.response_tokens, frozenset())
    return draw_samples(writer, ids[:, : settings.prompt_tokens].tolist(), decoding, seed=EVALUATION, slots=ROWS)


def panel(
    student: Causal, teacher: Causal, teachers: Samples, ids: Int[Tensor, "window token"], settings: Settings
) -> dict[str, float]:
    """Every figure of one model; means over response tokens, in nats unless the name says otherwise.

    Args:
        student: may be the teacher itself.
        teachers: the teacher's responses to the held-out prompts.
        ids: the held-out windows.
    """
    own = held_out_samples(student, ids, settings)
    asked = LocalTeacher(teacher)
    figures = on_data(student, teacher, ids, settings) | exposure(student, asked, own, teachers, batch_size=ROWS)
    figures["accumulated_error_nats"] = settings.response_tokens * figures["forward_kl_own_nats"]
    figures[f"excess_error_percent_{settings.response_tokens}"] = figures.pop("excess_error_percent")
    for length in settings.error_lengths[:-1]:
        figures[f"excess_error_percent_{length}"] = excess_error(
            accumulated_error(student, asked, own, length=length, batch_size=ROWS),
            accumulated_error(student, asked, teachers, length=length, batch_size=ROWS),
        )
    return figures | {"distinct_2": distinct_n(own.responses, 2)}


@torch.no_grad()
def on_data(student: Causal, teacher: Causal, ids: Int[Tensor, "window token"], settings: Settings) -> dict[str, float]:
    """Cross-entropy and both divergences at the held-out stories' own responses."""
    sums = torch.zeros(3, dtype=torch.float64)
    student.eval()
    for rows in ids.split(ROWS):
        own, other = (next_token_logits(family, rows, settings.prompt_tokens) for family in (student, teacher))
        targets = rows[:, settings.prompt_tokens :]
        scores = cross_entropy(own, targets), forward_kl(own, other), reverse_kl(own, other)
        sums += torch.stack([score.double().sum() for score in scores])
    means = (sums / (len(ids) * settings.response_tokens)).tolist()
    return dict(zip(("ce_data_nats", "forward_kl_data_nats", "reverse_kl_data_nats"), means, strict=True))


def gradient_noise(
    student: Causal, teacher: Causal, prompts: Int[Tensor, "row prompt"], settings: Settings
) -> dict[str, float]:
    """How much noisier the sampled token's gradient is than the full vocabulary's, on one batch of prompts.

    The student answers the same prompts again and again; of each draw both gradients are taken, at the same tokens.
    Their expectations are the same; ``cosine`` of the two means says how near they came.

    Returns: ``variance_ratio``, the total variance of the policy gradient over that of full-vocabulary reverse KL,
        its natural logarithm, both total variances, and ``cosine``.
    """
    gradients: dict[str, list[Tensor]] = {"on_RKL": [], "on_PG": []}
    for draw in range(settings.gradient_draws):
        ids = written(student, prompts, settings, seed=ROLLOUT + draw, slots=len(prompts))
        for name, found in gradients.items():
            loss = method_loss(student, teacher, METHODS[name], ids, settings.prompt_tokens).mean()
            found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(student.parameters()))]))
    full, sampled = (torch.stack(found).double() for found in gradients.values())
    variances = [float(stacked.var(0).sum()) for stacked in (full, sampled)]
    return {
        "variance_ratio": variances[1] / variances[0],
        "log_variance_ratio": math.log(variances[1] / variances[0]),
        "variance_full_vocabulary": variances[0],
        "variance_sampled_token": variances[1],
        "cosine": float(torch.cosine_similarity(full.mean(0), sampled.mean(0), 0)),
    }


def skew_bounds(student: Causal, teacher: Causal, ids: Int[Tensor, "row token"], settings: Settings) -> list[Any]:
    """The skewed losses and their gradients against their bounds, where student and teacher are far apart.

    The student's logits are multiplied by SCALES; a last case gives the two models different tokens altogether. The
    largest of every position is compared, in float64: the loss with -log(skew), the sum of the absolute values of the
    gradient with respect to the position's logits with the bounds below. The plain divergences are shown beside
    them, without a bound.

    With m the mixture and a the skew, q / m <= 1 / (1 - a) makes the forward gradient a difference of two
    non-negative vectors that add up to at most 1 each, so its sum is at most 2. In the reverse one, E|l - El| of
    l = log(q / m) is at most 2 El + 2 E[l-] <= -2 log a + 2 / e, and a q / m, from 0 to 1, adds at most 1 / 2.
    """
    with torch.no_grad():
        own = next_token_logits(student, ids, settings.prompt_tokens).flatten(0, 1).double()
        other = next_token_logits(teacher, ids, settings.prompt_tokens).flatten(0, 1).double()
    cases = {f"student's logits x {scale:g}": (own * scale, other) for scale in SCALES}
    apart = torch.eye(2, own.shape[-1], dtype=torch.float64) * 2000
    cases["no token in common"] = (apart[:1], apart[1:])
    log_skew = -math.log(settings.skew)
    bounds: dict[str, tuple[Callable[..., Tensor], float | None, float | None]] = {
        "skew forward KL": (partial(skew_forward_kl, skew=settings.skew), log_skew, 2.0),
        "skew reverse KL": (partial(skew_reverse_kl, skew=settings.skew), log_skew, 2 * log_skew + 2 / math.e + 0.5),
        "forward KL": (forward_kl, None, 2.0),
        "reverse KL": (reverse_kl, None, None),
    }
    return [
        {"case": case, "objective": name, **_largest(objective, *pair, bound, gradient_bound)}
        for case, pair in cases.items()
        for name, (objective, bound, gradient_bound) in bounds.items()
    ]


def _largest(
    objective: Callable[[Tensor, Tensor], Tensor],
    student_logits: Float[Tensor, "position vocab"],
    teacher_logits: Float[Tensor, "position vocab"],
    bound: float | None,
    gradient_bound: float | None,
) -> dict[str, float | None]:
    logits = student_logits.clone().requires_grad_()
    values = objective(logits, teacher_logits)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return {
        "largest_nats": float(values.detach().max()),
        "bound_nats": bound,
        "largest_gradient": float(gradient.abs().sum(-1).max()),
        "gradient_bound": gradient_bound,
    }
