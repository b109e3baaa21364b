"""Whether what lies between the matrix products of a training is compiled: decided once, before it begins.

A compiler takes some ten seconds, and saves half of what autograd takes between the products, or nothing. So it is
asked where a training will spend longer than that there, and its work is taken where it is faster. What was found is
written down with the recipe: a run that is resumed adds up in the order in which it began.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.objectives import sparse
from potstill.objectives.chunked import evaluate_terms, positions_in_a_product
from potstill.objectives.compiled import READS, Compiled
from potstill.training.runtime import Runtime, micro_size_of
from potstill.training.terms import LiveTerm
from potstill.types import Batch, Head, Live, StudentOutput, TeacherSignal

WORTH_S = 30.0  # between products, of a process: what compiling saves of it is more than compiling takes
MUST_GAIN = 1.15  # of a step's evaluation of terms; less is not worth another order of adding up
MOST_PER_LOGIT_S = 20e-9  # four times what a slow objective took in the middle of 2026: below it nothing is timed
LOOKED_AT = 1000  # rows, to tell how long responses are
WIDTH = 8  # of states whose products take next to no time


@dataclass(frozen=True)
class Verdict:
    """Whether to compile, and why, in words for a person; none where there was nothing to consider."""

    pays: bool
    why: str = ""


def can_compile(terms: Sequence[LiveTerm]) -> bool:
    """Whether a stream's terms are the same at every step, and about one position's logits."""
    return bool(terms) and all(
        term.spec.objective.reads in READS
        and not term.changes
        and not isinstance(term.spec.objective, recipe.PolicyGradient)
        for term in terms
    )


def verdict(
    streams: Sequence[recipe.Stream], vocab_size: int, positions: float, at_once: int, runtime: Runtime
) -> Verdict:
    """Whether compiling pays.

    Args:
        streams: of the stage. vocab_size: of the logits.
        positions: of responses that each stream will evaluate in this process, ``at_once`` of them in a micro-batch.
        runtime: where, and in which precision.
    """
    found = [(spec, [LiveTerm(spec.name, term) for term in spec.terms]) for spec in streams]
    able = [(spec, terms) for spec, terms in found if can_compile(terms)]
    if not able or positions * vocab_size * len(able) * MOST_PER_LOGIT_S < WORTH_S:
        return Verdict(pays=False)
    trials = [_Trial(spec, terms, vocab_size, runtime, at_once) for spec, terms in able]
    before = sum(trial.seconds(None) for trial in trials)
    if before * positions < WORTH_S:
        return Verdict(pays=False)
    makers = [Compiled() for _ in able]
    after = sum(trial.seconds(maker) for trial, maker in zip(trials, makers, strict=True))
    if left := [why for maker in makers for why in maker.left]:
        return Verdict(pays=False, why=f"terms are not compiled: {left[0]}")
    if before < MUST_GAIN * after:
        return Verdict(
            pays=False, why=f"terms are not compiled, which makes them only {before / after:.2f} times as fast"
        )
    return Verdict(pays=True, why=f"terms are compiled, which makes them {before / after:.1f} times as fast here")


def prepared(spec: recipe.Stream, vocab_size: int, runtime: Runtime) -> tuple[Compiled, float]:
    """What compiles the terms of a stream, with a function of its whole blocks made, and the seconds that took: before
    training, whose time is for training."""
    begun, compiled = time.perf_counter(), Compiled()
    terms = [LiveTerm(spec.name, term) for term in spec.terms]
    _Trial(spec, terms, vocab_size, runtime).seconds(compiled, repeats=1)
    compiled.num_taken = 0
    return compiled, time.perf_counter() - begun


def positions_of(stage: recipe.Stage, rows: Sequence[Tokenised], world_size: int) -> tuple[float, int]:
    """About how many response tokens a stage trains on in each process, and how many of them in a micro-batch; 0 where
    its budget does not say."""
    few = rows[:LOOKED_AT]
    length, budget = sum(len(row.response_ids) for row in few) / len(few), stage.budget
    at_once = round(micro_size_of(stage.batch, world_size) * length)
    if budget.tokens is not None:
        return budget.tokens / world_size, at_once
    if budget.steps is not None:
        return budget.steps * stage.batch.size * length / world_size, at_once
    return (budget.epochs or 0.0) * len(rows) * length / world_size, at_once


class _Trial:
    """The terms of a stream on states that are drawn, of as many positions as a matrix product takes, or fewer."""

    def __init__(
        self,
        spec: recipe.Stream,
        terms: Sequence[LiveTerm],
        vocab_size: int,
        runtime: Runtime,
        at_once: int | None = None,
    ):
        generator, device = torch.Generator().manual_seed(0), runtime.device

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device, runtime.student_dtype)

        self._runtime = runtime
        most = positions_in_a_product(drawn(1, WIDTH))
        states = drawn(1, most if at_once is None else max(1, min(most, at_once)), WIDTH)
        head = Head(drawn(vocab_size, WIDTH), None, None, vocab_size)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=device)
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=device)
        self._batch = Batch(ids[:, :1], mask[:, :1], ids, mask, ("drawn",))
        self._output = StudentOutput(states.requires_grad_(), head)
        self._said = _said(spec.signal, Live(states.detach().flip(1), head))
        scale = mask.to(states.dtype) / mask.numel()
        self._terms = [term.bound(scale, 0.5, self._batch, None) for term in terms]

    def seconds(self, compiled: Compiled | None, repeats: int = 3) -> float:
        """Of a position, at best."""
        found = []
        for _ in range(1 + repeats):
            begun = time.perf_counter()
            with self._runtime.autocast():
                evaluate_terms(self._output, self._said, self._batch, self._terms, compiled=compiled)[1].tolist()
            found.append(time.perf_counter() - begun)
        return min(found[1:]) / self._batch.num_response_tokens


def _said(signal: recipe.AnySignal, live: Live) -> TeacherSignal | None:
    """What a teacher says in the form of a signal."""
    with torch.no_grad():
        match signal:
            case recipe.LogitsSignal():
                return live
            case recipe.TopKSignal(k=k, temperature=temperature):
                return sparse.top_k(live.head(live.hidden), k, temperature=temperature)
            case recipe.SampledSignal(draws=draws, temperature=temperature):
                generator = torch.Generator(live.hidden.device).manual_seed(0)
                return sparse.draw(live.head(live.hidden), draws, temperature=temperature, generator=generator)
    return None
