"""DistiLLM-2: pull the student up on the teacher's responses, push it down on its own, with a skew KL for each.

    loss = (2 - b) * skew_forward_kl on the teacher's text + b * skew_reverse_kl on the student's own text

Means over responses of means over tokens. b rises from 1 to 1.5 over the first half of training. The skew of each
response is adapted: 0.1 where the models differ on it as they did at the first step, less where they have come
closer.

The teacher writes once, before training; the student writes anew for every ``batches_per_rollout`` batches (theirs:
each epoch). Both answer the same prompts at the same step.

Paper: Ko et al. 2025, arXiv:2503.07067. Two presets: ``paper`` has both curricula, ``code`` has neither, as the
public code's own defaults (update_alpha and gradual_beta false). The public code detaches the student inside the
reverse mixture, which is another gradient than the paper's formula has; here the gradient flows through both.
Sampling: theirs is temperature 0.8 and top_p 0.95, through vLLM.
"""

from __future__ import annotations

from typing import Literal

from potstill.recipe import (
    Between,
    Count,
    CurriculumSkew,
    LinearSchedule,
    LogitsSignal,
    NonNegative,
    Recipe,
    RolloutSource,
    SkewForwardKL,
    SkewReverseKL,
    Stream,
    TeacherPolicy,
    Term,
)
from potstill.recipes.common import distillation


def distillm2(
    *,
    preset: Literal["paper", "code"] = "paper",
    skew: Between = 0.1,
    temperature: NonNegative = 0.8,
    top_p: Between = 0.95,
    max_new_tokens: Count = 128,
    batches_per_rollout: Count = 8,
) -> Recipe:
    """Distil contrastively, on the teacher's responses and the student's own.

    Args:
        preset: with the two curricula (paper) or without (code).
        skew: alpha; with the curriculum the largest.
        temperature: of both models' sampling.
        top_p: of both models' sampling.
        max_new_tokens: where a response is cut.
        batches_per_rollout: batches that the student writes at once.
    """
    rollout = RolloutSource(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    teachers = rollout.model_copy(update={"policy": TeacherPolicy()})
    own = rollout.model_copy(update={"batches_per_rollout": batches_per_rollout})
    adapted = CurriculumSkew(start=skew, least=min(skew, CurriculumSkew().least)) if preset == "paper" else skew
    up = LinearSchedule(start=1.0, end=0.5, share=0.5) if preset == "paper" else 1.0
    down = LinearSchedule(start=1.0, end=1.5, share=0.5) if preset == "paper" else 1.0
    pull = Term(objective=SkewForwardKL(skew=adapted), coefficient=up, reduction="sequence_mean")
    push = Term(objective=SkewReverseKL(skew=adapted), coefficient=down, reduction="sequence_mean")
    return distillation(
        "distillm2",
        Stream(name="teacher_text", source=teachers, signal=LogitsSignal(), terms=(pull,)),
        Stream(name="rollouts", source=own, signal=LogitsSignal(), terms=(push,)),
    )
