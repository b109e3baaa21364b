"""Objectives on hidden states, and the maps that bring two models' channels together.

A state is compared with a state of the same token, so the functions that look at one position at a time need no mask;
those that mix positions take one. The teacher is a constant everywhere. All of it is computed in at least float32, and
float64 is kept.

Widths differ between models. A map turns both states into something of one width:
``objective(map.student(student_hidden), map.teacher(teacher_hidden))``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.objectives.distributions import kl_between


def hidden_mse(
    student_hidden: Float[Tensor, "*pos hidden"],
    teacher_hidden: Float[Tensor, "*pos hidden"],
    *,
    normalise: bool = True,
) -> Float[Tensor, "*pos"]:
    """Mean over channels of the squared difference of two states.

    States of a residual stream grow with depth, and with them this loss; ``normalise`` brings each state to the length
    of one whose channels have size 1, so that layers weigh the same. It is then twice ``hidden_cosine``.

    Args:
        student_hidden: gradient flows.
        teacher_hidden: treated as constant.
        normalise: compare directions, at length sqrt(hidden).
    Returns: non-negative, unmasked, unreduced.
    Raises: ValueError if the shapes differ.
    Numerics: with ``normalise``, a state of length under 1e-12 stays 0 and gets no gradient.
    Source: Jiao et al. 2020, TinyBERT, arXiv:1909.10351, section 3.1.
    """
    student, teacher = _same_shape(student_hidden, teacher_hidden)
    if normalise:
        size = student.shape[-1] ** 0.5
        student, teacher = size * _direction(student), size * _direction(teacher)
    return (student - teacher).square().mean(-1)


def hidden_cosine(
    student_hidden: Float[Tensor, "*pos hidden"], teacher_hidden: Float[Tensor, "*pos hidden"]
) -> Float[Tensor, "*pos"]:
    """1 - cosine similarity of two states.

    Args:
        student_hidden: gradient flows.
        teacher_hidden: treated as constant.
    Returns: from 0 to 2, unmasked, unreduced; 1 with gradient 0 where either state is 0.
    Raises: ValueError if the shapes differ.
    Numerics: a state of length under 1e-12 counts as 0; above that the gradient grows as 1 / length.
    Source: Sanh et al. 2019, DistilBERT, arXiv:1910.01108, section 3.
    """
    student, teacher = _same_shape(student_hidden, teacher_hidden)
    return 1 - (_direction(student) * _direction(teacher)).sum(-1)


def hidden_correlation(
    student_hidden: Float[Tensor, "batch tokens hidden"],
    teacher_hidden: Float[Tensor, "batch tokens hidden"],
    mask: Bool[Tensor, "batch tokens"],
    *,
    off_diagonal_weight: float = 0.005,
) -> Float[Tensor, ""]:
    """How far the channels' cross-correlation is from the identity (the Barlow form).

    sum_i (1 - C_ii)**2 + w sum_{i != j} C_ij**2, C = correlation of student channel i with teacher channel j over the
    real tokens. The small weight belongs to the many entries off the diagonal.

    It needs all tokens at once and depends on which share a batch, so the losses of two halves do not add up to that of
    the whole. Where student is teacher only its diagonal part is 0, unless the teacher's channels are uncorrelated.

    Args:
        student_hidden: gradient flows.
        teacher_hidden: treated as constant.
        mask: the real tokens; at least two.
        off_diagonal_weight: w >= 0.
    Returns: non-negative, a scalar.
    Raises: ConfigError for a negative weight; ValueError if the shapes or the mask's differ, or fewer than two tokens
        are real.
    Numerics: a channel that varies by no more than rounding correlates with nothing and gets no gradient.
    Source: Zbontar et al. 2021, Barlow Twins, arXiv:2103.03230, section 2.1; their code for the weight.
    """
    if not off_diagonal_weight >= 0:
        raise ConfigError(f"off_diagonal_weight is {off_diagonal_weight}", "give a weight of at least 0")
    student, teacher = _same_shape(student_hidden, teacher_hidden)
    if mask.shape != student.shape[:-1]:
        raise ValueError(f"a mask of {list(mask.shape)} for states of {list(student.shape)}")
    if int(mask.sum()) < 2:
        raise ValueError("a correlation needs at least two real tokens")
    correlation = _standardised(student[mask]).T @ _standardised(teacher[mask]) / mask.sum()
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal_weight * off_diagonal


def relation_divergence(
    student_states: Float[Tensor, "batch heads tokens student_dim"],
    teacher_states: Float[Tensor, "batch heads tokens teacher_dim"],
    mask: Bool[Tensor, "batch tokens"],
    *,
    causal: bool = True,
) -> Float[Tensor, "batch heads tokens"]:
    """KL(teacher || student) between relations of tokens (MiniLM), for each query, in nats.

    A relation is softmax_j(x_i . x_j / sqrt(dim)) of a model's queries, keys or values x with themselves: it has no
    channels, so widths may differ and neither layer needs a projection. ``relation_heads`` makes head counts equal.

    Args:
        student_states: gradient flows.
        teacher_states: treated as constant.
        mask: the real tokens.
        causal: let a token relate to itself and earlier ones only, as a causal model's attention does.
    Returns: non-negative; 0 with gradient 0 at padding. Padded and excluded keys are in neither softmax.
    Raises: ValueError if batch, heads or tokens differ, or there are no heads.
    Source: Wang et al. 2020, MiniLM, arXiv:2002.10957, section 3.2; v2, arXiv:2012.15828, section 3.
    """
    _check_relations(student_states, teacher_states, mask)
    tokens = mask.shape[1]
    allowed = mask[:, None, None, :] & mask[:, None, :, None]
    if causal:
        allowed = allowed & torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
    student = _log_relation(student_states, mask, allowed)
    return kl_between(_log_relation(teacher_states.detach(), mask, allowed), student) * mask[:, None]


def relation_heads(states: Float[Tensor, "batch tokens width"], heads: int) -> Float[Tensor, "batch heads tokens dim"]:
    """Channels regrouped into ``heads`` relation heads, whatever heads the model has.

    Raises: ConfigError where the width does not divide.
    """
    if heads < 1 or states.shape[-1] % heads:
        raise ConfigError(
            f"{states.shape[-1]} channels do not make {heads} relation heads", "give a number that divides the width"
        )
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


# --- Maps -------------------------------------------------------------------------------------------------------------


class IdentityMap(nn.Module):
    """Both models' states as they are; for equal widths."""

    def __init__(self, student_width: int, teacher_width: int):
        super().__init__()
        if student_width != teacher_width:
            raise ConfigError(
                f"the student is {student_width} wide and the teacher {teacher_width}",
                "use a learned projection, selected channels, or relations, which need no equal widths",
            )

    def student(self, hidden: Tensor) -> Tensor:
        return hidden

    def teacher(self, hidden: Tensor) -> Tensor:
        return hidden


