"""Losses between models that cut text into different tokens.

Approximate likelihood matching asks how likely each model finds the same stretch of text, which means the same to both.
Universal logit distillation compares the shapes of two distributions and not what they are about.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.distributions import log_probs


def universal_logit_distillation(
    student_logits: Float[Tensor, "batch student_response student_vocab"],
    teacher_logits: Float[Tensor, "batch teacher_response teacher_vocab"],
    student_mask: Bool[Tensor, "batch student_response"],
    teacher_mask: Bool[Tensor, "batch teacher_response"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "batch pairs"], Bool[Tensor, "batch pairs"]]:
    """L1 distance between sorted next-token probabilities, at positions paired by their index (ULD).

    sum_r |p_(r) - q_(r)|, with p_(r) the teacher's and q_(r) the student's r-th largest probability, the smaller
    vocabulary filled up with zeros. Responses are paired from their first token on, up to the end of the shorter one.

    It is blind to meaning: reordering either vocabulary changes nothing, so a teacher as sure of one token as the
    student is of another is at distance 0. Nor need the k-th tokens of both be about the same text. At most 2, and
    where the vocabularies are the same at most twice the total variation distance.

    Args:
        student_logits: unnormalised, the k-th predicting the k-th response token; gradient flows.
        teacher_logits: the same of the teacher's tokens; treated as constant.
        student_mask, teacher_mask: the response tokens that count. Responses start at index 0, padding is behind them.
        temperature: T > 0 of both distributions.
    Returns: values, non-negative and unreduced, and the mask of the pairs, False beyond the shorter response. Where it
        is False the value is 0 and the logits, whatever they are, take no part.
    Raises: ConfigError if T <= 0; ValueError if the batches differ, or a mask and its logits do.
    Numerics: computed in at least float32, float64 kept. The gradient is that of the order the student has at present.
    Source: Boizard et al. 2024, arXiv:2402.12030.
    """
    _same_shape("student_mask", student_mask.shape, student_logits.shape[:-1])
    _same_shape("teacher_mask", teacher_mask.shape, teacher_logits.shape[:-1])
    _same_batch(student_logits, teacher_logits)
    pairs = min(student_mask.shape[1], teacher_mask.shape[1])
    paired = student_mask[:, :pairs].bool() & teacher_mask[:, :pairs].bool()
    ours = _sorted_probs(student_logits[:, :pairs][paired], temperature)
    theirs = _sorted_probs(teacher_logits.detach()[:, :pairs][paired], temperature)
    ranks = max(ours.shape[-1], theirs.shape[-1])
    distance = (_widen(ours, ranks) - _widen(theirs, ranks)).abs().sum(-1)
    return distance.new_zeros(paired.shape).masked_scatter(paired, distance), paired


def approximate_likelihood_matching(
    student_logprobs: Float[Tensor, "batch student_response"],
    teacher_logprobs: Float[Tensor, "batch teacher_response"],
    student_chunks: Int[Tensor, "batch student_response"],
    teacher_chunks: Int[Tensor, "batch teacher_response"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "batch chunks"], Bool[Tensor, "batch chunks"]]:
    """KL(teacher || student) of whether each chunk of the text comes next or not, in nats (ALM).

    P log(P / Q) + (1 - P) log((1 - P) / (1 - Q)), with P and Q the teacher's and student's likelihood of the chunk,
    each the product of its own tokens' probabilities, to the power 1 / T. The same text cut in any other way counts as
    not the chunk. At T = 1 it is a lower bound of the KL over all that could have come instead, since merging outcomes
    only loses information. 0 where P = Q, and only there.
    Gradient with respect to log Q: (Q - P) / (1 - Q).

    Args:
        student_logprobs: log-probability of each token of the actual response, as the student cuts it; gradient flows.
        teacher_logprobs: the same text as the teacher cuts it; treated as constant.
        student_chunks, teacher_chunks: the chunk each token belongs to, counted from 0 in every row, -1 for tokens and
            padding in none: potstill.data.byte_alignment.aligned_chunks.
        temperature: T > 0. Above 1 it draws likelihoods of long chunks away from 0. No factor T: scale with the term's
            coefficient.
    Returns: values, non-negative up to rounding and unreduced, and the mask of the chunks a row has. Where it is False
        the value is 0. Log-probabilities of tokens in no chunk, whatever they are, take no part.
    Raises: ConfigError if T <= 0; ValueError if shapes differ, or a row's chunks are not the same on both sides.
    Numerics: computed in at least float32, float64 kept, in log space. A likelihood within rounding of 1 counts as the
        largest number below it: values and gradients are finite unless the student gives a token no probability (+inf).
    Source: Minixhofer et al. 2025, arXiv:2503.20083.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}", "give a temperature above 0")
    _same_shape("student_chunks", student_chunks.shape, student_logprobs.shape)
    _same_shape("teacher_chunks", teacher_chunks.shape, teacher_logprobs.shape)
    _same_batch(student_logprobs, teacher_logprobs)
    highest = [int(chunks.max()) for chunks in (student_chunks, teacher_chunks) if chunks.numel()]
    count = max([-1, *highest]) + 1
    for whose, logprobs, chunks in (
        ("student", student_logprobs, student_chunks),
        ("teacher", teacher_logprobs, teacher_chunks),
    ):
        if bool(((logprobs > 1e-3) & (chunks >= 0)).any()):
            raise ValueError(f"the {whose}'s log-probabilities are above 0: negate a cross-entropy, and take no exp")
    ours, have = _chunk_sums(student_logprobs, student_chunks, count)
    theirs, they_have = _chunk_sums(teacher_logprobs.detach(), teacher_chunks, count)
    if not torch.equal(have, they_have):
        row, chunk = (have ^ they_have).nonzero()[0].tolist()
        whose = "student" if have[row, chunk] else "teacher"
        raise ValueError(
            f"row {row}: only the {whose} has tokens in chunk {chunk}, and a chunk is compared on both sides"
        )
    precise = torch.promote_types(ours.dtype, theirs.dtype)
    return _binary_kl(theirs.to(precise) / temperature, ours.to(precise) / temperature), have


