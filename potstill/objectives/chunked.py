"""The one evaluator of terms: logits exist for one chunk of positions at a time, and never for a whole batch.

Only positions that carry weight reach the heads. Each head is applied once per chunk however many terms there are, and
each chunk's gradient is taken as it goes, so memory does not grow with ``response x vocab``. The result is an ordinary
scalar: ``total.backward()`` sends the gradients on, through any wrapper (DDP, autocast, gradient accumulation).

A chunk is what one matrix product gets; the objectives see it in blocks that stay in a processor's cache. That takes a
quarter off the time of everything between the products, and the memory of its intermediate results (decision 12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.objectives.compiled import Block, Compiled
from potstill.types import Batch, Dense, Head, Live, StudentOutput, TeacherLogits, TeacherSignal

if TYPE_CHECKING:
    from potstill.recipe.objective import Reads

MIN_CHUNK = 256  # positions in a matrix product: fewer leave it waiting for the weights
TEACHER_CHUNK = 128  # of a teacher's, whose weights have no gradient to be waited for: its logits take less at once
GPU_CHUNK = 1024
CPU_BLOCK = 2**18  # logits an objective sees at once: 1 MiB in float32, about a core's second-level cache
GPU_BLOCK = 2**26  # 256 MiB: large for its kernels, small beside the models; not measured


@dataclass(frozen=True)
class BoundTerm:
    """An objective with all it needs to be summed over one batch.

    ``scale`` is weight / denominator at each position: 0 leaves the position out, and sum(scale * objective) over the
    micro-batches of all processes is the term's value. ``settings`` are those of the objective that differ from
    position to position, by name.
    """

    name: str
    objective: Callable[..., Tensor]
    reads: Reads
    coefficient: float
    scale: Float[Tensor, "batch response"]
    settings: Mapping[str, Float[Tensor, "batch response"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """A few positions, with what both models say there. ``places`` are their rows and columns in the batch."""

    student_logits: Float[Tensor, "chunk vocab"]
    teacher: TeacherLogits | None
    places: tuple[Int[Tensor, " chunk"], Int[Tensor, " chunk"]]
    batch: Batch
    embeddings: Float[Tensor, "vocab hidden"]

    @property
    def target_ids(self) -> Int[Tensor, " chunk"]:
        """The response's own tokens."""
        return self.batch.response_ids[self.places]

    def __getitem__(self, at: Tensor) -> Chunk:
        teacher = None if self.teacher is None else self.teacher[at]
        rows, columns = self.places
        return Chunk(self.student_logits[at], teacher, (rows[at], columns[at]), self.batch, self.embeddings)

    def settings(self, term: BoundTerm) -> dict[str, Tensor]:
        """The settings of the term's objective that differ from position to position."""
        return {name: setting[self.places] for name, setting in term.settings.items()}

    def arguments(self, term: BoundTerm) -> tuple[Any, ...]:
        """What the term's objective is called with."""
        match term.reads:
            case "teacher":
                if self.teacher is None:
                    raise ValueError(f"{term.name} compares with a teacher, and this batch has no teacher signal")
                return self.student_logits, self.teacher
            case "tokens":
                return self.student_logits, self.target_ids
            case "student":
                return (self.student_logits,)
            case "earlier_tokens":
                return self.student_logits, *self._earlier_tokens(), self.target_ids
            case "response":
                return self.student_logits, self.embeddings, torch.ones_like(self.target_ids, dtype=torch.bool)
            case "inside":
                raise ValueError(f"{term.name} is about what is inside the models, and a chunk has their logits")

    def _earlier_tokens(self) -> tuple[Int[Tensor, "chunk response"], Bool[Tensor, "chunk response"]]:
        rows, columns = self.places
        ids, real = self.batch.response_ids[rows], self.batch.response_mask[rows]
        return ids, real & (torch.arange(ids.shape[1], device=ids.device) < columns[:, None])


