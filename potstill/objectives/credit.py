"""Which of a sampled response's tokens get credit for what follows: the advantages of sequence-level reverse KL.

KL(student || teacher) of whole responses has the gradient -E sum_t R_t grad log q_t over the student's own samples,
R_t the sum of r = log p - log q from token t to the end. Taking token t's own r out of R_t and putting the full
reverse KL at t in its place leaves the gradient as it is and the noise smaller: the single-step and the long part.

All of it is ``[batch response]`` and constant. Only entries where ``mask`` is true are read, whatever stands in the
others, and padded entries of every result are exactly 0. Steps are counted in real tokens, so neither the padding nor
where a response starts in its row makes a difference.

In all docstrings q is the student's probability of the sampled token and p the teacher's.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.estimators import same_shape


def log_ratio_rewards(
    student_logprobs: Float[Tensor, "batch response"],
    teacher_logprobs: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    scale: float = 1.0,
    clip: float | None = None,
) -> Float[Tensor, "batch response"]:
    """r = scale * (log p - log q) of each token, then kept within -clip and clip.

    Args:
        student_logprobs: of the sampled tokens, by the student that sampled them.
        teacher_logprobs: of the same tokens.
        mask: true at real tokens.
        scale: a factor > 0. MiniLLM's public code divides by 0.5: a scale of 2.
        clip: the largest size of a reward > 0, or None. MiniLLM's public code uses 100.
    Returns: constants, 0 at padding.
    Raises: ConfigError if scale or clip is not above 0; ValueError if the shapes differ or the mask is not bool.
    Numerics: computed in at least float32, float64 kept; -inf where p = 0 unless clipped.
    Source: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.2.
    """
    if not scale > 0:
        raise ConfigError(f"the rewards' scale is {scale}", "give a scale above 0; 1 leaves the rewards as they are")
    if clip is not None and not clip > 0:
        raise ConfigError(f"the rewards' clip is {clip}", "give a clip above 0, or None for no clip")
    student, teacher = same_shape(student_logprobs=student_logprobs, teacher_logprobs=teacher_logprobs)
    rewards = _real(teacher - student, mask) * scale
    return rewards if clip is None else rewards.clamp(-clip, clip)


def reward_to_go(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    discount: float = 1.0,
    include_current: bool = True,
) -> Float[Tensor, "batch response"]:
    """The discounted sum of the rewards from each token to its response's end.

    sum_{u >= t} discount**(u - t) r_u, u - t the number of real tokens from t to u. Without the current reward the sum
    starts at t + 1 and the exponent stays: what is left is exactly the above less r_t, and at discount 0 nothing. So
    the single-step term together with the long part has the same expected gradient as the whole, at any discount.

    Args:
        rewards: r, one for each token.
        mask: true at real tokens.
        discount: 0 to 1. At 1 the sum is the sequence's log-ratio; at 0 it is r_t.
        include_current: whether r_t is part of the sum at t. False for use with the exact single-step term, which
            counts it already.
    Returns: constants, 0 at padding.
    Raises: ConfigError if discount is out of range; ValueError if the shapes differ or the mask is not bool.
    Numerics: computed in at least float32, float64 kept; summed from the end, so no power of the discount is divided.
    Source: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.2 (discount 1).
    """
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount is {discount}", "give a discount from 0 to 1")
    rewards = _real(rewards, mask)
    returns, to_go = torch.zeros_like(rewards), rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        later = discount * to_go if discount else torch.zeros_like(to_go)  # not 0 * inf
        to_go = torch.where(mask[:, t], rewards[:, t] + later, to_go)
        returns[:, t] = to_go if include_current else later
    return _real(returns, mask)


def remaining_length(mask: Bool[Tensor, "batch response"], *, include_current: bool) -> Int[Tensor, "batch response"]:
    """How many real tokens each token has after it in its response, itself counted or not.

    Args:
        mask: true at real tokens.
        include_current: whether a token counts itself.
    Returns: counts, 0 at padding, and without the current token 0 at a response's last.
    Raises: ValueError if the mask is not bool.
    """
    _check(mask)
    up_to_here = mask.long().cumsum(1)
    after = up_to_here[:, -1:] - up_to_here
    return (after + include_current) * mask


def length_normalise(
    returns: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], *, include_current: bool
) -> Float[Tensor, "batch response"]:
    """Each return divided by the number of rewards in it, so that early tokens do not weigh more for being early.

    This changes the objective: the gradient is no longer that of sequence-level reverse KL. MiniLLM's paper divides
    R_{t+1} by the number of tokens after t (include_current=False); its public code divides R_t by one more.

    Args:
        returns: from ``reward_to_go`` with the same ``include_current``.
        mask: true at real tokens.
        include_current: whether the current reward is in the return, and so in the number.
    Returns: constants, 0 at padding and where no reward remains.
    Raises: ValueError if the shapes differ or the mask is not bool.
    Numerics: computed in at least float32, float64 kept.
    Source: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.2.
    """
    remaining = remaining_length(mask, include_current=include_current)
    return torch.where(remaining > 0, _real(returns, mask) / remaining.clamp_min(1), 0.0)


def whiten(
    values: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], *, epsilon: float = 1e-8
) -> Float[Tensor, "batch response"]:
    """The values shifted to mean 0 and scaled to variance 1 over all real tokens of the batch together.

    The scale differs from batch to batch, and it sets how much a policy gradient weighs beside any other term. The mean
    and the variance are those of the tensor given: whiten what was sampled together, before it is cut into parts.

    Args:
        values: advantages.
        mask: true at real tokens.
        epsilon: added to the variance, > 0: equal values become 0.
    Returns: constants, 0 at padding; all 0 where there are fewer than two real tokens.
    Raises: ConfigError if epsilon is not above 0; ValueError if the shapes differ or the mask is not bool.
    Numerics: computed in at least float32, float64 kept; the variance is divided by n, not n - 1.
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon is {epsilon}", "give a small number above 0, such as 1e-8")
    values = _real(values, mask)
    count = mask.sum().clamp_min(1)
    centred = _real(values - values.sum() / count, mask)
    return centred * (centred.square().sum() / count + epsilon).rsqrt()


