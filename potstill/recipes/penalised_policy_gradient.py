"""Policy gradient with penalties: the student writes, is rewarded by the teacher, and held back from dull text.

    loss = policy_weight * (policy_gradient
                            + frequency * unlikelihood + diversity * embedding_similarity - entropy * entropy)
         + (1 - policy_weight) * cross_entropy on the data's responses

A token's advantage is its immediate reward log p - log q plus the mean of those after it. The text is really
sampled, from the student or from a mixture with the teacher: of probabilities, (1 - a) q + a p, or of logits.

    penalty      what it does                                       in the gradient
    frequency    unlikelihood of tokens that stood before           lowers their probability
    diversity    likeness of a response's expected tokens, -1 to 1  lowers it
    entropy      a bonus for the student's entropy                  raises it

This is what a public study on CNN/DailyMail set out to do. Its own terms cannot have worked: rewards of the wrong
token on the reference text, a weight near 1e-9, a count with no gradient and the sign turned, distances between
log-probabilities that a clamp makes constant, and an entropy that is not a number. The penalties here keep the
intent in forms that have a gradient. Defaults: policy_weight 0.5, temperature 0.9 and the penalties' 0.1, 0.1 and
0.01 are that study's.

Sources of the terms: Gu et al. 2024, arXiv:2306.08543 (rewards); Welleck et al. 2020, arXiv:1908.04319
(unlikelihood); Su et al. 2022, arXiv:2202.06417 (similarity of tokens); Williams and Peng 1991 (entropy).
"""

from __future__ import annotations

from typing import Literal

from potstill.recipe import (
    Advantages,
    Between,
    Count,
    CrossEntropy,
    EmbeddingSimilarity,
    Entropy,
    Fraction,
    NonNegative,
    PolicyGradient,
    Positive,
    Recipe,
    RolloutSource,
    Stream,
    StudentPolicy,
    Term,
    TokenLogprobsSignal,
    TokenMixedPolicy,
    Unlikelihood,
)
from potstill.recipes.common import distillation


def penalised_policy_gradient(
    *,
    policy_weight: Fraction = 0.5,
    teacher_share: Fraction = 0.0,
    mix: Literal["probabilities", "logits"] = "probabilities",
    temperature: Positive = 0.9,
    immediate: bool = True,
    length_normalise: bool = True,
    clip: Between | None = None,
    frequency: NonNegative = 0.1,
    diversity: NonNegative = 0.1,
    entropy: NonNegative = 0.01,
    max_new_tokens: Count = 80,
) -> Recipe:
    """Distil by rewards, with penalties on repetition and sameness.

    Args:
        policy_weight: share of the loss that is about the student's own text; the rest is cross-entropy to the data.
        teacher_share: a, the teacher's share of the distribution that tokens are drawn from.
        mix: what is mixed by it.
        temperature: of sampling, and of both models in the rewards.
        immediate: whether a token's own reward counts beside those after it.
        length_normalise: whether the rewards after it are a mean and not a sum.
        clip: of the probability ratio.
        frequency: weight of the unlikelihood of earlier tokens.
        diversity: weight of the likeness of tokens.
        entropy: weight of the entropy bonus.
        max_new_tokens: where a response is cut.
    """
    advantages = Advantages(add_current=immediate, length_normalise=length_normalise)
    reward = PolicyGradient(advantages=advantages, clip=clip, temperature=temperature)
    penalties = ((Unlikelihood(), frequency), (EmbeddingSimilarity(), diversity), (Entropy(), -entropy))
    terms = [Term(objective=reward, coefficient=policy_weight)]
    terms += [Term(objective=what, coefficient=policy_weight * weight) for what, weight in penalties if weight]
    policy = TokenMixedPolicy(teacher_share=teacher_share, mix=mix) if teacher_share else StudentPolicy()
    source = RolloutSource(policy=policy, temperature=temperature, max_new_tokens=max_new_tokens)
    imitate = Term(objective=CrossEntropy(), coefficient=1 - policy_weight)
    streams = [Stream(name="rollouts", source=source, signal=TokenLogprobsSignal(), terms=tuple(terms))]
    streams += [Stream(name="data", terms=(imitate,))] if policy_weight < 1 else []
    return distillation("penalised_policy_gradient", *streams, dropout=False)