@dataclass(frozen=True)
class Positions:
    """The selected positions of a batch, in row order: what the heads are applied to, a chunk at a time.

    ``places`` are their rows and columns in the batch. ``by_response`` makes every chunk and block one whole response.
    """

    hidden: Float[Tensor, "pos hidden"]
    head: Head
    teacher: TeacherSignal | None
    places: tuple[Int[Tensor, " pos"], Int[Tensor, " pos"]]
    batch: Batch
    chunk_size: int
    by_response: bool

    def chunks(self) -> Iterator[tuple[slice, Chunk]]:
        """All positions, a cache's worth at a time, without gradient to either model."""
        with torch.no_grad():
            for at in self.slices():
                linear = self.head.linear(self.hidden[at])
                for block, teacher in self.blocks(at):
                    yield within(at, block), self.chunk(linear[block], teacher, at, block)

    def slices(self) -> Iterator[slice]:
        """What one matrix product gets."""
        if not self.by_response:
            return _cut(self.hidden.shape[0], self.chunk_size)
        ends = self.places[0].unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
        return (slice(start, end) for start, end in zip([0, *ends][:-1], ends, strict=True))

    def blocks(self, at: slice, room: Tensor | None = None) -> Iterator[tuple[slice, TeacherLogits | None]]:
        """What an objective gets of a chunk, counted from the chunk's start, and what the teacher says of it: written
        over ``room``, where there is one, so that each is gone when the next is asked for."""
        size = at.stop - at.start
        if self.by_response:
            yield slice(0, size), self.reference(at)
            return
        for part in _cut(size, TEACHER_CHUNK if self.hidden.device.type == "cpu" else size):
            teacher = self.reference(within(at, part), room)
            for block in _cut(part.stop - part.start, block_size(self.head.vocab_size, self.hidden.device)):
                yield within(part, block), None if teacher is None else teacher[block]

    @property
    def whole_block(self) -> int:
        """The size of a block that is no remainder."""
        return min(self.chunk_size, whole_block(self.head.vocab_size, self.hidden.device))

    def reference(self, at: slice, room: Tensor | None = None) -> TeacherLogits | None:
        """What the teacher says of some positions."""
        match self.teacher:
            case Live(hidden, head):
                with torch.no_grad():
                    return head.logits(head.linear(hidden[at], room))
            case Dense(logits):
                return logits[at]
            case said:
                return None if said is None else said[at]

    def room_for_teacher(self) -> Tensor | None:
        """Memory that all of a live teacher's logits can be written over in turn; None where they cannot be."""
        match self.teacher:
            case Live(hidden, head) if hidden.device.type == "cpu" and head.writes_over(hidden):
                return hidden.new_empty(min(TEACHER_CHUNK, len(hidden)), head.vocab_size)
            case _:
                return None

    def chunk(self, linear: Tensor, teacher: TeacherLogits | None, at: slice, block: slice) -> Chunk:
        """A block of a chunk, from its logits before the head's transform, to which gradient flows back."""
        rows, columns = self.places
        places = rows[within(at, block)], columns[within(at, block)]
        embeddings = self.head.weight[: self.head.vocab_size].detach()
        return Chunk(self.head.logits(linear), teacher, places, self.batch, embeddings)


def select(
    output: StudentOutput,
    signal: TeacherSignal | None,
    batch: Batch,
    mask: Bool[Tensor, "batch response"],
    chunk_size: int | None = None,
    *,
    by_response: bool = False,
) -> Positions:
    """The positions of a batch where ``mask`` is set, in row order."""
    return Positions(
        hidden=output.hidden[mask],
        head=output.head,
        teacher=None if signal is None else signal[mask],
        places=mask.nonzero(as_tuple=True),  # type: ignore[arg-type]
        batch=batch,
        chunk_size=chunk_size or positions_in_a_product(output.hidden),
        by_response=by_response,
    )


