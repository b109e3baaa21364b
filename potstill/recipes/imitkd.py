"""Imitation learning (ImitKD): the data's text at first, more and more the student's own, the teacher asked on both.

    loss = D(teacher, student) on a batch of the data with probability left**progress, else on the student's own text

This is DAgger with the teacher as the expert: the student is corrected where its own mistakes lead it. No gradient
flows through the sampling.

Paper: Lin et al. 2020, arXiv:2009.07253; the share of the data falls exponentially there, with a rate that is tuned.
Defaults: 1% of the data's share is left at the end (ours); forward KL over the whole vocabulary is their "full"
loss. DistiLLM's re-run keeps 1000 responses and replays them: for that see ``distillm``.
"""

from __future__ import annotations

from potstill.recipe import (
    Between,
    Divergence,
    ExponentialSchedule,
    ForwardKL,
    LogitsSignal,
    MixtureSource,
    Recipe,
    RolloutSource,
    Stream,
    Term,
)
from potstill.recipes.common import distillation


def imitkd(
    *, left: Between = 0.01, divergence: Divergence = ForwardKL(), rollout: RolloutSource = RolloutSource()
) -> Recipe:
    """Distil on text that is less and less the data's and more and more the student's.

    Args:
        left: the probability of a batch of the data at the end; it falls to it exponentially from 1.
        divergence: what is minimised on both.
        rollout: how the student writes.
    """
    # 1 - left**progress: towards 1 from 0, ``left`` of the way missing at the end.
    share = ExponentialSchedule(start=0.0, end=1.0, left=left)
    source = MixtureSource(rollout_share=share, rollout=rollout)
    return distillation("imitkd", Stream(source=source, signal=LogitsSignal(), terms=(Term(objective=divergence),)))
