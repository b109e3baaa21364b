"""Sparse forms of a teacher, made from its logits: what a cache stores and a server answers.

How close the gradient comes to the exact one (cosine; ``potstill selftest`` measures it on your own models): the
teacher's top k with the rest as one outcome is the best of its size for forward KL; for reverse KL it has to be the
student's top k, scored by the teacher. Renormalising a top k over itself is never done here: it moves the optimum, and
at k = 1 it has no gradient at all. Draws are noisier than either, and the only unbiased form.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.distributions import log_probs, same_positions, with_rest
from potstill.types import Sampled, TopK

GROUP = 64  # tokens


@torch.no_grad()
def top_k(teacher_logits: Float[Tensor, "*pos vocab"], k: int, *, temperature: float = 1.0) -> TopK:
    """The teacher's k most likely tokens at each position, and the mass of the rest.

    Raises: ConfigError unless 1 <= k <= vocab and T > 0.
    """
    return score(teacher_logits, _most_likely(teacher_logits, k), temperature=temperature)


@torch.no_grad()
def student_top_k(
    student_logits: Float[Tensor, "*pos vocab"],
    teacher_logits: Float[Tensor, "*pos vocab"],
    k: int,
    *,
    temperature: float = 1.0,
) -> TopK:
    """What the teacher says about the student's k most likely tokens: the sparse form for reverse KL.

    Raises: ConfigError unless 1 <= k <= vocab and T > 0; ValueError if the vocabularies differ in size.
    """
    same_positions(student_logits, teacher_logits)
    return score(teacher_logits, _most_likely(student_logits, k), temperature=temperature)


@torch.no_grad()
def score(teacher_logits: Float[Tensor, "*pos vocab"], ids: Tensor, *, temperature: float = 1.0) -> TopK:
    """The teacher's log-probabilities of the tokens ``[*pos, topk]``, and the mass of all others."""
    outcomes = with_rest(log_probs(teacher_logits, temperature), ids)
    return TopK(ids, outcomes[..., :-1], outcomes[..., -1], temperature)


@torch.no_grad()
def draw(
    teacher_logits: Float[Tensor, "*pos vocab"],
    num_draws: int,
    *,
    temperature: float = 1.0,
    proposal_power: float = 1.0,
    generator: torch.Generator | None = None,
) -> Sampled:
    """Tokens drawn with replacement, as weights whose expectation is the teacher's distribution (RS-KD).

    Drawn from r ~ p**proposal_power and weighted by count * p / (draws * r). At power 1, the paper's best, weights are
    count / draws and add up to 1. At others they add up to 1 only on average, and are not normalised: that would bias
    them.

    Args:
        teacher_logits: unnormalised.
        num_draws: N >= 1; 50 draws are about 12 distinct tokens of a trained model.
        temperature: T > 0 of p.
        proposal_power: below 1 flattens what is drawn from.
        generator: of the draws; torch's default where None.
    Raises: ConfigError if num_draws, T or proposal_power is out of range.
    Source: Anshumann et al. 2025, Sparse Logit Sampling, arXiv:2503.16870.
    """
    if num_draws < 1 or not proposal_power > 0:
        raise ConfigError(
            f"num_draws is {num_draws} and proposal_power {proposal_power}",
            "give at least one draw and a power above 0",
        )
    log_p = log_probs(teacher_logits, temperature)
    log_r = log_p if proposal_power == 1 else torch.log_softmax(proposal_power * log_p, -1)
    flat = torch.multinomial(log_r.exp().reshape(-1, log_r.shape[-1]), num_draws, replacement=True, generator=generator)
    ids, counts = _distinct(flat.view(*log_r.shape[:-1], num_draws))
    weights = counts.to(log_p.dtype) / num_draws
    if proposal_power != 1:
        weights = weights * (log_p.gather(-1, ids) - log_r.gather(-1, ids)).exp()
    return Sampled(ids, weights, temperature)


def _most_likely(logits: Tensor, k: int) -> Tensor:
    if not 1 <= k <= logits.shape[-1]:
        raise ConfigError(f"k is {k} of {logits.shape[-1]} tokens", f"give a k from 1 to {logits.shape[-1]}")
    if logits.device.type != "cpu" or logits.shape[-1] < k * GROUP:
        return logits.topk(k, -1).indices
    return _most_likely_by_groups(logits, k)


def _most_likely_by_groups(logits: Tensor, k: int) -> Tensor:
    """The same, of ties perhaps others: the k largest are in the k groups with the largest members.

    A CPU looks for them in k groups five times faster than in a whole vocabulary.
    """
    vocab, device = logits.shape[-1], logits.device
    whole = vocab // GROUP * GROUP
    groups = logits[..., :whole].unflatten(-1, (-1, GROUP)).amax(-1).topk(k, -1).indices
    members = (groups[..., None] * GROUP + torch.arange(GROUP, device=device)).flatten(-2)
    beyond = torch.arange(whole, vocab, device=device).expand(*members.shape[:-1], -1)
    candidates = torch.cat([members, beyond], -1)
    return candidates.gather(-1, logits.gather(-1, candidates).topk(k, -1).indices)


def _distinct(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's distinct values and how often they stand there; rows are filled up with count 0."""
    ordered = draws.sort(-1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    place = new.cumsum(-1) - 1
    counts = torch.zeros_like(ordered).scatter_add_(-1, place, torch.ones_like(ordered))
    return torch.zeros_like(ordered).scatter_(-1, place, ordered), counts
