"""MiniLLM: sequence-level reverse KL by policy gradient, on text written by student and teacher together.

    loss = policy_gradient with advantages R_(t+1) / (T - t - 1)        the long part
         + single_step * reverse_kl over the whole vocabulary           the current step, exactly
         + plain_text_coefficient * cross_entropy on plain text         so that nothing is forgotten

R sums the rewards log p - log q. Each token is drawn from (1 - a) q + a p, a = teacher_share, and weighted by q over
that; a rollout is used for several updates with the ratio clipped. With teacher_share=0 and length_normalise=false
the first two terms together have the exact gradient of KL(student || teacher) of whole responses; the length
normalisation and the weight of one token alone (not of its prefix) trade some bias for less noise, and the paper has
both.

Paper and public code differ, and ``preset`` says which is meant; each difference is a switch of its own:

    switch                 paper    lmops
    include_current        false    true     the long part holds the current reward, which single_step counts again
    discount               1        0.95
    reward_scale           1        2        "reward scaling 0.5"
    reward_clip            none     100
    whiten                 false    true     over the real tokens of a rollout; the code counts padding too, we do not
    weigh_single_step      true     false    whether the single step has the importance weight
    clip_weights           false    true     whether the clip sees the weight times the ratio
    plain_text_kd          0        0.5      share of the plain-text loss that is forward KL to the teacher

The code divides R_t by its number of terms, the paper R_(t+1) by its own: both follow include_current.

Paper: Gu et al. 2024, arXiv:2306.08543, section 2 and algorithm 1; code: microsoft/LMOps, minillm. Defaults of both:
teacher_share 0.2, clip 0.2, 4 updates of each batch, temperature 1, dropout off. They collect 256 responses at a
time in batches of 64: 4 batches, as here. Theirs is learning rate 5e-6 for 5000 steps with batches of 64 to 256;
ours is for minutes.
"""

from __future__ import annotations

from typing import Any, Literal

from potstill.recipe import (
    Advantages,
    Between,
    Count,
    CrossEntropy,
    DatasetSource,
    ForwardKL,
    Fraction,
    ImportanceWeighting,
    LogitsSignal,
    NonNegative,
    NoSignal,
    PolicyGradient,
    Positive,
    Recipe,
    ReverseKL,
    RolloutSource,
    Stream,
    StudentPolicy,
    Term,
    TokenLogprobsSignal,
    TokenMixedPolicy,
    UniformWeighting,
)
from potstill.recipes.common import check_plain_text, distillation

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "include_current": False,
        "discount": 1.0,
        "reward_scale": 1.0,
        "reward_clip": None,
        "whiten": False,
        "weigh_single_step": True,
        "clip_weights": False,
        "plain_text_kd": 0.0,
    },
    "lmops": {
        "include_current": True,
        "discount": 0.95,
        "reward_scale": 2.0,
        "reward_clip": 100.0,
        "whiten": True,
        "weigh_single_step": False,
        "clip_weights": True,
        "plain_text_kd": 0.5,
    },
}


def minillm(
    *,
    preset: Literal["paper", "lmops"] = "paper",
    single_step: bool = True,
    length_normalise: bool = True,
    teacher_share: Fraction = 0.2,
    clip: Between | None = 0.2,
    num_updates_per_batch: Count = 4,
    batches_per_rollout: Count = 4,
    max_new_tokens: Count = 128,
    temperature: Positive = 1.0,
    include_current: bool | None = None,
    discount: Fraction | None = None,
    reward_scale: Positive | None = None,
    reward_clip: Positive | None = None,
    whiten: bool | None = None,
    weigh_single_step: bool | None = None,
    clip_weights: bool | None = None,
    plain_text: str | None = None,
    plain_text_coefficient: NonNegative = 1.0,
    plain_text_kd: Fraction | None = None,
) -> Recipe:
    """Minimise sequence-level reverse KL.

    Args:
        preset: whose settings the switches have that are left open.
        single_step: whether the current step's reverse KL is taken exactly, over the whole vocabulary.
        length_normalise: whether the sum of rewards is divided by their number.
        teacher_share: of the distribution that tokens are drawn from; 0: the student alone.
        clip: of the probability ratio; null: none.
        num_updates_per_batch: PPO epochs.
        batches_per_rollout: batches written at once.
        max_new_tokens: where a response is cut.
        temperature: of sampling and of the policy gradient's and the single step's student and teacher.
        include_current: whether a token's own reward is in its sum.
        discount: gamma.
        reward_scale: what the rewards are multiplied by.
        reward_clip: their largest size.
        whiten: whether advantages get mean 0 and variance 1.
        weigh_single_step: whether the single step is weighted by the student's share in each token.
        clip_weights: whether the clip sees the weight.
        plain_text: documents in a file (.txt, .jsonl), a folder of blocks, or "datasets:NAME"; none: no such term.
        plain_text_coefficient: of its loss.
        plain_text_kd: share of its loss that is forward KL.
    """
    check_plain_text(
        plain_text, plain_text_coefficient=plain_text_coefficient != 1, plain_text_kd=plain_text_kd is not None
    )
    given = {
        "include_current": include_current,
        "discount": discount,
        "reward_scale": reward_scale,
        "reward_clip": reward_clip,
        "whiten": whiten,
        "weigh_single_step": weigh_single_step,
        "clip_weights": clip_weights,
        "plain_text_kd": plain_text_kd,
    }
    switches = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    advantages = Advantages(length_normalise=length_normalise, **{name: switches[name] for name in OF_ADVANTAGES})
    long_part = PolicyGradient(
        advantages=advantages, clip=clip, clip_weights=switches["clip_weights"], temperature=temperature
    )
    weighting = ImportanceWeighting() if switches["weigh_single_step"] else UniformWeighting()
    exact = Term(objective=ReverseKL(temperature=temperature), weighting=weighting)
    rollout = RolloutSource(
        policy=TokenMixedPolicy(teacher_share=teacher_share) if teacher_share else StudentPolicy(),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batches_per_rollout=batches_per_rollout,
        num_updates_per_batch=num_updates_per_batch,
    )
    rollouts = Stream(
        name="rollouts",
        source=rollout,
        signal=LogitsSignal() if single_step else TokenLogprobsSignal(),
        terms=(Term(objective=long_part), *([exact] if single_step else [])),
    )
    extra = [_plain_text(plain_text, plain_text_coefficient, switches["plain_text_kd"])] if plain_text else []
    return distillation("minillm", rollouts, *extra, dropout=False)


OF_ADVANTAGES = ("include_current", "discount", "reward_scale", "reward_clip", "whiten")


def _plain_text(path: str, coefficient: float, kd_share: float) -> Stream:
    hard = Term(objective=CrossEntropy(), coefficient=coefficient * (1 - kd_share))
    soft = Term(objective=ForwardKL(), coefficient=coefficient * kd_share)
    return Stream(
        name="plain_text",
        source=DatasetSource(view="plain_text", path=path),
        signal=LogitsSignal() if kd_share else NoSignal(),
        terms=(hard,) if kd_share == 0 else (soft,) if kd_share == 1 else (hard, soft),
    )
