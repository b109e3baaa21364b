"""On-policy distillation: the student writes, and each token's advantage is how much likelier the teacher finds it.

    loss = -A q_now / q_then per token, A = log p - log q, on the student's own text

That is a policy gradient with discount 0: on average exactly the gradient of reverse KL at each position of the
student's own text, from one sampled token and not the whole vocabulary. It needs nothing of the teacher but the
log-probability of the student's tokens. Where all logits are at hand, ``gkd student_share=1 divergence=reverse_kl``
has the same gradient on average with much less noise. At discount 1 it is the gradient of sequence-level reverse KL,
whose noise is larger still.

Sources: Lu and Thinking Machines Lab 2025, "On-Policy Distillation"; Qwen Team 2025, Qwen3, arXiv:2505.09388,
section 4.5. Defaults: discount 0, no clip, one update for each batch, as in tinker-cookbook's recipe; its learning
rates are for LoRA.
"""

from __future__ import annotations

from potstill.recipe import (
    Advantages,
    Between,
    Fraction,
    PolicyGradient,
    Recipe,
    RolloutSource,
    Stream,
    Term,
    TokenLogprobsSignal,
)
from potstill.recipes.common import distillation


def on_policy(
    *, discount: Fraction = 0.0, clip: Between | None = None, rollout: RolloutSource = RolloutSource()
) -> Recipe:
    """Distil from the teacher's log-probabilities of the student's own tokens.

    Args:
        discount: how much a token's advantage counts of the rewards after it.
        clip: of the probability ratio, where a rollout is used for several updates.
        rollout: how the student writes, and how often each batch is used.
    """
    advantages = Advantages(discount=discount, include_current=True, length_normalise=False)
    term = Term(objective=PolicyGradient(advantages=advantages, clip=clip))
    return distillation(
        "on_policy",
        Stream(name="rollouts", source=rollout, signal=TokenLogprobsSignal(), terms=(term,)),
        dropout=False,
    )
