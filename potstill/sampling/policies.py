"""Who writes: the student, the teacher, both mixed token by token, or the student with the teacher correcting it.

A policy makes one distribution of the models' distributions. ``uniforms`` are two numbers a row, so a row's choices do
not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.errors import ConfigError
from potstill.sampling.distributions import draw


class Choice(NamedTuple):
    """Tokens, the log-probability that the policy had of writing each, and whether it corrected the student there."""

    tokens: Int[Tensor, " row"]
    log_probs: Float[Tensor, " row"]
    corrected: Bool[Tensor, " row"]


class Policy(Protocol):
    """Chooses a token from what each model says. ``num_models`` is 1, or 2 for student and teacher in that order."""

    num_models: ClassVar[int]

    def choose(self, log_probs: tuple[Float[Tensor, "row vocab"], ...], uniforms: Float[Tensor, "row two"]) -> Choice:
        """The next token of each row."""


@dataclass(frozen=True)
class Single:
    """One model by itself."""

    num_models: ClassVar[int] = 1

    def choose(self, log_probs: tuple[Tensor, ...], uniforms: Tensor) -> Choice:
        return _drawn(log_probs[0], uniforms)


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

    def choose(self, log_probs: tuple[Tensor, ...], uniforms: Tensor) -> Choice:
        student, teacher = log_probs
        share = student.new_tensor(self.teacher_share)
        if self.mix == "logits" and 0 < self.teacher_share < 1:
            mixture = torch.log_softmax((1 - share) * student + share * teacher, -1)
        else:
            mixture = torch.logaddexp(student + (-share).log1p(), teacher + share.log())
        return _drawn(mixture, uniforms)


@dataclass(frozen=True)
class Speculative:
    """The student proposes; a token outside the teacher's ``top_k`` is drawn again, from the teacher (SKD)."""

    top_k: int = 25
    num_models: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}", "give at least 1; speculative distillation uses 25")

    def choose(self, log_probs: tuple[Tensor, ...], uniforms: Tensor) -> Choice:
        student, teacher = log_probs
        kept = torch.zeros_like(teacher, dtype=torch.bool)
        kept.scatter_(-1, teacher.topk(min(self.top_k, teacher.shape[-1]), -1).indices, True)
        proposed = draw(student, uniforms[:, 0])
        accepted = kept.gather(-1, proposed[:, None])[:, 0]
        tokens = torch.where(accepted, proposed, draw(teacher, uniforms[:, 1]))
        # Written by the student if it is in the list, or by the teacher after any proposal outside it.
        by_student = _at(student.masked_fill(~kept, -torch.inf), tokens)
        refused = student.masked_fill(kept, -torch.inf).logsumexp(-1)
        return Choice(tokens, torch.logaddexp(by_student, refused + _at(teacher, tokens)), ~accepted)


def _drawn(log_probs: Tensor, uniforms: Tensor) -> Choice:
    tokens = draw(log_probs, uniforms[:, 0])
    return Choice(tokens, _at(log_probs, tokens), torch.zeros_like(tokens, dtype=torch.bool))


def _at(log_probs: Tensor, tokens: Tensor) -> Tensor:
    return log_probs.gather(-1, tokens[:, None])[:, 0]
