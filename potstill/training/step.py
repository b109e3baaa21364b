"""One optimiser step: draw, ask the teacher, run the student, reduce, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from potstill import objectives, recipe, weighting
from potstill.errors import NumericsError
from potstill.models.families import Causal
from potstill.objectives.chunked import BoundTerm, evaluate_terms, select
from potstill.sources.dataset import DatasetSource
from potstill.teachers.local import LocalTeacher
from potstill.training.runtime import Runtime
from potstill.types import Batch, StudentOutput


@dataclass(frozen=True)
class LiveStream:
    """A stream of the recipe with its source and its teacher (None where its signal is none)."""

    spec: recipe.Stream
    source: DatasetSource
    teacher: LocalTeacher | None


@dataclass(frozen=True)
class StepResult:
    """What one step did, over all processes. ``values`` are in nats, by ``<stream>/<objective>``."""

    loss: float
    values: dict[str, float]
    grad_norm: float
    response_tokens: int
    tokens: int


@dataclass(frozen=True)
class MicroBatch:
    """One forward's worth of a stream, with the weights of each term."""

    stream: LiveStream
    batch: Batch
    weights: tuple[Tensor, ...]  # of each term, [batch, response]


def train_step(
    student: Causal,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: Sequence[LiveStream],
    batching: recipe.Batching,
    max_grad_norm: float,
    runtime: Runtime,
) -> StepResult:
    """Draw a global batch of every stream and take one optimiser step on the sum of their terms.

    Args:
        student: the model that learns.
        wrapped: the same behind the runtime's wrapper, which exchanges gradients.
        streams: what is drawn and computed; their sources move on by one batch.
        batching: global and micro-batch sizes.
        max_grad_norm: the gradient's global norm is clipped to it.
    Raises: NumericsError, before the update, where a value, the gradient or a teacher logit is not finite.
    """
    micro_batches = [micro for stream in streams for micro in _draw(stream, batching, runtime)]
    denominators = _denominators(micro_batches, runtime)
    optimizer.zero_grad(set_to_none=True)
    values = []
    for index, micro in enumerate(micro_batches):
        batch = micro.batch.to(runtime.device)
        with runtime.autocast(), runtime.accumulating(wrapped, last=index == len(micro_batches) - 1):
            signal = micro.stream.teacher.signal(batch) if micro.stream.teacher else None
            output = StudentOutput(wrapped(batch), student.head)
            total, term_values = evaluate_terms(output, signal, batch, _bound(micro, denominators, runtime))
            # The wrapper averages over processes; every term is already a share of a global mean, so undo it.
            (total * runtime.world_size).backward()
        values.append(term_values)
    result = _reduce(micro_batches, values, runtime)
    if not all(math.isfinite(value) for value in result.values.values()):
        raise _blame(student, micro_batches, denominators, runtime)
    result = replace(result, grad_norm=_clip(student, max_grad_norm))
    optimizer.step()
    return result


def _draw(stream: LiveStream, batching: recipe.Batching, runtime: Runtime) -> list[MicroBatch]:
    share = batching.size // runtime.world_size
    micro_size = min(share, 8) if batching.micro_size == "auto" else batching.micro_size
    drawn = stream.source.next(batching.size, micro_size, runtime.rank, runtime.world_size)
    return [
        MicroBatch(stream, batch, tuple(weighting.weights(term, batch) for term in stream.spec.terms))
        for batch in drawn
    ]


def term_key(stream: recipe.Stream, term: recipe.Term) -> str:
    return f"{stream.name}/{term.objective.name}"


def _denominators(micro_batches: Sequence[MicroBatch], runtime: Runtime) -> dict[str, float]:
    """What each term divides by, over all micro-batches and processes: known before any gradient is taken."""
    own: dict[str, float] = {}
    for micro in micro_batches:
        for term, weight in zip(micro.stream.spec.terms, micro.weights, strict=True):
            key = term_key(micro.stream.spec, term)
            own[key] = own.get(key, 0.0) + weighting.denominator(term, weight)
    return dict(zip(own, runtime.sum(list(own.values())), strict=True))


