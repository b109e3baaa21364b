"""Objectives that compare the student with tokens."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.distributions import log_probs

NOTHING_IGNORED = -(2**62)  # torch's own default would make a label of -100 a loss of 0, without a word


def cross_entropy(
    student_logits: Float[Tensor, "*pos vocab"], target_ids: Int[Tensor, "*pos"], *, label_smoothing: float = 0.0
) -> Float[Tensor, "*pos"]:
    """Negative log-likelihood of the target tokens at each position, in nats.

    (1 - s) * -log q(target) + s * mean_v -log q(v), with q = softmax(student).

    Args:
        student_logits: unnormalised; gradient flows.
        target_ids: the token each position should predict.
        label_smoothing: s, the share of the target spread evenly over the vocabulary.
    Returns: non-negative, unmasked, unreduced.
    Raises: ConfigError unless 0 <= label_smoothing < 1; ValueError where positions differ; IndexError for an id that is
        no token, -100 included: leave such positions out before.
    Numerics: computed in at least float32, float64 kept.
    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7 (label smoothing).
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}", "give a share from 0 to below 1")
    if target_ids.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"the student's logits are of positions {list(student_logits.shape[:-1])} and the targets of "
            f"{list(target_ids.shape)}: give one token id for each position"
        )
    log_q = log_probs(student_logits)
    flat = log_q.reshape(-1, log_q.shape[-1])
    nll = F.nll_loss(flat, target_ids.reshape(-1).long(), reduction="none", ignore_index=NOTHING_IGNORED).reshape(
        target_ids.shape
    )
    if label_smoothing == 0:
        return nll
    return (1 - label_smoothing) * nll - label_smoothing * log_q.mean(-1)
