"""Speculative distillation (SKD): the student writes, and the teacher replaces what it would not have written.

    loss = D(teacher, student) on text whose tokens are the student's where they are among the teacher's top_k,
           and drawn from the teacher where they are not

top_k = the whole vocabulary is on-policy distillation; top_k = 1 leaves the student only the teacher's first choice.

Paper: Xu et al. 2025, arXiv:2410.11325; top_k 25 is theirs. Whether it beats plain on-policy text is not settled: a
later re-run on arithmetic found it between that and the data's text.
"""

from __future__ import annotations

from potstill.recipe import (
    Count,
    Divergence,
    ForwardKL,
    LogitsSignal,
    NonNegative,
    Recipe,
    RolloutSource,
    SpeculativePolicy,
    Stream,
    Term,
)
from potstill.recipes.common import distillation


def skd(
    *,
    top_k: Count = 25,
    divergence: Divergence = ForwardKL(),
    temperature: NonNegative = 1.0,
    max_new_tokens: Count = 128,
) -> Recipe:
    """Distil on the student's text as the teacher has corrected it.

    Args:
        top_k: the teacher's tokens that a proposal must be among.
        divergence: what is minimised.
        temperature: of both models' sampling.
        max_new_tokens: where a response is cut.
    """
    source = RolloutSource(
        policy=SpeculativePolicy(top_k=top_k), temperature=temperature, max_new_tokens=max_new_tokens
    )
    term = Term(objective=divergence)
    return distillation("skd", Stream(name="rollouts", source=source, signal=LogitsSignal(), terms=(term,)))