def _bound(micro: MicroBatch, denominators: dict[str, float], runtime: Runtime) -> list[BoundTerm]:
    bound = []
    for term, weight in zip(micro.stream.spec.terms, micro.weights, strict=True):
        key = term_key(micro.stream.spec, term)
        scale = weighting.scales(term, weight, denominators[key]).to(runtime.student_dtype).to(runtime.device)
        bound.append(BoundTerm(key, _objective(term), term.needs_teacher, term.coefficient, scale))
    return bound


def _objective(term: recipe.Term) -> partial[Tensor]:
    """The function a term names, with its settings."""
    settings = term.objective.model_dump(exclude={"name"})
    return partial(getattr(objectives, term.objective.name), **settings)


def _reduce(micro_batches: Sequence[MicroBatch], values: Sequence[Tensor], runtime: Runtime) -> StepResult:
    """The step's figures over all processes; the gradient norm is not known yet."""
    own: dict[str, float] = {}
    coefficients: dict[str, float] = {}
    for micro, term_values in zip(micro_batches, values, strict=True):
        for term, value in zip(micro.stream.spec.terms, term_values.tolist(), strict=True):
            key = term_key(micro.stream.spec, term)
            own[key] = own.get(key, 0.0) + value
            coefficients[key] = term.coefficient
    counts = [float(sum(micro.batch.num_response_tokens for micro in micro_batches))]
    counts.append(float(sum(micro.batch.num_tokens for micro in micro_batches)))
    *summed, response_tokens, tokens = runtime.sum([*own.values(), *counts])
    by_term = dict(zip(own, summed, strict=True))
    loss = sum(coefficients[key] * value for key, value in by_term.items())
    return StepResult(loss, by_term, float("nan"), int(response_tokens), int(tokens))


def _clip(student: Causal, max_norm: float) -> float:
    """Clip the gradient to a global norm and return the norm it had.

    Raises: NumericsError, naming the first parameter at fault, where it is not finite.
    """
    trained = {name: p for name, p in student.model.named_parameters() if p.grad is not None}
    norm = float(nn.utils.clip_grad_norm_(trained.values(), max_norm))
    if not math.isfinite(norm):
        guilty = next(
            (name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()), "its norm"
        )
        raise NumericsError(
            f"the gradient is not finite (first in {guilty}); the student was not updated",
            "lower optimizer.learning_rate, or use dtype=float32; `potstill resume` goes on from the last checkpoint",
        )
    return norm


@torch.no_grad()
def _blame(
    student: Causal, micro_batches: Sequence[MicroBatch], denominators: dict[str, float], runtime: Runtime
) -> NumericsError:
    """Look again, position by position, for what was not finite: whose logits, which term, which examples."""
    for micro in micro_batches:
        batch = micro.batch.to(runtime.device)
        with runtime.autocast():
            signal = micro.stream.teacher.signal(batch) if micro.stream.teacher else None
            positions = select(student.output(batch), signal, batch, batch.response_mask)
            for at in positions.slices():
                chunk = positions.chunk(at, positions.hidden[at])
                for term in _bound(micro, denominators, runtime):
                    bad = ~term.objective(chunk.student_logits, chunk.reference(term)).isfinite()
                    if not bad.any():
                        continue
                    rows = sorted(set(positions.rows[at][bad].tolist()))
                    whose = _whose_logits(chunk.student_logits[bad], chunk.teacher_logits, bad)
                    return NumericsError(
                        f"{term.name} is not finite ({whose}) on {', '.join(batch.example_ids[row] for row in rows)}; "
                        "the student was not updated",
                        "look at these examples; lower optimizer.learning_rate or use dtype=float32 if they are sound; "
                        "`potstill resume` goes on from the last checkpoint",
                    )
    return NumericsError(
        "a term is not finite on another process; the student was not updated", "see that process's message"
    )


def _whose_logits(student_logits: Tensor, teacher_logits: Tensor | None, bad: Tensor) -> str:
    if teacher_logits is not None and not teacher_logits[bad].isfinite().all():
        return "the teacher's logits are not finite"
    return (
        "the student's logits are not finite"
        if not student_logits.isfinite().all()
        else "both models' logits are finite"
    )
