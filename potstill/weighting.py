"""How much each response token counts, and what a term divides by.

A weighting gives non-negative weights ``[batch, response]``, 0 at padding and at every token it leaves out. A reduction
turns weights into scales, so that sum(scale * objective) over all micro-batches of all processes is the term's value:
the denominators are global and known before any gradient is taken.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from potstill.recipe import Term
from potstill.types import Batch


def weights(term: Term, batch: Batch) -> Float[Tensor, "batch response"]:
    """The weight of each token; uniform: 1 at every real one."""
    return batch.response_mask.double()


def denominator(term: Term, weight: Float[Tensor, "batch response"]) -> float:
    """This batch's share of what the term divides by: its weight (token mean) or its sequences (sequence mean)."""
    if term.reduction == "token_mean":
        return float(weight.sum())
    return float((weight.sum(1) > 0).sum())


def scales(
    term: Term, weight: Float[Tensor, "batch response"], global_denominator: float
) -> Float[Tensor, "batch response"]:
    """Weights divided so that scaled objectives sum to the mean over the global batch; all 0 where that is empty."""
    if global_denominator == 0:
        return weight
    if term.reduction == "token_mean":
        return weight / global_denominator
    per_sequence = weight.sum(1, keepdim=True)
    return weight / per_sequence.clamp_min(1e-300) / global_denominator
