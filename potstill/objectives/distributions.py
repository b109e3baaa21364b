"""Next-token distributions of a student and a teacher, brought to the same outcomes and into log space.

A teacher is its logits, or one of two sparse forms. ``TopK`` is compared on K+1 outcomes: its K tokens and everything
else. Merging outcomes can only lower an f-divergence (data processing), so such a loss is a lower bound of the full
one, exact where the merged tokens agree up to a factor. ``Sampled`` is a draw whose expectation is the teacher's
distribution: right on average in what is linear in the teacher's probabilities, and in nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable

from potstill.errors import ConfigError
from potstill.types import Sampled, TeacherLogits, TopK


def log_probs(logits: Float[Tensor, "*pos vocab"], temperature: float = 1.0) -> Float[Tensor, "*pos vocab"]:
    """log softmax(logits / T), in at least float32.

    Raises: ConfigError if T <= 0.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}", "give a temperature above 0")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(precise if temperature == 1 else precise / temperature, dim=-1)


def pair(
    student_logits: Float[Tensor, "*pos vocab"], teacher: TeacherLogits, temperature: float, why_not_top_k: str = ""
) -> tuple[Float[Tensor, "*pos outcomes"], Float[Tensor, "*pos outcomes"]]:
    """Log-probabilities of student and teacher over the same outcomes; the teacher's are constant.

    Args:
        student_logits: unnormalised; gradient flows.
        teacher: logits, whose outcomes are the vocabulary, or TopK, whose outcomes are its tokens and the rest.
        temperature: T > 0 of both.
        why_not_top_k: why the caller cannot take a TopK teacher; empty where it can.
    Raises: ConfigError for a form of teacher the caller's mathematics does not allow; ValueError for vocabularies of
        different size.
    """
    if isinstance(teacher, Tensor):
        same_positions(student_logits, teacher)
        return log_probs(student_logits, temperature), log_probs(teacher.detach(), temperature)
    if not isinstance(teacher, TopK | Sampled):
        raise TypeError(f"the teacher is a {type(teacher).__name__}: give logits as a tensor, TopK or Sampled")
    if isinstance(teacher, Sampled):
        raise ConfigError(
            "sampled teacher tokens stand for its probabilities only on average, and this objective is not linear "
            "in them: its gradient would be biased",
            "use forward_kl with sampled tokens, or give the teacher's logits",
        )
    if why_not_top_k:
        raise ConfigError(
            f"a top-k teacher does not say enough for this objective: {why_not_top_k}", "give the teacher's logits"
        )
    check_sparse(student_logits, teacher, temperature)
    listed = teacher.log_probs.detach()
    log_p = torch.cat([listed, teacher.log_tail_mass.detach().to(listed.dtype)[..., None]], -1)
    log_q = with_rest(log_probs(student_logits, temperature), teacher.ids)
    return log_q, log_p.to(log_q.dtype)


def with_rest(log_q: Float[Tensor, "*pos vocab"], ids: Int[Tensor, "*pos topk"]) -> Float[Tensor, "*pos outcomes"]:
    """Log-probabilities of the listed tokens, no id twice, and of all the others together as the last outcome.

    The rest is summed and not subtracted from 1, which would leave rounding noise of a small rest. First derivatives.
    """
    outcomes: Tensor = _WithRest.apply(log_q, ids)
    return outcomes


