"""The waist: what every family, teacher, source and objective agrees on. All of it is aligned to the response.

Axis words, everywhere: ``batch prompt response vocab topk hidden``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Prompts and responses as token ids.

    Prompts are padded on the left and responses on the right, so position ``[:, 0]`` of the response follows the
    prompt in every row. The masks say which ids are real; they are made from lengths and never from the ids, so a
    pad id that equals the end-of-sequence id cannot hide a real token.
    """

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    response_ids: Int[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]
    example_ids: tuple[str, ...]

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    @property
    def num_response_tokens(self) -> int:
        return int(self.response_mask.sum())

    @property
    def num_tokens(self) -> int:
        return int(self.prompt_mask.sum()) + self.num_response_tokens

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            prompt_ids=self.prompt_ids.to(device),
            prompt_mask=self.prompt_mask.to(device),
            response_ids=self.response_ids.to(device),
            response_mask=self.response_mask.to(device),
        )


@dataclass(frozen=True)
class Head:
    """What turns the hidden state before a token into the logits of that token.

    ``parameters`` are the tensors whose gradient a loss on these logits must reach. ``vocab_size`` cuts padded
    embedding rows, so that a student and a teacher of one tokenizer always meet at the same size.
    """

    project: Callable[[Float[Tensor, "*pos hidden"]], Float[Tensor, "*pos rows"]]
    parameters: tuple[nn.Parameter, ...]
    vocab_size: int

    def __call__(self, hidden: Float[Tensor, "*pos hidden"]) -> Float[Tensor, "*pos vocab"]:
        return self.project(hidden)[..., : self.vocab_size]


@dataclass(frozen=True)
class StudentOutput:
    """Hidden states that predict each response token, and the head. Nobody has to hold ``[batch, response, vocab]``."""

    hidden: Float[Tensor, "batch response hidden"]
    head: Head


@dataclass(frozen=True)
class Live:
    """Full logits of a teacher, as the hidden states that enter its head, and that head. Constant: no gradient."""

    hidden: Float[Tensor, "batch response hidden"]
    head: Head


# What a teacher says about a batch. Sparse, sampled and inner-layer signals join this union with the teachers that
# give them; ``None`` is the signal of a stream without a teacher.
TeacherSignal: TypeAlias = Live