_length_normalise, _whiten = length_normalise, whiten  # for the function whose settings have these names


def minillm_advantages(
    student_logprobs: Float[Tensor, "batch response"],
    teacher_logprobs: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    length_normalise: bool = True,
    discount: float = 1.0,
    include_current: bool = False,
    whiten: bool = False,
    reward_scale: float = 1.0,
    reward_clip: float | None = None,
    add_current: bool = False,
) -> Float[Tensor, "batch response"]:
    """MiniLLM's advantages: rewards, summed to the end, divided by their number, whitened if asked for.

    The defaults are the paper's: the long part alone, for use together with ``reverse_kl`` on the same responses, which
    is the single-step part. With length_normalise=False the two have the exact gradient of sequence-level reverse KL;
    with include_current=True as well, the advantages have it alone. Never add ``reverse_kl`` to advantages that include
    the current reward: it would count twice.

    The public code does just that: include_current=True, discount=0.95, whiten=True (padding included, which is not
    offered here), reward_scale=2, reward_clip=100, and the single-step part on top.

    Args:
        student_logprobs: of the sampled tokens, by the student that sampled them.
        teacher_logprobs: of the same tokens.
        mask: true at real tokens, the end-of-sequence token among them.
        length_normalise: see ``length_normalise``.
        discount: see ``reward_to_go``.
        include_current: see ``reward_to_go``.
        whiten: see ``whiten``.
        reward_scale: see ``log_ratio_rewards``.
        reward_clip: see ``log_ratio_rewards``.
        add_current: add each token's own reward after the long part was normalised: the immediate reward beside the
            long-term one. With include_current it would count twice, and is refused.
    Returns: constants, 0 at padding.
    Raises: ConfigError if a setting is out of range; ValueError if the shapes differ or the mask is not bool.
    Numerics: computed in at least float32, float64 kept; finite where the rewards are.
    Source: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.2 and algorithm 1.
    """
    if add_current and include_current:
        raise ConfigError("add_current and include_current would count a token's own reward twice", "set one of them")
    rewards = log_ratio_rewards(student_logprobs, teacher_logprobs, mask, scale=reward_scale, clip=reward_clip)
    advantages = reward_to_go(rewards, mask, discount=discount, include_current=include_current)
    if length_normalise:
        advantages = _length_normalise(advantages, mask, include_current=include_current)
    advantages = advantages + rewards if add_current else advantages
    return _whiten(advantages, mask) if whiten else advantages


def _real(values: Tensor, mask: Tensor) -> Tensor:
    """The values in at least float32, detached, 0 where the mask is false."""
    _check(mask)
    (values,) = same_shape(values=values)
    if values.shape != mask.shape:
        raise ValueError(f"the values have shape {list(values.shape)} and the mask {list(mask.shape)}")
    return values.detach().masked_fill(~mask, 0.0)


def _check(mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"the mask is {mask.dtype} of shape {list(mask.shape)}: it must be bool, [batch response]")
