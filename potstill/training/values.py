"""The terms of one micro-batch from one forward: those on logits, and those on what is inside both models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.features.matching import Match
from potstill.models import taps
from potstill.models.families import Family
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.types import Batch, Inside, Live, StudentOutput, Tap, TeacherSignal


def run_student(
    student: Family, wrapped: nn.Module, batch: Batch, places: Sequence[Tap]
) -> tuple[StudentOutput, Inside]:
    """What the student says of a batch, and what it has at those places inside; gradient flows through both."""
    if not places:
        return StudentOutput(wrapped(batch), student.head), {}
    with taps.tapping(student, places) as seen:
        hidden = wrapped(batch)
    return StudentOutput(hidden, student.head), taps.read(student, seen, batch)


def evaluate(
    output: StudentOutput,
    inside: Inside,
    signal: TeacherSignal | None,
    batch: Batch,
    terms: Sequence[BoundTerm],
    matches: Sequence[Match | None],
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
    """sum_k coefficient_k * value_k, and the values, as ``evaluate_terms``, for terms of both kinds.

    Args:
        output, inside: what the student said, and had inside.
        signal: what the teacher says, and has inside.
        batch: whose tokens they are about. terms: in order. matches: of each term; None of one on logits.
        chunk_size: of those on logits.
    """
    of_logits = [term for term, match in zip(terms, matches, strict=True) if match is None]
    if len(of_logits) == len(terms):
        return evaluate_terms(output, signal, batch, terms, chunk_size)
    told: list[Tensor] = []
    if of_logits:
        total, found = evaluate_terms(output, signal, batch, of_logits, chunk_size)
        values = iter(found.unbind())
    else:
        total, values = _of_everything(output), iter(told)
    for term, match in zip(terms, matches, strict=True):
        if match is None:
            told.append(next(values))
            continue
        assert isinstance(signal, Live)  # the schema gives such a term a teacher that runs
        value = match.value(term.objective, inside, signal.inside, term.scale, batch.response_mask)
        total = total + term.coefficient * value
        told.append(value.detach())
    return total, torch.stack([value.to(total.dtype) for value in told])


def _of_everything(output: StudentOutput) -> Float[Tensor, ""]:
    """0, with a gradient of 0 for every weight: a wrapper that exchanges gradients waits for all of them."""
    parts = (output.hidden, output.head.weight, output.head.bias)
    return sum((part.sum() * 0 for part in parts if part is not None), output.hidden.new_zeros(()))
