"""Adaptive KL (AKL): forward and reverse KL, weighted token by token by where the two models differ.

    loss = w_head * forward_kl + w_tail * reverse_kl,    w_head = gap in the head / gap in all

The head is the teacher's likeliest tokens up to half of its probability; the gaps are sums of |p - q|; the weights
are constants. Forward KL fits the head first and reverse KL the tail.

Paper: Wu et al. 2024, arXiv:2404.02657; head_mass 0.5 is theirs.
"""

from __future__ import annotations

from potstill.recipe import AdaptiveKL, Between, LogitsSignal, Recipe, Stream, Term
from potstill.recipes.common import distillation


def akl(*, head_mass: Between = 0.5) -> Recipe:
    """Distil with the adaptive KL.

    Args:
        head_mass: mu, the teacher's probability that makes the head.
    """
    term = Term(objective=AdaptiveKL(head_mass=head_mass))
    return distillation("akl", Stream(signal=LogitsSignal(), terms=(term,)))
