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
    family: Family,
    batch: Batch,
    tokenizer: Any,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    top_p: float = 1.0,
) -> list[Int[Tensor, " tokens"]]:
    """One response to each prompt, end-of-sequence token left out.

    Args:
        family: the model.
        batch: whose prompts are continued.
        tokenizer: for the ids of end and padding.
        max_new_tokens: where a response is cut.
        temperature: 0 is greedy; above it, every token of the whole vocabulary can be drawn, unless top_p leaves some
            out.
        seed: of the draws; the process's own random state is left as it was.
        num_beams: of a beam search in the place of the greedy one; the best of it is the response.
        repetition_penalty: what a positive logit is divided by, and a negative one multiplied with, of a token that
            stood before; of a causal model in the prompt too. Keskar et al. 2019, CTRL, arXiv:1909.05858, section 4.1.
        top_p: share of the probability that is drawn from, the likeliest tokens first.
    """
    eos = tokenizer.eos_token_id
    settings = {"num_beams": num_beams, "repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens}
    rows = written(family, batch, eos, seed=seed, temperature=temperature, top_p=top_p, **settings)
    return [_before_eos(row, eos) for row in rows]


@torch.no_grad()
def written(
    family: Family, batch: Batch, eos: int, *, seed: int, temperature: float, top_p: float, **settings: Any
) -> Int[Tensor, "batch tokens"]:
    """What transformers' search or sampling writes to each prompt, the end and what pads it included; on the CPU.

    Args:
        eos: the end. seed, temperature, top_p: as in ``generate``. settings: others of a GenerationConfig.
    """
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p} if temperature else {}
    devices = [family.model.device.index or 0] if family.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _settings(family.model, eos, settings | sampling):
        torch.manual_seed(seed)
        sequences = family.model.generate(**family.generation_inputs(batch))
    return family.written(sequences, batch).cpu()


@contextmanager
def _settings(model: Any, eos: int, settings: dict[str, Any]) -> Iterator[None]:
    """These settings and no others: ``generate`` fills what is left open from the model's own folder, and models are
    to be compared under the same ones."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos, **settings)
    try:
        yield
    finally:
        model.generation_config = own


def _before_eos(ids: Int[Tensor, " tokens"], eos: int) -> Int[Tensor, " tokens"]:
    end = (ids == eos).nonzero()
    return ids[: int(end[0, 0])] if len(end) else ids