class _WithRest(torch.autograd.Function):
    """By hand, in a third of autograd's passes over the vocabulary; nothing left over has no gradient."""

    @staticmethod
    def forward(ctx: Any, log_q: Tensor, ids: Tensor) -> Tensor:
        others, rest = log_q.exp().scatter_(-1, ids, 0.0), log_q.new_zeros(())
        mass = others.sum(-1, keepdim=True)
        small = torch.finfo(mass.dtype).tiny / torch.finfo(mass.dtype).eps
        if not can_look(mass) or bool((mass < small).any()):
            listed = log_q.scatter(-1, ids, -torch.inf)
            rest = listed.amax(-1, keepdim=True)
            rest = rest.masked_fill(rest.isneginf(), 0.0)
            others = (listed - rest).exp()
            mass = others.sum(-1, keepdim=True)
        ctx.save_for_backward(others, mass, ids)
        return torch.cat([log_q.gather(-1, ids), rest + mass.log()], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        others, mass, ids = ctx.saved_tensors
        per_mass = torch.where(mass > 0, grad[..., -1:] / mass, 0.0)
        return (others * per_mass).scatter_(-1, ids, grad[..., :-1]), None


def same_positions(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raises: ValueError where the two have not the same number of logits, or not one for each other's positions: to
    broadcast would pair tokens that do not belong together."""
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            f"the student has {student_logits.shape[-1]} logits and the teacher {teacher_logits.shape[-1]}: "
            "the two must share a vocabulary"
        )
    _same_places(student_logits, teacher_logits)


def _same_places(student_logits: Tensor, teacher: Tensor) -> None:
    if student_logits.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"the student's logits are of positions {list(student_logits.shape[:-1])} and the teacher's of "
            f"{list(teacher.shape[:-1])}: they must be the same positions"
        )


def check_sparse(student_logits: Tensor, teacher: TopK | Sampled, temperature: float) -> None:
    """Raises: ConfigError where a sparse teacher was made at another temperature than is asked for; ValueError where
    it is of other positions or names tokens that the student does not have."""
    _same_places(student_logits, teacher.ids)
    # On an accelerator looking would mean waiting, and its own bounds check says so, if less kindly.
    if can_look(teacher.ids) and teacher.ids.numel() and int(teacher.ids.max()) >= student_logits.shape[-1]:
        raise ValueError(
            f"the teacher names token {int(teacher.ids.max())} and the student has {student_logits.shape[-1]} logits: "
            "the two must share a vocabulary"
        )
    if teacher.temperature != temperature:
        raise ConfigError(
            f"the teacher's sparse probabilities were taken at temperature {teacher.temperature}, not {temperature}, "
            "and cannot be brought to another without its other logits",
            f"set temperature to {teacher.temperature}, or take them again at {temperature}",
        )


def can_look(values: Tensor) -> bool:
    """Whether to go by what a tensor holds is cheap: on a processor, and where it holds something, which one that a
    compiler follows does not."""
    return values.device.type == "cpu" and not isinstance(values, FakeTensor)


def kl_between(log_a: Float[Tensor, "*pos outcomes"], log_b: Float[Tensor, "*pos outcomes"]) -> Float[Tensor, "*pos"]:
    """KL(a || b) over the last axis; outcomes with a = 0 contribute nothing, in value and in gradient.

    Its derivatives are first ones.
    """
    value: Tensor = _KL.apply(*torch.broadcast_tensors(log_a, log_b))
    return value


def jensen_shannon_between(
    log_a: Float[Tensor, "*pos outcomes"], log_b: Float[Tensor, "*pos outcomes"], weight_of_a: float
) -> Float[Tensor, "*pos"]:
    """w KL(a || m) + (1 - w) KL(b || m), m = w a + (1 - w) b, over the last axis; first derivatives."""
    value: Tensor = _JensenShannon.apply(log_a, log_b, weight_of_a)
    return value


class _KL(torch.autograd.Function):
    """sum a (log a - log b). By hand, in a third of autograd's passes over the vocabulary (decision 12)."""

    @staticmethod
    def forward(ctx: Any, log_a: Tensor, log_b: Tensor) -> Tensor:
        a, gap = log_a.exp(), log_a - log_b
        value, gap = _expected(a, gap)
        ctx.save_for_backward(a, gap if ctx.needs_input_grad[0] else None)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, gap = ctx.saved_tensors
        to_b = a * -grad[..., None] if ctx.needs_input_grad[1] else None
        if gap is None:
            return None, to_b
        shares = a * grad[..., None]
        return torch.addcmul(shares, shares, gap), to_b


class _JensenShannon(torch.autograd.Function):
    """The mixture's own derivative cancels: what is left at log a is w a log(a / m), and at log b its like."""

    @staticmethod
    def forward(ctx: Any, log_a: Tensor, log_b: Tensor, weight_of_a: float) -> Tensor:
        a, b = log_a.exp(), log_b.exp()
        log_m = torch.lerp(b, a, weight_of_a).clamp_min_(torch.finfo(a.dtype).tiny).log_()  # not of an underflow's 0
        of_a, gap_a = _expected(a, log_a - log_m)
        of_b, gap_b = _expected(b, log_b - log_m)
        ctx.weight_of_a = weight_of_a
        needs_a, needs_b, _ = ctx.needs_input_grad
        ctx.save_for_backward(*((a, gap_a) if needs_a else (None, None)), *((b, gap_b) if needs_b else (None, None)))
        return weight_of_a * of_a + (1 - weight_of_a) * of_b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, gap_a, b, gap_b = ctx.saved_tensors
        to_a = None if a is None else (a * gap_a).mul_(ctx.weight_of_a * grad[..., None])
        to_b = None if b is None else (b * gap_b).mul_((1 - ctx.weight_of_a) * grad[..., None])
        return to_a, to_b, None


def _expected(a: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """sum a gap over outcomes with mass, and the gap, 0 elsewhere.

    Leaving outcomes out takes longer than all else here, and matters only where a gap is infinite or not a number,
    which shows in the sum. Looking at that is cheap on a CPU, and on an accelerator means waiting.
    """
    value = (a * gap).sum(-1)
    if can_look(value) and bool(value.isfinite().all()):
        return value, gap
    gap = torch.where(a > 0, gap, 0.0)
    return (a * gap).sum(-1), gap


def log_mixture(
    log_a: Float[Tensor, "*pos outcomes"],
    log_b: Float[Tensor, "*pos outcomes"],
    weight_of_a: float | Float[Tensor, "*pos"],
) -> Float[Tensor, "*pos outcomes"]:
    """log(w a + (1 - w) b); 0 where neither has mass, which no divergence then looks at."""
    # logaddexp(-inf, -inf) has no gradient, so outcomes that neither gives mass leave before it.
    nowhere = torch.isneginf(log_a) & torch.isneginf(log_b)
    w = weight_of_a.to(log_a)[..., None] if isinstance(weight_of_a, Tensor) else log_a.new_tensor(weight_of_a)
    return torch.logaddexp(log_a.masked_fill(nowhere, 0.0) + w.log(), log_b.masked_fill(nowhere, 0.0) + (-w).log1p())