class LearnedProjection(nn.Module):
    """The student's states through a matrix that learns with it, in its precision; the teacher's as they are."""

    def __init__(self, student_width: int, teacher_width: int, *, bias: bool = False):
        super().__init__()
        self.projection = nn.Linear(student_width, teacher_width, bias=bias)

    def student(self, hidden: Tensor) -> Tensor:
        return self.projection(hidden.to(self.projection.weight.dtype))

    def teacher(self, hidden: Tensor) -> Tensor:
        return hidden


class SelectedChannels(nn.Module):
    """The student's states as they are; of the teacher's, fixed channels, as many as the student has.

    Args:
        indices: the teacher's channels, rising: channel j of the student follows the same one at every step.
        teacher_width: how many there are to choose from.
    """

    indices: Tensor

    def __init__(self, indices: Sequence[int], teacher_width: int):
        super().__init__()
        chosen = list(indices)
        if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= teacher_width:
            raise ConfigError(
                "the selected channels are not a rising list of the teacher's",
                f"give distinct channels from 0 to {teacher_width - 1}, sorted",
            )
        self.register_buffer("indices", torch.tensor(chosen))

    def student(self, hidden: Tensor) -> Tensor:
        return hidden

    def teacher(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(-1, self.indices)


def _same_shape(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(f"states of {list(student.shape)} and {list(teacher.shape)}: bring them to one width first")
    return _precise(student), _precise(teacher.detach())


def _precise(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()


def _direction(states: Float[Tensor, "*pos hidden"]) -> Float[Tensor, "*pos hidden"]:
    """States at length 1. One without length has no direction: 0 with gradient 0, not one that drowns a step."""
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    has_length = ~(length <= 1e-12)  # what is not a number has to stay so
    return torch.where(has_length, states / torch.where(has_length, length, 1.0), 0.0)


def _standardised(states: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
    """Mean 0 and variance 1 over the tokens. The rounding of a mean is no variation, however small the variance is."""
    centred = states - states.mean(0)
    variance = centred.square().mean(0)
    rounding = 16 * torch.finfo(states.dtype).eps * states.detach().abs().amax(0)
    varies = ~(variance.detach().sqrt() <= rounding)
    return torch.where(varies, centred * torch.where(varies, variance, 1.0).rsqrt(), 0.0)


def _check_relations(student: Tensor, teacher: Tensor, mask: Tensor) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(f"states of {list(student.shape[:-1])} and {list(teacher.shape[:-1])}")
    if student.ndim != 4 or mask.shape != (student.shape[0], student.shape[2]):
        raise ValueError(
            f"states of {list(student.shape)} and a mask of {list(mask.shape)} are not [batch heads tokens dim] and "
            "[batch tokens]: relation_heads makes the heads"
        )


def _log_relation(states: Tensor, mask: Tensor, allowed: Tensor) -> Tensor:
    """log softmax over the allowed keys; a padded query relates to nothing, evenly, so that nothing is not a number."""
    real = _precise(states).masked_fill(~mask[:, None, :, None], 0.0)  # whatever stands in padding
    scores = (real @ real.transpose(-1, -2)) / real.shape[-1] ** 0.5
    return torch.log_softmax(scores.masked_fill(~allowed & mask[:, None, :, None], -torch.inf), -1)
