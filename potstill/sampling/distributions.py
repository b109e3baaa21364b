"""From logits to the distribution that a token is drawn from, and the draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from potstill.errors import ConfigError

BLOCK = 256  # tokens summed at a time in a draw


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. ``temperature`` 0 is greedy.

    ``top_k`` 0 and ``top_p`` 1 leave every token in; ``no_repeat_ngram`` n > 0 forbids to write n tokens in a row that
    stand in the sequence already, whose beginning is the prompt, unless that has an encoder to itself. Order: repeats,
    temperature, top_k, top_p.
    """

    max_new_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        problems = {
            "max_new_tokens": self.max_new_tokens < 1,
            "temperature": not self.temperature >= 0,
            "top_k": self.top_k < 0,
            "top_p": not 0 < self.top_p <= 1,
            "no_repeat_ngram": self.no_repeat_ngram < 0,
        }
        for name, bad in problems.items():
            if bad:
                raise ConfigError(f"{name} is {getattr(self, name)}", "see Decoding for what each setting may be")


def warped(logits: Float[Tensor, "row vocab"], decoding: Decoding) -> Float[Tensor, "row vocab"]:
    """Log-probabilities of what is drawn from: after temperature, top-k and top-p. In at least float32.

    Greedy gives all probability to the largest logit, the first of several.
    """
    precise = logits if logits.dtype == torch.float64 else logits.float()
    if decoding.temperature == 0:
        greedy = torch.full_like(precise, -torch.inf)
        return greedy.scatter(-1, precise.argmax(-1, keepdim=True), 0.0)
    scaled = precise if decoding.temperature == 1 else precise / decoding.temperature
    if 0 < decoding.top_k < scaled.shape[-1]:
        least = scaled.topk(decoding.top_k, -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if decoding.top_p < 1:
        scaled = _nucleus(scaled, decoding.top_p)
    return torch.log_softmax(scaled, -1)


def draw(log_probs: Float[Tensor, "row vocab"], uniforms: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The token at each row's quantile: what one uniform number in [0, 1) decides, whatever stands in other rows.

    First the block of tokens that holds the quantile, then the token: running sums in float64 over all of a large
    vocabulary would take longer than the softmax.
    """
    blocks = _in_blocks(log_probs.exp())
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    at = (uniforms.to(ends) * ends[:, -1])[:, None]
    block = _first_above(ends, at)
    start = F.pad(ends, (1, 0)).gather(-1, block)
    sums = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    # As a share of the block, which is below 1, so that rounding cannot point behind its last token.
    within = (at - start) / (ends.gather(-1, block) - start) * sums[:, -1:]
    return (block * BLOCK + _first_above(sums, within))[:, 0].clamp_max(log_probs.shape[-1] - 1)


def _in_blocks(probs: Float[Tensor, "row vocab"]) -> Float[Tensor, "row blocks block"]:
    missing = -probs.shape[-1] % BLOCK
    return (F.pad(probs, (0, missing)) if missing else probs).unflatten(-1, (-1, BLOCK))


def _first_above(sums: Float[Tensor, "row size"], at: Float[Tensor, "row 1"]) -> Int[Tensor, "row 1"]:
    """The first entry of a running sum that exceeds ``at``; the last one where none does (sums that are not finite)."""
    return torch.searchsorted(sums, at, right=True).clamp_max(sums.shape[-1] - 1)


def _nucleus(scaled: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens that holds ``top_p``; the likeliest is always in it."""
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    outside = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return scaled.masked_fill(outside, -torch.inf)
