"""Responses from a model: greedy, or sampled with a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from potstill.models.families import Family
from potstill.types import Batch


@torch.no_grad()
def generate(
    family: Family, batch: Batch, tokenizer: Any, *, max_new_tokens: int, temperature: float, seed: int
) -> list[Int[Tensor, " tokens"]]:
    """One response to each prompt, end-of-sequence token left out.

    Args:
        family: the model.
        batch: whose prompts are continued.
        tokenizer: for the ids of end and padding.
        max_new_tokens: where a response is cut.
        temperature: 0 is greedy; above it, every token of the whole vocabulary can be drawn.
        seed: of the draws; the process's own random state is left as it was.
    """
    eos = tokenizer.eos_token_id
    devices = [family.model.device.index or 0] if family.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _settings(family.model, max_new_tokens, temperature, eos):
        torch.manual_seed(seed)
        sequences = family.model.generate(**family.generation_inputs(batch))
    return [_before_eos(row, eos) for row in sequences[:, batch.prompt_ids.shape[1] :].cpu()]


@contextmanager
def _settings(model: Any, max_new_tokens: int, temperature: float, eos: int) -> Iterator[None]:
    """These settings and no others: ``generate`` fills what is left open from the model's own folder, and models are
    to be compared under the same ones."""
    from transformers import GenerationConfig

    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=eos, **sampling
    )
    try:
        yield
    finally:
        model.generation_config = own


def _before_eos(ids: Int[Tensor, " tokens"], eos: int) -> Int[Tensor, " tokens"]:
    end = (ids == eos).nonzero()
    return ids[: int(end[0, 0])] if len(end) else ids
