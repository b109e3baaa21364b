"""What one sampled token says about a divergence: losses whose gradient is right on average, and values to log.

Everything here takes the log-probabilities of the tokens that were sampled, in any shape, and returns the same shape,
unmasked and unreduced. An average over samples has two gradients that are easily confused: that of the summand, and
that of the distribution the samples come from. A loss must bring back the second, which automatic differentiation of a
sampled value leaves out; ``policy_gradient`` and ``squared_log_ratio`` do, and ``k1`` and ``k3`` do not, so those two
are constants.

In all docstrings q is the student's probability of the sampled token, p the teacher's and b the behaviour's: the
student's own when the token was sampled.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.distributions import log_probs


def policy_gradient(
    student_logprobs: Float[Tensor, "*pos"],
    behaviour_logprobs: Float[Tensor, "*pos"],
    advantages: Float[Tensor, "*pos"],
    *,
    clip: float | None = None,
    importance_weights: Float[Tensor, "*pos"] | None = None,
) -> Float[Tensor, "*pos"]:
    """The loss whose gradient raises the probability of tokens with a positive advantage.

    -A w q / b, with the gradient -A w (q / b) grad log q; on policy (q = b) that is -A w grad log q, the score
    function. Only the gradient means something: on policy the value is -A w, whatever the student. With ``clip`` = e
    it is w max(-A r, -A min(max(r, 1 - e), 1 + e)), r = q / b: no gradient once r has moved by e the way A asks.

    Where the tokens came from a mixture of student and teacher, b stays the student's probability at that time and
    the mixture goes into w, outside the clip. MiniLLM's public code clips w r instead; w is seldom near 1, so its clip
    cuts gradients off before the student has made a step. Here r is 1 in the first epoch and the clip does nothing.

    Args:
        student_logprobs: of the sampled tokens, now; gradient flows.
        behaviour_logprobs: of the same tokens by the student that took part in sampling them; treated as constant.
        advantages: A, larger for better tokens (see ``potstill.objectives.credit``); treated as constant.
        clip: e, 0 < e < 1, or None for no clip. MiniLLM uses 0.2.
        importance_weights: w, see ``importance_weights``; 1 if None; treated as constant.
    Returns: unmasked, unreduced; of either sign.
    Raises: ConfigError if clip is out of range; ValueError if the shapes differ.
    Numerics: computed in at least float32, float64 kept; exactly -A w where student and behaviour are the same. Padding
        must hold finite numbers, such as 0: an infinite ratio has no gradient that a later mask could make 0.
    Source: Williams 1992, doi:10.1007/BF00992696. Clip: Schulman et al. 2017, PPO, arXiv:1707.06347, section 3. With
        a teacher's mixture: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.2.
    """
    if clip is not None and not 0 < clip < 1:
        raise ConfigError(f"clip is {clip}", "give a clip between 0 and 1, or None for no clip; MiniLLM uses 0.2")
    student, behaviour, advantage = same_shape(
        student_logprobs=student_logprobs, behaviour_logprobs=behaviour_logprobs, advantages=advantages
    )
    ratio, advantage = (student - behaviour.detach()).exp(), advantage.detach()
    loss = -advantage * ratio
    if clip is not None:
        loss = torch.maximum(loss, -advantage * ratio.clamp(1 - clip, 1 + clip))
    if importance_weights is None:
        return loss
    loss, weight = same_shape(student_logprobs=loss, importance_weights=importance_weights)
    return weight.detach() * loss


def token_policy_gradient(
    student_logits: Float[Tensor, "*pos vocab"],
    target_ids: Int[Tensor, "*pos"],
    *,
    behaviour_logprobs: Float[Tensor, "*pos"],
    advantages: Float[Tensor, "*pos"],
    importance_weights: Float[Tensor, "*pos"] | None = None,
    clip: float | None = None,
    clip_weights: bool = False,
    temperature: float = 1.0,
) -> Float[Tensor, "*pos"]:
    """``policy_gradient`` from logits and the tokens that were sampled.

    Args:
        student_logits: unnormalised; gradient flows.
        target_ids: the sampled tokens.
        behaviour_logprobs: see ``policy_gradient``; taken at the same temperature.
        advantages: see ``policy_gradient``.
        importance_weights: see ``policy_gradient``.
        clip: see ``policy_gradient``.
        clip_weights: clip the product of weight and ratio, as MiniLLM's public code does, and not the ratio alone.
        temperature: T > 0 of the student.
    Returns: unmasked, unreduced; of either sign.
    Raises: ConfigError if clip or T is out of range; ValueError if the shapes differ.
    Numerics: computed in at least float32, float64 kept.
    Source: see ``policy_gradient``.
    """
    student_logprobs = log_probs(student_logits, temperature).gather(-1, target_ids[..., None])[..., 0]
    if clip_weights and importance_weights is not None:  # w q / b is q over b / w
        behaviour_logprobs, importance_weights = behaviour_logprobs - importance_weights.log(), None
    return policy_gradient(
        student_logprobs, behaviour_logprobs, advantages, clip=clip, importance_weights=importance_weights
    )


def squared_log_ratio(
    student_logprobs: Float[Tensor, "*pos"], teacher_logprobs: Float[Tensor, "*pos"]
) -> Float[Tensor, "*pos"]:
    """Half the squared difference of the log-probabilities, also known as k2: a loss for student samples.

    (log q - log p)**2 / 2, with the gradient (log q - log p) grad log q. Averaged over tokens the student samples, that
    is the gradient of reverse KL, although the value is not reverse KL: it agrees with it to second order only.

    Args:
        student_logprobs: of tokens sampled from the student; gradient flows.
        teacher_logprobs: of the same tokens; treated as constant.
    Returns: non-negative, unmasked, unreduced.
    Raises: ValueError if the shapes differ.
    Numerics: computed in at least float32, float64 kept; +inf where one of p, q is 0.
    Source: Schulman 2020, "Approximating KL divergence" (k2).
    """
    return _log_ratio(student_logprobs, teacher_logprobs).square() / 2


def k1(student_logprobs: Float[Tensor, "*pos"], teacher_logprobs: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
    """log q - log p: averages to reverse KL over student samples. To be logged, never minimised.

    As a loss it would do nothing on average: its gradient is grad log q, whose mean over the student's own samples is
    0 whatever the teacher. So it comes back as a constant, and backward fails. ``squared_log_ratio`` is the loss.

    Args:
        student_logprobs: of tokens sampled from the student; treated as constant.
        teacher_logprobs: of the same tokens; treated as constant.
    Returns: unmasked, unreduced; of either sign.
    Raises: ValueError if the shapes differ.
    Numerics: computed in at least float32, float64 kept; +inf where p = 0.
    Source: Schulman 2020, "Approximating KL divergence" (k1).
    """
    return _log_ratio(student_logprobs, teacher_logprobs).detach()


def k3(student_logprobs: Float[Tensor, "*pos"], teacher_logprobs: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
    """p / q - 1 - log(p / q): averages to reverse KL over student samples. To be logged, never minimised.

    Of smaller variance than ``k1`` where the two models are near, and never negative. As a loss it would minimise
    something else: its gradient is (1 - p / q) grad log q, whose mean over the student's samples is the gradient of
    forward KL. So it comes back as a constant, and backward fails. ``squared_log_ratio`` is the loss.

    Args:
        student_logprobs: of tokens sampled from the student; treated as constant.
        teacher_logprobs: of the same tokens; treated as constant.
    Returns: non-negative, unmasked, unreduced.
    Raises: ValueError if the shapes differ.
    Numerics: computed in at least float32, float64 kept, through expm1, which stays exact where the models are near;
        +inf where p = 0. A single token with p far above q outweighs all others.
    Source: Schulman 2020, "Approximating KL divergence" (k3).
    """
    teacher_over_student = -_log_ratio(student_logprobs, teacher_logprobs).detach()
    return teacher_over_student.expm1() - teacher_over_student


def importance_weights(
    student_logprobs: Float[Tensor, "*pos"], teacher_logprobs: Float[Tensor, "*pos"], teacher_share: float
) -> Float[Tensor, "*pos"]:
    """What a token counts for that was sampled from (1 - a) student + a teacher and should be from the student.

    w = q / ((1 - a) q + a p), at most 1 / (1 - a). It corrects the one token. A token's prefix and its later rewards
    came from the mixture too: only the product of w over the whole response is exact, and its variance grows with
    every token, so MiniLLM takes the single factor and accepts a bias.

    Args:
        student_logprobs: of the sampled tokens, by the student that took part in sampling; treated as constant.
        teacher_logprobs: of the same tokens; treated as constant.
        teacher_share: a, 0 <= a <= 1. At 0 every weight is exactly 1, at 1 it is q / p. MiniLLM uses 0.2.
    Returns: non-negative constants, unmasked.
    Raises: ConfigError if teacher_share is out of range; ValueError if the shapes differ.
    Numerics: computed in at least float32, float64 kept, through logaddexp; a token that neither model could have
        written has no weight (nan), unless a = 0.
    Source: Gu et al. 2024, MiniLLM, arXiv:2306.08543, section 2.2.
    """
    if not 0 <= teacher_share <= 1:
        raise ConfigError(f"teacher_share is {teacher_share}", "give a share from 0 to 1; MiniLLM uses 0.2")
    log_ratio = _log_ratio(student_logprobs, teacher_logprobs).detach()
    if teacher_share == 0:
        return torch.ones_like(log_ratio)
    share = torch.tensor(teacher_share, dtype=log_ratio.dtype, device=log_ratio.device)
    return torch.logaddexp((-share).log1p(), share.log() - log_ratio).neg().exp()


def same_shape(**tensors: Tensor) -> list[Tensor]:
    """The tensors in at least float32, of one shape: to broadcast would pair tokens that do not belong together.

    Raises: ValueError where the shapes differ.
    """
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        raise ValueError("; ".join(f"{name} has shape {list(tensor.shape)}" for name, tensor in tensors.items()))
    return [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors.values()]


def _log_ratio(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    student, teacher = same_shape(student_logprobs=student_logprobs, teacher_logprobs=teacher_logprobs)
    return student - teacher.detach()
