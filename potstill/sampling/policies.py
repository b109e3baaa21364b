"""Who writes: the student, the teacher, both mixed token by token, or the student with the teacher correcting it.

A policy makes one distribution of the models' distributions. ``uniforms`` are two numbers a row, so a row's choices do
not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.errors import ConfigError
from potstill.sampling.distributions import draw


class Policy(Protocol):
    """Chooses a token from what each model says. ``num_models`` is 1, or 2 for student and teacher in that order."""

    num_models: ClassVar[int]

    def choose(
        self, log_probs: tuple[Float[Tensor, "row vocab"], ...], uniforms: Float[Tensor, "row two"]
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        """The tokens, and the log-probability that this policy had of writing each."""


@dataclass(frozen=True)
class Single:
    """One model by itself."""

    num_models: ClassVar[int] = 1

    def choose(self, log_probs: tuple[Tensor, ...], uniforms: Tensor) -> tuple[Tensor, Tensor]:
        tokens = draw(log_probs[0], uniforms[:, 0])
        return tokens, _at(log_probs[0], tokens)


@dataclass(frozen=True)
class Mixed:
    """Both models at every token: (1 - a) student + a teacher of their probabilities (MiniLLM), or of their logits.

    A mixture of logits is student^(1 - a) teacher^a, normalised: it writes only what both can write.
    """

    teacher_share: float
    mix: Literal["probabilities", "logits"] = "probabilities"
    num_models: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 <= self.teacher_share <= 1:
            raise ConfigError(f"teacher_share is {self.teacher_share}", "give a share from 0 to 1; MiniLLM uses 0.2")

    def choose(self, log_probs: tuple[Tensor, ...], uniforms: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = log_probs
        share = student.new_tensor(self.teacher_share)
        if self.mix == "logits" and 0 < self.teacher_share < 1:
            mixture = torch.log_softmax((1 - share) * student + share * teacher, -1)
        else:
            mixture = torch.logaddexp(student + (-share).log1p(), teacher + share.log())
        tokens = draw(mixture, uniforms[:, 0])
        return tokens, _at(mixture, tokens)


@dataclass(frozen=True)
class Speculative:
    """The student proposes; a token outside the teacher's ``top_k`` is drawn again, from the teacher (SKD)."""

    top_k: int = 25
    num_models: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}", "give at least 1; speculative distillation uses 25")

    def choose(self, log_probs: tuple[Tensor, ...], uniforms: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = log_probs
        kept = torch.zeros_like(teacher, dtype=torch.bool)
        kept.scatter_(-1, teacher.topk(min(self.top_k, teacher.shape[-1]), -1).indices, True)
        proposed = draw(student, uniforms[:, 0])
        accepted = kept.gather(-1, proposed[:, None])[:, 0]
        tokens = torch.where(accepted, proposed, draw(teacher, uniforms[:, 1]))
        # Written by the student if it is in the list, or by the teacher after any proposal outside it.
        by_student = _at(student.masked_fill(~kept, -torch.inf), tokens)
        refused = student.masked_fill(kept, -torch.inf).logsumexp(-1)
        return tokens, torch.logaddexp(by_student, refused + _at(teacher, tokens))


def _at(log_probs: Tensor, tokens: Tensor) -> Tensor:
    return log_probs.gather(-1, tokens[:, None])[:, 0]