def _sorted_probs(logits: Tensor, temperature: float) -> Tensor:
    return log_probs(logits, temperature).exp().sort(dim=-1, descending=True).values


def _widen(probs: Tensor, width: int) -> Tensor:
    return F.pad(probs, (0, width - probs.shape[-1]))


def _chunk_sums(logprobs: Tensor, chunks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each chunk's log-likelihood, and which chunks have a token at all; those that have none are as if certain."""
    inside = chunks >= 0
    precise = logprobs if logprobs.dtype == torch.float64 else logprobs.float()
    at = torch.where(inside, chunks, count).long()  # one column more, for tokens in no chunk
    empty = precise.new_zeros(chunks.shape[0], count + 1)
    sums = empty.scatter_add(1, at, precise)
    tokens = empty.scatter_add(1, at, inside.to(empty.dtype))
    return sums[:, :count], tokens[:, :count] > 0


def _binary_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of two yes-or-no outcomes from the logarithms of p and q; p is constant."""
    log_p, log_q = _below_one(log_p), _below_one(log_q)
    p = log_p.exp()
    yes = p * torch.where(p > 0, log_p - log_q, 0.0)
    return yes - torch.expm1(log_p) * (_log1mexp(log_p) - _log1mexp(log_q))


def _below_one(log_likelihood: Tensor) -> Tensor:
    """Just below 0 where a log-likelihood has reached it. Its gradient passes, so that the loss has there its slope."""
    highest = -torch.finfo(log_likelihood.dtype).eps
    moved = highest + (log_likelihood - log_likelihood.detach())
    return torch.where(log_likelihood > highest, moved, log_likelihood)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of negative x without cancellation at either end."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _same_shape(name: str, found: torch.Size, wanted: torch.Size) -> None:
    if found != wanted:
        raise ValueError(f"{name} has shape {list(found)}, and what it describes has {list(wanted)}")


def _same_batch(student: Tensor, teacher: Tensor) -> None:
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"the student has {student.shape[0]} rows and the teacher {teacher.shape[0]}")
