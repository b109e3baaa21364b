"""Word-level knowledge distillation: match the teacher's whole next-token distribution on the data's own text.

    loss = (1 - ce_weight) * D(teacher, student) + ce_weight * cross_entropy,    token mean over responses

D is the forward KL unless ``divergence`` says otherwise: with ``skew_forward_kl`` it is DistiLLM's loss, with
``interpolated_forward_kl`` TAID, with ``adaptive_kl`` AKL, with ``alpha_beta`` ABKD, with ``assistant_divergence``
AMiD, each on the data's own text. There is no T**2 factor at temperatures other than 1.

Papers: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; Kim and Rush 2016, arXiv:1606.07947 (word level). Each
divergence names its own.

Defaults: ce_weight 0 is DistiLLM's re-run of KD (MiniLLM's own baseline uses 0.5). Learning rate, batch, steps and
the size of the evaluation are the demo's: a 63 M-parameter student, two minutes of two CPU cores. Small batches won
there (held-out forward KL after 110 steps of 2: 2.11 nats; after 55 steps of 4: 2.27; docs/recipes/kd.md). For a
task, set budget.epochs, a larger batch and evaluation.max_examples.
"""

from __future__ import annotations

from potstill.recipe import (
    Divergence,
    ForwardKL,
    Fraction,
    LogitsSignal,
    Recipe,
    Signal,
    Stream,
    Term,
    UniformWeighting,
    Weighting,
)
from potstill.recipes.common import distillation


def kd(
    *,
    divergence: Divergence = ForwardKL(),
    weighting: Weighting = UniformWeighting(),
    signal: Signal = LogitsSignal(),
    ce_weight: Fraction = 0.0,
) -> Recipe:
    """Distil a teacher's distributions into a student.

    Args:
        divergence: which divergence between teacher and student is minimised, and its settings.
        weighting: how much each token counts in the divergence.
        signal: what the teacher says: all its logits, its top k, or draws.
        ce_weight: share of the loss, 0 to 1, that is cross-entropy to the data's own tokens.
    """
    compare = Term(objective=divergence, weighting=weighting, coefficient=1 - ce_weight)
    imitate = Term.model_validate({"objective": "cross_entropy", "coefficient": ce_weight})
    stream = Stream(signal=signal, terms=(compare, imitate) if ce_weight else (compare,))
    return distillation("kd", stream, learning_rate=1e-3, batch_size=2, steps=120)
