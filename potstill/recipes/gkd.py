"""Generalised knowledge distillation (GKD): any divergence on text of the data and of the student, mixed by lambda.

    loss = D(teacher, student), the mean over responses of the mean over their tokens,
           on the student's own text with probability student_share at each step, else on the data's

No gradient flows through the sampling. The number of tokens is counted after the text is written, so an unused
reference answer has no influence.

Paper: Agarwal et al. 2024, arXiv:2306.13649, algorithm 1 and equation for L_GKD. Defaults: student_share 0.5 and the
generalised Jensen-Shannon divergence at 0.5, both TRL's; temperature 1 is the paper's (TRL uses 0.9 for sampling and
loss). The mean over responses is the paper's (TRL takes that over tokens). At teacher_weight near 0 or 1 the
textbook divergence vanishes: divergence.rescale=true keeps its scale.
"""

from __future__ import annotations

from potstill.recipe import (
    Divergence,
    Fraction,
    JensenShannon,
    LogitsSignal,
    MixtureSource,
    Recipe,
    RolloutSource,
    Stream,
    Term,
)
from potstill.recipes.common import distillation


def gkd(
    *,
    student_share: Fraction = 0.5,
    divergence: Divergence = JensenShannon(),
    rollout: RolloutSource = RolloutSource(),
) -> Recipe:
    """Distil on the data's text and the student's own.

    Args:
        student_share: lambda, the probability that a batch is written by the student.
        divergence: what is minimised on both, and its settings.
        rollout: how the student writes; with rollout.policy=teacher the teacher does.
    """
    source = MixtureSource(rollout_share=student_share, rollout=rollout)
    term = Term(objective=divergence, reduction="sequence_mean")
    return distillation("gkd", Stream(source=source, signal=LogitsSignal(), terms=(term,)))
