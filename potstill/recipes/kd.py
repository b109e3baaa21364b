"""Word-level knowledge distillation: match the teacher's whole next-token distribution on the data's own text.

    loss = (1 - ce_weight) * D(teacher, student) + ce_weight * cross_entropy,    token mean over responses

D is the forward KL unless ``divergence`` says otherwise. There is no T**2 factor at temperatures other than 1.

Papers: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; Kim and Rush 2016, arXiv:1606.07947 (word level).

Defaults: ce_weight 0 is DistiLLM's re-run of KD (MiniLLM's own baseline uses 0.5). The learning rate, batch and steps
are chosen for a pruned 63 M-parameter student and a few minutes of CPU; docs/recipes/kd.md has the measurements.
"""

from __future__ import annotations

from typing import Literal

from potstill.recipe import (
    Budget,
    Checkpoint,
    Fraction,
    Optimizer,
    Positive,
    Recipe,
    Stage,
    Stream,
    Teacher,
    Term,
    named,
)


def kd(
    *,
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl",
    temperature: Positive = 1.0,
    ce_weight: Fraction = 0.0,
) -> Recipe:
    """Distil a teacher's distributions into a student.

    Args:
        divergence: which divergence between teacher and student is minimised.
        temperature: of both models inside the divergence.
        ce_weight: share of the loss, 0 to 1, that is cross-entropy to the data's own tokens.
    """
    compare = Term.model_validate(
        {"objective": named(divergence) | {"temperature": temperature}, "coefficient": 1 - ce_weight}
    )
    imitate = Term.model_validate({"objective": "cross_entropy", "coefficient": ce_weight})
    return Recipe(
        method="kd",
        baseline="equal_time_sft",
        stages=(
            Stage(
                teacher=Teacher(),
                streams=(Stream(signal="logits", terms=(compare, imitate) if ce_weight else (compare,)),),
                optimizer=Optimizer(learning_rate=1e-3),
                budget=Budget(steps=60),
                checkpoint=Checkpoint(every=20, best_by="forward_kl_nats"),
            ),
        ),
    )