def evaluate_terms(
    output: StudentOutput,
    signal: TeacherSignal | None,
    batch: Batch,
    terms: Sequence[BoundTerm],
    chunk_size: int | None = None,
    compiled: Compiled | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
    """sum_k coefficient_k * value_k, and the values, where value_k = sum over positions of scale_k * objective_k.

    Args:
        output: the student's states and head; gradient flows to both.
        signal: what the teacher says, where a term compares with it.
        batch: the tokens the states belong to.
        terms: the summands.
        chunk_size: positions whose logits exist at once; from the width of the model where unset.
        compiled: what has compiled functions of blocks, and makes more; None leaves all to autograd.
    Returns: the total, differentiable; the values, for the log, constant. Both in at least float32.
    """
    mask = torch.stack([term.scale != 0 for term in terms]).any(0)
    whole_responses = any(term.reads == "response" for term in terms)
    positions = select(output, signal, batch, mask, chunk_size, by_response=whole_responses)
    head = output.head
    return _GradientInForward.apply(terms, mask, positions, compiled, positions.hidden, head.weight, head.bias)


class _GradientInForward(torch.autograd.Function):
    """total(hidden, weight, bias) as a sum over chunks, whose gradient is computed with the value.

    Keeping ``[pos, hidden]`` and the head's gradients until backward is what saves keeping ``[pos, vocab]``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        terms: Sequence[BoundTerm],
        mask: Tensor,
        positions: Positions,
        compiled: Compiled | None,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        hidden_grad, weight_grad, bias_grad = (
            torch.zeros_like(tensor) if tensor is not None and needed else None
            for tensor, needed in zip((hidden, weight, bias), ctx.needs_input_grad[4:], strict=True)
        )
        shares = [_Share(term, term.scale[mask]) for term in terms]
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        values = hidden.new_zeros(len(terms), dtype=precise)
        wanted, vocab = any(ctx.needs_input_grad), positions.head.vocab_size
        # For logits: new pages would take as long as an objective.
        room: Tensor | None = None
        teacher_room = positions.room_for_teacher()
        if not wanted or positions.head.transform is not None or not all(share.everywhere for share in shares):
            compiled = None
        for at in positions.slices():
            grad_logits = _add_chunk(values, shares, positions, at, wanted, (room, teacher_room), compiled)
            if hidden_grad is not None:
                hidden_grad[at] = grad_logits @ weight[:vocab]
            if weight_grad is not None:
                _add_product(weight_grad[:vocab], grad_logits, hidden[at])
            if bias_grad is not None:
                bias_grad[:vocab] += grad_logits.sum(0)
            room = grad_logits if positions.head.writes_over(hidden) else None
            del grad_logits  # before the next chunk's logits come
        ctx.grads = (hidden_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(values)
        return (values * values.new_tensor([term.coefficient for term in terms])).sum(), values

    @staticmethod
    def backward(ctx: Any, total_grad: Tensor, _values_grad: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place and handed over, not kept: the gradient of a large head need not exist twice.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradient of evaluate_terms is handed over once: call backward once")
        scaled = (None if grad is None else grad.mul_(total_grad.to(grad.dtype)) for grad in grads)
        return (None, None, None, None, *scaled)


class _Share:
    """A term and the positions it counts, among all that are selected."""

    def __init__(self, term: BoundTerm, scale: Float[Tensor, " pos"]):
        self.term = term
        self._scale = scale
        self.everywhere = bool((scale != 0).all())

    def of(self, chunk: Chunk, at: slice) -> tuple[Tensor, Chunk]:
        """The term's scales in a chunk, and what it counts of it.

        Positions that only other terms count are left out: something infinite must not meet a scale of 0.
        """
        scale = self._scale[at]
        if not self.everywhere:
            kept = scale != 0
            chunk, scale = chunk[kept], scale[kept]
        return scale, chunk


def _add_chunk(
    values: Tensor,
    shares: Sequence[_Share],
    positions: Positions,
    at: slice,
    wanted: bool,
    rooms: tuple[Tensor | None, Tensor | None],
    compiled: Compiled | None,
) -> Tensor:
    """Add a chunk to the terms' values, and return the gradient of its logits (before the head's transform).

    The gradient is written over the logits, block by block, and the student's logits and the teacher's over ``rooms``
    where they can be.
    """
    linear = positions.head.linear(positions.hidden[at].detach(), rooms[0])
    for block, teacher in positions.blocks(at, rooms[1]):
        if compiled and block.stop - block.start == positions.whole_block:
            chunk = positions.chunk(linear[block], teacher, at, block)
            if (found := _in_one(compiled, shares, chunk, within(at, block))) is not None:
                values += found
                continue
        leaf = linear[block].detach().requires_grad_(wanted)
        total = values.new_zeros(())
        with torch.set_grad_enabled(wanted):
            chunk = positions.chunk(leaf, teacher, at, block)
            for index, share in enumerate(shares):
                term, (scale, part) = share.term, share.of(chunk, within(at, block))
                value = (term.objective(*part.arguments(term), **part.settings(term)) * scale).sum()
                values[index] += value.detach()
                total = total + term.coefficient * value
        if wanted:
            linear[block] = torch.autograd.grad(total, leaf)[0]
    return linear


def _in_one(compiled: Compiled, shares: Sequence[_Share], chunk: Chunk, at: slice) -> Tensor | None:
    """The terms' values, where a compiled function takes such a block."""
    terms = [share.term for share in shares]
    scales = [share.of(chunk, at)[0] for share in shares]
    settings = [chunk.settings(term) for term in terms]
    return compiled(terms, Block(chunk.student_logits, chunk.teacher, chunk.target_ids, scales, settings))


def within(at: slice, block: slice) -> slice:
    """Where a block of a chunk is among all positions."""
    return slice(at.start + block.start, at.start + block.stop)


def positions_in_a_product(hidden: Tensor) -> int:
    """Positions in a matrix product: enough for adding to the head's gradient, ``vocab x hidden``, to stay cheap, and
    few enough for the logits of a chunk to stay small beside that gradient."""
    return max(GPU_CHUNK if hidden.is_cuda else MIN_CHUNK, hidden.shape[-1] // 4)


def whole_block(vocab_size: int, device: torch.device) -> int:
    """Positions of a block that is no remainder, where a chunk has as many."""
    most = block_size(vocab_size, device)
    return min(most, TEACHER_CHUNK) if device.type == "cpu" else most


def block_size(vocab_size: int, device: torch.device) -> int:
    """Positions that objectives get at once."""
    return max(1, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // vocab_size)


def _cut(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _add_product(into: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """into += grad_logits^T hidden, without another matrix of that size where the types allow."""
    if into.dtype == grad_logits.dtype == hidden.dtype:
        into.addmm_(grad_logits.T, hidden)
    else:
        into += grad_logits.T @ hidden
