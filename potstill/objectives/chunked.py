"""The one evaluator of terms: logits exist for one chunk of positions at a time, and never for a whole response.

Only positions that carry weight reach the heads. Each head is applied once per chunk however many terms there are, and
each chunk's gradient is taken as it goes, so memory does not grow with ``response x vocab``. The result is an ordinary
scalar: ``total.backward()`` sends the gradients on, through any wrapper (DDP, autocast, gradient accumulation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.types import Batch, Head, StudentOutput, TeacherSignal

ELEMENTS_PER_CHUNK = 2**23  # of logits: 170 positions at a vocabulary of 49,152, 32 MiB in float32


@dataclass(frozen=True)
class BoundTerm:
    """An objective with all it needs to be summed over one batch.

    ``scale`` is weight / denominator at each position: 0 leaves the position out, and sum(scale * objective) over the
    micro-batches of all processes is the term's value.
    """

    name: str
    objective: Callable[[Tensor, Tensor], Tensor]
    compares: bool  # with the teacher's logits; otherwise with the response's own tokens
    coefficient: float
    scale: Float[Tensor, "batch response"]


@dataclass(frozen=True)
class Chunk:
    """A few positions, with the logits of both models."""

    student_logits: Float[Tensor, "chunk vocab"]
    teacher_logits: Float[Tensor, "chunk vocab"] | None
    target_ids: Int[Tensor, " chunk"]

    def reference(self, term: BoundTerm) -> Tensor:
        """What the term's objective compares the student's logits with."""
        if not term.compares:
            return self.target_ids
        if self.teacher_logits is None:
            raise ValueError(f"{term.name} compares with a teacher, and this batch has no teacher signal")
        return self.teacher_logits


@dataclass(frozen=True)
class Positions:
    """The selected positions of a batch, in a row: what the heads are applied to, a chunk at a time.

    ``rows`` says which example of the batch each position belongs to.
    """

    hidden: Float[Tensor, "pos hidden"]
    head: Head
    teacher_hidden: Float[Tensor, "pos teacher_hidden"] | None
    teacher_head: Head | None
    target_ids: Int[Tensor, " pos"]
    rows: Int[Tensor, " pos"]
    chunk_size: int

    def slices(self) -> Iterator[slice]:
        count = self.target_ids.shape[0]
        return (slice(start, min(start + self.chunk_size, count)) for start in range(0, count, self.chunk_size))

    def chunk(self, at: slice, hidden: Tensor) -> Chunk:
        """Logits of the positions ``at``; the student's come from ``hidden``, its states there or a copy."""
        teacher_logits = None
        if self.teacher_hidden is not None and self.teacher_head is not None:
            with torch.no_grad():
                teacher_logits = self.teacher_head(self.teacher_hidden[at])
        return Chunk(self.head(hidden), teacher_logits, self.target_ids[at])


def select(
    output: StudentOutput,
    signal: TeacherSignal | None,
    batch: Batch,
    mask: Bool[Tensor, "batch response"],
    chunk_size: int | None = None,
) -> Positions:
    """The positions of a batch where ``mask`` is set, in row order."""
    return Positions(
        hidden=output.hidden[mask],
        head=output.head,
        teacher_hidden=signal.hidden[mask] if signal else None,
        teacher_head=signal.head if signal else None,
        target_ids=batch.response_ids[mask],
        rows=mask.nonzero()[:, 0],
        chunk_size=chunk_size or max(1, ELEMENTS_PER_CHUNK // output.head.vocab_size),
    )


def evaluate_terms(
    output: StudentOutput,
    signal: TeacherSignal | None,
    batch: Batch,
    terms: Sequence[BoundTerm],
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
    """sum_k coefficient_k * value_k, and the values, where value_k = sum over positions of scale_k * objective_k.

    Args:
        output: the student's states and head; gradient flows to both.
        signal: what the teacher says, where a term compares with it.
        batch: the tokens the states belong to.
        terms: the summands.
        chunk_size: positions whose logits exist at once; from the vocabulary's size where unset.
    Returns: the total, differentiable; the values, for the log, constant. Both in at least float32.
    """
    mask = torch.stack([term.scale != 0 for term in terms]).any(0)
    positions = select(output, signal, batch, mask, chunk_size)
    trained = tuple(parameter for parameter in output.head.parameters if parameter.requires_grad)
    return _GradientInForward.apply(terms, mask, positions, positions.hidden, *trained)


class _GradientInForward(torch.autograd.Function):
    """total(hidden, *parameters) as a sum over chunks, whose gradient is computed with the value.

    Keeping ``[pos, hidden]`` and the parameters' gradients until backward is what saves keeping ``[pos, vocab]``.
    """

    @staticmethod
    def forward(
        ctx: Any, terms: Sequence[BoundTerm], mask: Tensor, positions: Positions, hidden: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad)
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        scales = [term.scale[mask].to(precise) for term in terms]
        values = torch.zeros(len(terms), dtype=precise, device=hidden.device)
        hidden_grad = torch.zeros_like(hidden)
        parameter_grads = [torch.zeros_like(parameter) for parameter in parameters]
        for at in positions.slices():
            leaf = hidden[at].detach().requires_grad_(wanted)
            total = values.new_zeros(())
            with torch.set_grad_enabled(wanted):
                chunk = positions.chunk(at, leaf)
                for index, term in enumerate(terms):
                    value = (term.objective(chunk.student_logits, chunk.reference(term)) * scales[index][at]).sum()
                    values[index] += value.detach()
                    total = total + term.coefficient * value
            if wanted:
                hidden_grad[at], *grads = torch.autograd.grad(total, (leaf, *parameters))
                for accumulated, grad in zip(parameter_grads, grads, strict=True):
                    accumulated += grad
        ctx.save_for_backward(hidden_grad, *parameter_grads)
        ctx.mark_non_differentiable(values)
        return (values * values.new_tensor([term.coefficient for term in terms])).sum(), values

    @staticmethod
    def backward(ctx: Any, total_grad: Tensor, _values_grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(grad * total_grad.to(grad.dtype) for grad in ctx.saved_tensors))
