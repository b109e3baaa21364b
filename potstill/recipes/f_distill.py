"""f-distill: a sequence-level f-divergence as a sum over steps, each part on the text that it is an average over.

    divergence         on the teacher's text                 on the student's own text
    kl                 forward KL                            -
    reverse_kl         -                                     reverse KL
    jensen_shannon     1/2 KL(teacher || middle)             1/2 KL(student || middle)
    total_variation    1/2 total variation                   1/2 total variation, an upper bound together

The teacher writes once, before training; the student writes at every step, and no gradient flows through that. The
middle of each step is (p + q) / 2, as in the authors' code; the exact one of the sequence would be m(y_1..t) divided
by m(y_1..t-1), and their errata say so: jensen_shannon here is an approximation, kl and reverse_kl are exact.

Paper: Wen et al. 2023, arXiv:2307.15190. Their total variation has 1/4 of sum |p - q| on each side: half of the
total variation, as here. They distil the student beforehand, since its text must mean something.
"""

from __future__ import annotations

from typing import Literal

from potstill.recipe import (
    AnyObjective,
    ForwardKL,
    LogitsSignal,
    Recipe,
    ReverseKL,
    RolloutSource,
    SkewForwardKL,
    SkewReverseKL,
    Stream,
    TeacherPolicy,
    Term,
    TotalVariation,
)
from potstill.recipes.common import distillation

# What is computed on the teacher's text and on the student's, and by what it is multiplied.
PARTS: dict[str, tuple[AnyObjective | None, AnyObjective | None, float]] = {
    "kl": (ForwardKL(), None, 1.0),
    "reverse_kl": (None, ReverseKL(), 1.0),
    "jensen_shannon": (SkewForwardKL(skew=0.5), SkewReverseKL(skew=0.5), 0.5),
    "total_variation": (TotalVariation(), TotalVariation(), 0.5),
}


def f_distill(
    *,
    divergence: Literal["kl", "reverse_kl", "jensen_shannon", "total_variation"] = "jensen_shannon",
    rollout: RolloutSource = RolloutSource(),
) -> Recipe:
    """Distil with a sequence-level f-divergence.

    Args:
        divergence: which.
        rollout: how the student writes, and the teacher too.
    """
    on_teachers, on_own, coefficient = PARTS[divergence]
    teachers = rollout.model_copy(
        update={"policy": TeacherPolicy(), "batches_per_rollout": 1, "num_updates_per_batch": 1}
    )
    streams = []
    if on_teachers:
        term = Term(objective=on_teachers, coefficient=coefficient)
        streams.append(Stream(name="teacher_text", source=teachers, signal=LogitsSignal(), terms=(term,)))
    if on_own:
        term = Term(objective=on_own, coefficient=coefficient)
        streams.append(Stream(name="rollouts", source=rollout, signal=LogitsSignal(), terms=(term,)))
    return distillation("f_distill", *streams)
