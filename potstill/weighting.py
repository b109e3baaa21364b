"""How much each response token counts, and what a term divides by.

A weighting gives non-negative constants ``[batch, response]``, 0 at padding and at every token it leaves out: those are
in neither the numerator nor the denominator. A reduction turns weights into scales, so that sum(scale * objective) over
all micro-batches of all processes is the term's value: the denominators are global and known before any gradient is
taken. Only the proportions of the weights matter; but importance weights are divided by the number of tokens.

Some weightings go by a score of each token, which takes a pass over both models first (``scores``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from potstill import objectives, recipe
from potstill.objectives.chunked import Chunk, select
from potstill.objectives.distributions import log_probs
from potstill.objectives.regularisers import entropy
from potstill.types import Batch, StudentOutput, TeacherSignal

# --- Weights ----------------------------------------------------------------------------------------------------------


def uniform(mask: Bool[Tensor, "batch response"]) -> Float[Tensor, "batch response"]:
    """1 at every real token."""
    return mask.double()


def proportional(
    scores: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """The score itself, which must not be negative; rounding below 0 counts as 0."""
    return torch.where(mask, scores.detach().double().clamp_min(0), 0.0)


def top_fraction(
    scores: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], fraction: float
) -> Float[Tensor, "batch response"]:
    """1 at the ceil(fraction * n) highest scores of a response of n tokens; of equal scores the earlier goes first."""
    order = scores.detach().double().masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(mask.shape[1], device=mask.device).expand_as(order))
    # Rounded first, so that 0.07 * 100 is 7 and not a little more.
    count = (mask.sum(1, keepdim=True).double() * fraction).mul(1e9).round().div(1e9).ceil()
    return ((rank < count) & mask).double()


def position(mask: Bool[Tensor, "batch response"], decay: float) -> Float[Tensor, "batch response"]:
    """decay**t at the t-th token of a response, from 0."""
    return torch.where(mask, decay ** torch.arange(mask.shape[1], device=mask.device).double(), 0.0)


def span(mask: Bool[Tensor, "batch response"], start: int, stop: int | None) -> Float[Tensor, "batch response"]:
    """1 at the tokens of a response from ``start``, from 0, up to and without ``stop``; to its end where None."""
    place = torch.arange(mask.shape[1], device=mask.device)
    inside = place >= start if stop is None else (place >= start) & (place < stop)
    return (inside & mask).double()


def gate(
    scores: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], threshold: float
) -> Float[Tensor, "batch response"]:
    """1 where the score is above the threshold."""
    return ((scores.detach() > threshold) & mask).double()


def importance(
    sampled: Float[Tensor, "batch response"] | None, mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """The student's probability of each token over that of whoever wrote it.

    Raises: ValueError where nobody said how the responses were written.
    """
    if sampled is None:
        raise ValueError("weighting importance is about sampled responses, and these were not sampled")
    return torch.where(mask, sampled.detach().cpu().double().clamp_min(1e-300), 0.0)


def weights(
    spec: recipe.AnyWeighting, batch: Batch, score: Float[Tensor, "batch response"] | None = None
) -> Float[Tensor, "batch response"]:
    """The weight of each token as a recipe asks for it.

    Args:
        spec: which weighting.
        batch: whose tokens are weighed.
        score: ``spec.score`` of each token, where it names one.
    Returns: constants in float64, on the CPU.
    """
    mask = batch.response_mask.cpu()
    match spec:
        case recipe.UniformWeighting():
            return uniform(mask)
        case recipe.ImportanceWeighting():
            return importance(batch.importance_weights, mask)
        case recipe.PositionWeighting():
            return position(mask, spec.decay)
        case recipe.SpanWeighting():
            return span(mask, spec.start, spec.stop)
    if score is None:
        raise ValueError(f"weighting {spec.name} goes by {spec.score}, which was not given")
    match spec:
        case recipe.TopFractionWeighting():
            return top_fraction(score, mask, spec.fraction)
        case recipe.EntropyGateWeighting():
            return gate(score, mask, spec.threshold)
    return proportional(score, mask)


# --- Scores -----------------------------------------------------------------------------------------------------------


def _student_loss(chunk: Chunk) -> Tensor:
    return objectives.cross_entropy(chunk.student_logits, chunk.target_ids)


def _teacher_loss(chunk: Chunk) -> Tensor:
    return -log_probs(_teacher(chunk)).gather(-1, chunk.target_ids[:, None])[:, 0]


def _teacher(chunk: Chunk) -> Tensor:
    if not isinstance(chunk.teacher, Tensor):
        raise ValueError("this score needs the teacher's logits")
    return chunk.teacher


SCORES: dict[recipe.Score, Callable[[Chunk], Tensor]] = {
    "student_entropy": lambda chunk: entropy(chunk.student_logits),
    "teacher_entropy": lambda chunk: entropy(_teacher(chunk)),
    "student_loss": _student_loss,
    "teacher_loss": _teacher_loss,
    "loss_gap": lambda chunk: _student_loss(chunk) - _teacher_loss(chunk),  # Rho-1's excess loss
    "forward_kl": lambda chunk: objectives.forward_kl(chunk.student_logits, _teacher(chunk)),
    "reverse_kl": lambda chunk: objectives.reverse_kl(chunk.student_logits, _teacher(chunk)),
    "total_variation": lambda chunk: objectives.total_variation(chunk.student_logits, _teacher(chunk)),
    "squared_hellinger": lambda chunk: objectives.squared_hellinger(chunk.student_logits, _teacher(chunk)),
}


def scores(
    name: recipe.Score, output: StudentOutput, signal: TeacherSignal | None, batch: Batch
) -> Float[Tensor, "batch response"]:
    """A score of each real token, 0 at padding; constant, and on the CPU, where there is float64 on every machine."""
    positions = select(output, signal, batch, batch.response_mask)
    found = torch.zeros(batch.response_mask.shape, dtype=torch.float64)
    for _, chunk in positions.chunks():
        rows, columns = chunk.places
        found[rows.cpu(), columns.cpu()] = SCORES[name](chunk).cpu().double()
    return found


# --- Reductions -------------------------------------------------------------------------------------------------------


def denominator(term: recipe.Term, weight: Float[Tensor, "batch response"]) -> float:
    """This batch's share of what the term divides by: its weight (token mean) or its sequences (sequence mean)."""
    if term.reduction == "token_mean":
        return float(_divisor(term, weight).sum())
    return float((weight.sum(1) > 0).sum())


def scales(
    term: recipe.Term, weight: Float[Tensor, "batch response"], global_denominator: float
) -> Float[Tensor, "batch response"]:
    """Weights divided so that scaled objectives sum to the mean over the global batch; all 0 where that is empty."""
    if global_denominator == 0:
        return weight
    if term.reduction == "token_mean":
        return weight / global_denominator
    per_sequence = _divisor(term, weight).sum(1, keepdim=True)
    return weight / per_sequence.clamp_min(1e-300) / global_denominator


def _divisor(term: recipe.Term, weight: Tensor) -> Tensor:
    """What a mean over tokens divides by: the weights; the number of tokens where the weights are 1 on average."""
    return (weight > 0).double() if term.weighting.name == "importance" else weight
