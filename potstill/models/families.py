"""The only code that knows how a model is fed: one adapter per family. Everything after it is response-aligned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.types import Batch, Head, StudentOutput


class Family(nn.Module, ABC):
    """How a model is fed, and where its logits come from."""

    def __init__(self, model: Any, vocab_size: int | None = None):
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size or model.get_output_embeddings().weight.shape[0]
        self.train(model.training)

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, "batch response hidden"]:
        """The states that predict each response token; what stands at padding is arbitrary but finite."""

    @property
    def head(self) -> Head:
        """The output embedding with whatever the family does to its logits (soft cap, scale)."""
        embedding = self.model.get_output_embeddings()
        if not isinstance(embedding, nn.Linear):
            raise ModelError(
                f"the output embedding is a {type(embedding).__name__}, not a matrix",
                "load the model without quantisation or adapters on its output embedding",
            )
        return Head(embedding.weight, embedding.bias, _transform(self.model.config), self.vocab_size)

    def output(self, batch: Batch) -> StudentOutput:
        return StudentOutput(self(batch), self.head)

    @abstractmethod
    def generation_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What ``generate`` takes to answer the prompts."""


class Causal(Family):
    """A decoder-only model: prompt and response are one sequence, and a state predicts the token after it."""

    def forward(self, batch: Batch) -> Float[Tensor, "batch response hidden"]:
        """As every family's.

        Rows are moved to the left before the model sees them, so that all padding is on the right, where a causal
        model cannot look: no attention mask is needed, positions count from 0, and padding changes nothing.
        """
        ids, prompt_lengths = left_aligned(batch)
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        offsets = torch.arange(batch.response_ids.shape[1], device=ids.device)
        at = (prompt_lengths[:, None] - 1 + offsets).clamp_max(ids.shape[1] - 1)
        return states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))

    def generation_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input_ids": batch.prompt_ids, "attention_mask": batch.prompt_mask.long()}


def family_of(model: Any, vocab_size: int | None = None) -> Family:
    """The adapter of a model.

    Args:
        vocab_size: logits that are looked at, where the output embedding has rows beyond the tokenizer's.
    """
    return Causal(model, vocab_size)


def left_aligned(batch: Batch) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, " batch"]]:
    """Prompt and response of each row without padding between or before them, and the prompts' lengths."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask], 1)
    start = batch.prompt_ids.shape[1] - batch.prompt_mask.sum(1)
    longest = int(mask.sum(1).max())
    at = (start[:, None] + torch.arange(longest, device=ids.device)).clamp_max(ids.shape[1] - 1)
    return ids.gather(1, at), batch.prompt_mask.sum(1)


def _transform(config: Any) -> Callable[[Tensor], Tensor] | None:
    """What the family's own forward does to the logits after the matrix; None where nothing."""
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    if softcap is None and scale == 1:
        return None

    def transform(logits: Tensor) -> Tensor:
        scaled = logits * scale
        return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)

    return transform


def positions_of(config: Any) -> int | None:
    """How many tokens a model sees, by the config of its text; None where it sets no limit."""
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found and found > 0 else None


def check_positions(config: Any, num_tokens: int, of: str) -> None:
    """Refuse text that is longer than a model sees, be its positions embedded or merely never learned.

    Args:
        config: of the model's text.
        num_tokens: how long the text is. of: what it is, for the message.
    Raises: ModelError.
    """
    limit = positions_of(config)
    if limit is not None and limit < num_tokens:
        raise ModelError(
            f"the model has {limit} positions, and {of} has {num_tokens} tokens",
            "lower data.max_prompt_tokens or data.max_response_tokens, or max_new_tokens of what writes",
        )


@torch.no_grad()
def check_projection(family: Family, name: str) -> None:
    """Refuse a model whose logits we would compute differently from its own forward.

    Raises: ModelError, naming the largest difference.
    """
    device = next(family.model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % family.vocab_size
    own = family.model(input_ids=ids, use_cache=False).logits[0, 3:-1, : family.vocab_size].float()
    mask: Bool[Tensor, "one tokens"] = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids[:, :4], mask[:, :4], ids[:, 4:], mask[:, 4:], ("probe",))
    ours = family.head(family(batch))[0].float()
    difference = (ours - own).abs().max().item()
    if not difference <= 1e-2 * own.abs().max().item() + 1e-3:
        raise ModelError(
            f"{name}: its logits differ by {difference:.3g} from its output embedding applied to its last state",
            "this architecture needs an adapter in potstill/models/families.py",
        )


@contextmanager
def evaluating(family: Family) -> Iterator[None]:
    """Dropout off, and every module as before afterwards: some may be kept from training on purpose."""
    training = [module for module in family.modules() if module.training]
    family.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
