"""What a student is trained towards beside its teacher: spread, no repetition, variety. Correct and differentiable.

Public forms of these three are often neither: an entropy taken of log-probabilities is not a number, counts of arg-max
tokens have no gradient, and distances between log-probability vectors have no bound.

In all docstrings q = softmax(student).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.objectives.distributions import log_probs, with_rest


def entropy(student_logits: Float[Tensor, "*pos vocab"]) -> Float[Tensor, "*pos"]:
    """The student's Shannon entropy at each position, in nats: -sum_v q_v log q_v.

    A bonus for spreading out is this with a negative coefficient; with a positive one it sharpens. Gradient:
    -q (log q + entropy).

    Args:
        student_logits: unnormalised; gradient flows.
    Returns: from 0 to log(vocab), unmasked, unreduced.
    Numerics: computed in at least float32, float64 kept; tokens with q = 0 contribute nothing, nor do their gradients.
    Source: Shannon 1948; as a bonus Williams and Peng 1991, doi:10.1080/09540099108946587.
    """
    log_q = log_probs(student_logits)
    return -(log_q.exp() * log_q.masked_fill(torch.isneginf(log_q), 0.0)).sum(-1)


def unlikelihood(
    student_logits: Float[Tensor, "*pos vocab"],
    seen_ids: Int[Tensor, "*pos seen"],
    seen_mask: Bool[Tensor, "*pos seen"],
    target_ids: Int[Tensor, "*pos"],
) -> Float[Tensor, "*pos"]:
    """A penalty on repeating: -sum over the distinct tokens seen before of log(1 - q), the true next token left out.

    Minimised, it lowers the probability of tokens that stand earlier in the response and are not due now.

    Args:
        student_logits: unnormalised; gradient flows.
        seen_ids: tokens seen before each position; one that stands twice counts once. ``seen_before`` makes them.
        seen_mask: which of them are real; of the others not even the ids matter.
        target_ids: the token that is right at each position; never penalised.
    Returns: non-negative, unmasked, unreduced; 0 where nothing was seen.
    Raises: ValueError if the positions differ.
    Numerics: computed in at least float32, float64 kept; near q = 1, log(1 - q) comes from the other tokens' logits, so
        it keeps its digits and its gradient is finite; +inf where every other token is excluded (logit -inf).
    Source: Welleck et al. 2020, arXiv:1908.04319, section 4.
    """
    # scatter takes an index that is too short and leaves the other positions as they were.
    if not student_logits.shape[:-1] == seen_ids.shape[:-1] == target_ids.shape or seen_ids.shape != seen_mask.shape:
        shapes = [list(x.shape) for x in (student_logits, seen_ids, seen_mask, target_ids)]
        raise ValueError(f"logits, seen ids, their mask and targets of {shapes} are not of the same positions")
    log_q = log_probs(student_logits)
    target = target_ids[..., None]
    listed = torch.where(seen_mask, seen_ids, target)  # what is not real stands for the target, which is left out
    penalised = torch.zeros_like(log_q, dtype=torch.bool).scatter(-1, listed, True).scatter(-1, target, False)
    return -torch.where(penalised, _log_complement(log_q), 0.0).sum(-1)


def seen_before(
    response_ids: Int[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> tuple[Int[Tensor, "batch response response"], Bool[Tensor, "batch response response"]]:
    """For each position its response's tokens, and which of them are real and earlier: what ``unlikelihood`` takes."""
    width = response_ids.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril(-1)
    return response_ids[:, None].expand(-1, width, -1), mask[:, None] & earlier


def embedding_similarity(
    student_logits: Float[Tensor, "*batch response vocab"],
    embeddings: Float[Tensor, "vocab hidden"],
    mask: Bool[Tensor, "*batch response"],
) -> Float[Tensor, "*batch"]:
    """How alike the expected tokens of one response are: the mean cosine similarity of its positions, two and two.

    Each position's expected embedding is sum_v q_v E_v. Minimised, it makes a response more varied.

    Args:
        student_logits: unnormalised, of whole responses; gradient flows.
        embeddings: E, one row a token; treated as constant.
        mask: the real positions.
    Returns: from -1 to 1, one for each response; 0 with gradient 0 where it has fewer than two real positions.
    Raises: ValueError if the mask's positions, or the number of embeddings, are not the logits'.
    Numerics: computed in at least float32, float64 kept; from the length of the sum of unit vectors, so no
        response x response matrix is made.
    Source: self-similarity as in Su et al. 2022, SimCTG, arXiv:2202.06417, section 3, on expected embeddings.
    """
    if student_logits.shape != (*mask.shape, embeddings.shape[0]):
        raise ValueError(
            f"logits of {list(student_logits.shape)} for a mask of {list(mask.shape)} and {len(embeddings)} embeddings"
        )
    q = log_probs(student_logits.masked_fill(~mask[..., None], 0.0)).exp()  # whatever stands in padding
    units = F.normalize(q @ embeddings.detach().to(q.dtype), dim=-1) * mask[..., None]
    count = mask.sum(-1).to(q.dtype)
    # |sum of n unit vectors|**2 is n and twice the sum of all pairs; what is not quite a unit is measured, not assumed.
    pairs = units.sum(-2).square().sum(-1) - units.square().sum((-2, -1))
    return torch.where(count > 1, pairs / (count * (count - 1)).clamp_min(1), 0.0)


def _log_complement(log_q: Tensor) -> Tensor:
    """log(1 - q) of each token: that of the most likely one, the only one that can be near 1, from all the others."""
    likeliest = log_q.argmax(-1, keepdim=True)
    rest = with_rest(log_q, likeliest)[..., -1:]
    return torch.log1p(-log_q.scatter(-1, likeliest, -1.0).exp()).scatter(-1, likeliest, rest)
