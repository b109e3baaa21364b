"""Entropy-aware on-policy distillation: reverse KL everywhere, and forward KL where the teacher itself is uncertain.

    loss = reverse_kl + weight * forward_kl at tokens where the teacher's entropy is above ``threshold``,
           on the student's own text

Reverse KL alone settles on one of the ways that the teacher sees to go on; forward KL keeps the others alive where
there are several. Each term is a mean over the tokens that it counts.

Paper: arXiv:2603.07079 (EOPD); threshold 0.8 nats and weight 1 are theirs. They take the forward KL over the
teacher's 16 likeliest tokens, to save memory; here it is over the whole vocabulary, which costs nothing more.
"""

from __future__ import annotations

from potstill.recipe import (
    EntropyGateWeighting,
    ForwardKL,
    LogitsSignal,
    NonNegative,
    Recipe,
    ReverseKL,
    RolloutSource,
    Stream,
    Term,
)
from potstill.recipes.common import distillation


def entropy_aware(
    *, threshold: NonNegative = 0.8, weight: NonNegative = 1.0, rollout: RolloutSource = RolloutSource()
) -> Recipe:
    """Distil on the student's own text, with more care where the teacher is uncertain.

    Args:
        threshold: entropy of the teacher in nats, above which forward KL counts.
        weight: of the forward KL.
        rollout: how the student writes.
    """
    seek = Term(objective=ReverseKL())
    cover = Term(objective=ForwardKL(), weighting=EntropyGateWeighting(threshold=threshold), coefficient=weight)
    return distillation(
        "entropy_aware", Stream(name="rollouts", source=rollout, signal=LogitsSignal(), terms=(seek, cover))
    )
