"""ABKD: the alpha-beta divergence, which has forward and reverse KL as limits, on the data's own text.

    loss = D_AB(teacher, student) at alpha = 0.2, beta = 0.7,    token mean

alpha sets how much it minds what the teacher likes and the student lacks, beta how much what the student likes. Of
all divergences here it is among the most mode-seeking at the defaults: look at diversity beside it.

Paper: Wang et al. 2025, arXiv:2505.04560; 0.2 and 0.7 are theirs for instruction following. Their limits at alpha or
beta 0 are a factor off in the public code; here they are the true ones. Their recipe adds a language-modelling loss
on OpenWebText and starts from DistiLLM's checkpoint: a table that compares divergences should not.
"""

from __future__ import annotations

from potstill.recipe import AlphaBeta, LogitsSignal, Recipe, Stream, Term
from potstill.recipes.common import distillation


def abkd(*, alpha: float = 0.2, beta: float = 0.7) -> Recipe:
    """Distil with the alpha-beta divergence.

    Args:
        alpha: power of the teacher's probabilities.
        beta: power of the student's.
    """
    term = Term(objective=AlphaBeta(alpha=alpha, beta=beta))
    return distillation("abkd", Stream(signal=LogitsSignal(), terms=(term,)))
