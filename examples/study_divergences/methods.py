"""The methods that are compared: each is where the prefixes come from, and a loss at every response position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from models import ROLLOUT, fit, next_token_logits
from settings import Settings
from torch import Tensor

from potstill.evaluation.exposure import draw_samples
from potstill.models.families import Causal
from potstill.objectives import (
    alpha_beta,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    policy_gradient,
    reverse_kl,
    skew_reverse_kl,
    total_variation,
)
from potstill.sampling.distributions import Decoding

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # student's logits, teacher's logits, ids; of the response alone


@dataclass(frozen=True)
class Method:
    """``prefixes``: who wrote the responses. ``reads_teacher``: whether the loss looks at the teacher's logits."""

    prefixes: Literal["data", "teacher", "student"]
    loss: Loss
    reads_teacher: bool = True


def hard(
    student_logits: Float[Tensor, "row scored vocab"],
    teacher_logits: Float[Tensor, "row scored vocab"],
    ids: Int[Tensor, "row scored"],
) -> Float[Tensor, "row scored"]:
    """Cross-entropy with the tokens that stand there."""
    return cross_entropy(student_logits, ids)


def soft(divergence: Callable[..., Tensor], **options: float) -> Loss:
    """A divergence from the teacher's whole distribution, whatever token stands there."""

    def loss(student_logits: Tensor, teacher_logits: Tensor, ids: Tensor) -> Tensor:
        return divergence(student_logits, teacher_logits, **options)

    return loss


def sampled_policy_gradient(
    student_logits: Float[Tensor, "row scored vocab"],
    teacher_logits: Float[Tensor, "row scored vocab"],
    ids: Int[Tensor, "row scored"],
) -> Float[Tensor, "row scored"]:
    """The policy gradient of the sampled token alone: discount 0, advantage log p - log q. Only its gradient counts."""
    student, teacher = at(student_logits, ids), at(teacher_logits, ids)
    return policy_gradient(student, student.detach(), teacher - student.detach())


def k3_as_loss(
    student_logits: Float[Tensor, "row scored vocab"],
    teacher_logits: Float[Tensor, "row scored vocab"],
    ids: Int[Tensor, "row scored"],
) -> Float[Tensor, "row scored"]:
    """k3 differentiated as if it were a loss: the defect that R6 shows, and so not part of potstill.

    p / q - 1 - log(p / q) at the student's own tokens averages to reverse KL, but its gradient (1 - p / q) grad log q
    leaves out that the samples depend on the student, and averages to the gradient of forward KL.
    """
    log_ratio = at(teacher_logits, ids) - at(student_logits, ids)
    return log_ratio.expm1() - log_ratio


def at(logits: Float[Tensor, "row scored vocab"], ids: Int[Tensor, "row scored"]) -> Float[Tensor, "row scored"]:
    """Log-probabilities of the tokens."""
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


METHODS = {
    "SFT": Method("data", hard, reads_teacher=False),
    "FKL": Method("data", soft(forward_kl)),
    "JSD": Method("data", soft(jensen_shannon, teacher_weight=0.5)),
    "SRKL": Method("data", soft(skew_reverse_kl, skew=0.1)),
    "RKL": Method("data", soft(reverse_kl)),
    "TVD": Method("data", soft(total_variation)),
    "AB": Method("data", soft(alpha_beta, alpha=0.2, beta=0.7)),
    "SeqKD": Method("teacher", hard, reads_teacher=False),
    "FKL_tea": Method("teacher", soft(forward_kl)),
    "on_FKL": Method("student", soft(forward_kl)),
    "on_RKL": Method("student", soft(reverse_kl)),
    "on_JSD": Method("student", soft(jensen_shannon, teacher_weight=0.5)),
    "on_PG": Method("student", sampled_policy_gradient),
    "on_k3": Method("student", k3_as_loss),
}


def distil(
    student: Causal, teacher: Causal, method: Method, rows: Int[Tensor, "row token"], settings: Settings, seed: int
) -> list[float]:
    """Train the student by a method; returns its losses.

    Args:
        student: trained in place.
        teacher: frozen.
        rows: prompt and response, of whoever wrote the method's responses; of the student's own only prompts are read.
        seed: of the student's own responses.
    """
    batches = rows.split(settings.batch)
    student.train()
    return fit(
        student,
        _losses(student, teacher, method, batches, settings, seed),
        steps=len(batches),
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.max_grad_norm,
    )


def written(
    writer: Causal, prompts: Int[Tensor, "row prompt"], settings: Settings, *, seed: int, slots: int
) -> Int[Tensor, "row token"]:
    """The prompts with a response each, drawn at temperature 1 from the whole vocabulary; no token ends one."""
    samples = draw_samples(
        writer, prompts.tolist(), Decoding(settings.response_tokens, frozenset()), seed=seed, slots=slots
    )
    return torch.cat([prompts, torch.tensor(samples.responses)], 1)


def method_loss(
    student: Causal, teacher: Causal, method: Method, ids: Int[Tensor, "row token"], prompt_tokens: int
) -> Float[Tensor, "row scored"]:
    """A method's loss at each response position of rows that are there already."""
    student_logits = next_token_logits(student, ids, prompt_tokens)
    teacher_logits = student_logits.detach()
    if method.reads_teacher:
        with torch.no_grad():
            teacher_logits = next_token_logits(teacher, ids, prompt_tokens)
    return method.loss(student_logits, teacher_logits, ids[:, prompt_tokens:])


def _losses(
    student: Causal, teacher: Causal, method: Method, batches: tuple[Tensor, ...], settings: Settings, seed: int
) -> Iterator[Tensor]:
    write: Callable[..., Any] = partial(written, student, settings=settings, slots=settings.batch)
    for step, ids in enumerate(batches):
        if method.prefixes == "student":
            ids = write(ids[:, : settings.prompt_tokens], seed=ROLLOUT + 100_000 * seed + step)
        yield method_loss(student, teacher, method, ids, settings.prompt_tokens)
