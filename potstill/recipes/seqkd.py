"""Sequence-level knowledge distillation: fine-tune on what the teacher writes to the training prompts.

    loss = (1 - kd_weight) * cross_entropy(teacher's text) + kd_weight * forward_kl on it,    token mean

The teacher answers once, before training; ``runs/<name>/teacher_text/`` keeps every response and, in card.json, who
wrote it, how, and how many each filter dropped. The data's own responses are never trained on. Hard targets on
samples are an unbiased estimate of the gradient of sequence-level forward KL, and soft ones (kd_weight) the same
with less noise.

Paper: Kim and Rush 2016, arXiv:1606.07947, section 3.2; they take the beam's best, here as in MiniLLM's baseline one
sample at temperature 1. MiniLLM's own script of that name trains with half of the loss as word-level KD on the same
text: kd_weight=0.5.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import (
    Count,
    CrossEntropy,
    Filters,
    ForwardKL,
    Fraction,
    LogitsSignal,
    NonNegative,
    NoSignal,
    Recipe,
    RolloutSource,
    Stream,
    TeacherPolicy,
    Term,
)
from potstill.recipes.common import distillation


def seqkd(
    *,
    samples_per_prompt: Count = 1,
    temperature: NonNegative = 1.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_new_tokens: Count = 128,
    filters: Filters = ("empty",),
    kd_weight: Fraction = 0.0,
) -> Recipe:
    """Fine-tune a student on its teacher's responses.

    Args:
        samples_per_prompt: responses of the teacher to each prompt.
        temperature: of its sampling; 0 is greedy.
        top_p: of its sampling; 1 leaves every token in.
        max_new_tokens: where a response is cut.
        filters: responses that are left out: empty, unfinished, repetitive.
        kd_weight: share of the loss, 0 to 1, that is forward KL to the teacher on the same text.
    """
    source = RolloutSource(
        policy=TeacherPolicy(),
        samples_per_prompt=samples_per_prompt,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        filters=filters,
    )
    hard = Term(objective=CrossEntropy(), coefficient=1 - kd_weight)
    soft = Term(objective=ForwardKL(), coefficient=kd_weight)
    terms = (hard,) if kd_weight == 0 else (soft,) if kd_weight == 1 else (hard, soft)
    signal = LogitsSignal() if kd_weight else NoSignal()
    return distillation("seqkd", Stream(name="teacher_text", source=source, signal=signal, terms=terms))
