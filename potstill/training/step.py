"""One optimiser step: draw, ask the teacher, run the student, reduce, update."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from potstill import recipe, weighting
from potstill.errors import NumericsError
from potstill.features.matching import Match, parameters_of
from potstill.models.families import Family, evaluating
from potstill.objectives.chunked import BoundTerm, Chunk, evaluate_terms, select
from potstill.objectives.compiled import Compiled
from potstill.sources.dataset import DatasetSource
from potstill.sources.source import Share, Source
from potstill.teachers.cache.cached import CachedTeacher
from potstill.teachers.local import OncePerBatch, SignalSource
from potstill.training.runtime import Runtime, micro_size_of
from potstill.training.terms import LiveTerm
from potstill.training.values import evaluate, run_student
from potstill.types import Batch, Tap, TeacherSignal


@dataclass(frozen=True)
class LiveStream:
    """A stream of the recipe with its source, its terms, and its teacher (None where its signal is none)."""

    spec: recipe.Stream
    source: Source
    teacher: SignalSource | None
    terms: tuple[LiveTerm, ...]
    compiled: Compiled | None = None  # where what lies between the products of its terms is compiled
    compiling_s: float = 0.0

    @property
    def matches(self) -> tuple[Match, ...]:
        """Of the terms that look inside the models."""
        return tuple(term.match for term in self.terms if term.match is not None)

    @property
    def cache(self) -> CachedTeacher | None:
        """Its teacher, where that keeps what it says."""
        return self.teacher if isinstance(self.teacher, CachedTeacher) else None

    @property
    def is_taught(self) -> bool:
        """Whether its teacher has said all that it is going to: every row of its source is kept."""
        if not isinstance(self.source, DatasetSource):
            return not self.spec.asks_teacher
        if self.teacher is None:  # what it wrote is there since before training
            return True
        return self.cache is not None and self.cache.keeps_all and self.source.position >= len(self.source.examples)

    def read_before(self) -> list[int]:
        """Which of the batches that come again its teacher has read, and would not read again."""
        once = self.teacher if isinstance(self.teacher, OncePerBatch) else None
        return [at for at, batch in enumerate(self.source.held()) if once and once.has_read(batch)]

    def read_again(self, which: Sequence[int]) -> None:
        """Let the teacher of a restarted run read what it had read before: no work of the method's, and not counted."""
        held = self.source.held()
        for at in which:
            assert self.teacher is not None
            self.teacher.signal(held[at])

    @property
    def places(self) -> tuple[Tap, ...]:
        """Where the student is looked into."""
        return tuple({tap: None for match in self.matches for tap in match.student_taps})


@dataclass(frozen=True)
class StepResult:
    """What one step did, over all processes.

    ``values`` are in nats, by ``<stream>/<term>``; ``teacher_tokens`` of batches that the teacher was asked about.
    ``selected`` is the share of response tokens that a term was about, of terms that leave some out.
    """

    loss: float
    values: dict[str, float]
    grad_norm: float
    response_tokens: int
    tokens: int
    teacher_tokens: int
    selected: dict[str, float]


@dataclass(frozen=True)
class MicroBatch:
    """One forward's worth of a stream, with the weights of each term; the signal where weighing needed it.

    ``gaps`` is how much likelier each response is to the teacher, where a term goes by that.
    """

    stream: LiveStream
    batch: Batch
    weights: tuple[Tensor, ...]  # of each term, [batch, response], on the CPU
    signal: TeacherSignal | None
    gaps: Tensor | None = None

    def ask(self) -> TeacherSignal | None:
        """What the teacher says about the batch."""
        if self.signal is not None or self.stream.teacher is None:
            return self.signal
        return self.stream.teacher.signal(self.batch)


def train_step(
    student: Family,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: Sequence[LiveStream],
    batching: recipe.Batching,
    max_grad_norm: float,
    runtime: Runtime,
    progress: float,
    dropped: Collection[str] = (),
) -> StepResult:
    """Draw a global batch of every stream and take one optimiser step on the sum of their terms.

    Args:
        student: the model that learns.
        wrapped: the same behind the runtime's wrapper, which exchanges gradients.
        streams: what is drawn and computed; their sources move on by one batch, their schedules by one step.
        batching: global and micro-batch sizes.
        max_grad_norm: the gradient's global norm is clipped to it.
        progress: share of the budget spent, for the schedules.
        dropped: streams that take no part, the same ones on all processes: their batch is drawn and let go, and their
            terms have no value.
    Raises: NumericsError, before the update, where a value, the gradient or a teacher logit is not finite.
    """
    for store in {id(store): store for stream in streams if stream.cache for store in stream.cache.stores}.values():
        store.next_step()
    asked_before = _asked(streams)
    micro_batches = [
        micro
        for stream in streams
        for micro in _draw(stream, student, batching, runtime, progress, dropped=stream.spec.name in dropped)
    ]
    anchor(micro_batches, runtime)
    divide_by = denominators(micro_batches, runtime)
    optimizer.zero_grad(set_to_none=True)
    values = []
    for index, micro in enumerate(micro_batches):
        with runtime.autocast(), runtime.accumulating(wrapped, last=index == len(micro_batches) - 1):
            signal = micro.ask()
            output, inside = run_student(student, wrapped, micro.batch, micro.stream.places)
            terms = bound(micro, divide_by, runtime, progress)
            if inside:
                matches = [term.match for term in micro.stream.terms]
                total, term_values = evaluate(output, inside, signal, micro.batch, terms, matches)
            else:
                compiled = micro.stream.compiled
                total, term_values = evaluate_terms(output, signal, micro.batch, terms, compiled=compiled)
            # The wrapper averages over processes; every term is already a share of a global mean, so undo it.
            (total * runtime.world_size).backward()
        values.append(term_values)
    result = _reduce(micro_batches, values, runtime, progress, _asked(streams) - asked_before)
    if not all(math.isfinite(value) for value in result.values.values()):
        raise _blame(student, micro_batches, divide_by, runtime, progress)
    maps = parameters_of([match for stream in streams if stream.spec.name not in dropped for match in stream.matches])
    runtime.average_gradients(maps)
    result = replace(result, grad_norm=_clip(student, maps, max_grad_norm))
    optimizer.step()
    for term in (term for stream in streams for term in stream.terms if term.key in result.values):
        term.observe(result.values[term.key], progress)
    return result


def _draw(
    stream: LiveStream,
    student: Family,
    batching: recipe.Batching,
    runtime: Runtime,
    progress: float,
    *,
    dropped: bool = False,
) -> list[MicroBatch]:
    """The next global batch, of which this process has its share; none of it where the stream is dropped."""
    with runtime.autocast():
        drawn = stream.source.next(share_of(stream, batching, runtime), progress)
    return [] if dropped else [weighed(stream, batch.to(runtime.device), student, runtime) for batch in drawn]


def share_of(stream: LiveStream, batching: recipe.Batching, runtime: Runtime) -> Share:
    """This process's share of a stream's global batch."""
    micro_size = micro_size_of(batching, runtime.world_size)
    # The one objective whose value goes by what shares a micro-batch takes rows as they are drawn.
    goes_by_parts = any(isinstance(term.spec.objective, recipe.HiddenCorrelation) for term in stream.terms)
    return Share(batching.size, micro_size, runtime.rank, runtime.world_size, by_length=not goes_by_parts)


def weighed(stream: LiveStream, batch: Batch, student: Family, runtime: Runtime) -> MicroBatch:
    """A batch with the weights of its tokens; where they go by a score, both models look at it first."""
    needed = {score for term in stream.terms for score in term.scores}
    signal: TeacherSignal | None = None
    scores: dict[recipe.Score, Tensor] = {}
    if needed:
        with torch.no_grad(), runtime.autocast(), evaluating(student):
            signal = stream.teacher.signal(batch) if stream.teacher else None
            output = student.output(batch)
            scores = {score: weighting.scores(score, output, signal, batch) for score in needed}
    specs = (term.spec.weighting for term in stream.terms)
    weights = tuple(weighting.weights(spec, batch, scores[spec.score] if spec.score else None) for spec in specs)
    gaps = _gaps(scores, batch) if any(term.curriculum for term in stream.terms) else None
    return MicroBatch(stream, batch, weights, signal, gaps)


def _gaps(scores: dict[recipe.Score, Tensor], batch: Batch) -> Tensor:
    """exp(mean log-probability) of each response, the teacher's less the student's; on the CPU."""
    lengths = batch.response_mask.sum(1).cpu().clamp_min(1)
    return (-scores["teacher_loss"].sum(1) / lengths).exp() - (-scores["student_loss"].sum(1) / lengths).exp()


def anchor(micro_batches: Sequence[MicroBatch], runtime: Runtime) -> None:
    """Tell the curricula the mean gap of the first global batch that they see."""
    for stream in {id(micro.stream): micro.stream for micro in micro_batches}.values():
        waiting = [term.curriculum for term in stream.terms if term.curriculum and not term.curriculum.is_anchored]
        gaps = [micro.gaps for micro in micro_batches if micro.stream is stream and micro.gaps is not None]
        if waiting:
            total, count = runtime.sum([float(sum(part.sum() for part in gaps)), float(sum(map(len, gaps)))])
            for curriculum in waiting:
                curriculum.anchor(total / count)


def denominators(micro_batches: Sequence[MicroBatch], runtime: Runtime) -> dict[str, float]:
    """What each term divides by, over all micro-batches and processes: known before any gradient is taken."""
    own: dict[str, float] = {}
    for micro in micro_batches:
        for term, weight in zip(micro.stream.terms, micro.weights, strict=True):
            own[term.key] = own.get(term.key, 0.0) + weighting.denominator(term.spec, weight)
    return dict(zip(own, runtime.sum(list(own.values())), strict=True))


def bound(micro: MicroBatch, divide_by: dict[str, float], runtime: Runtime, progress: float) -> list[BoundTerm]:
    """The terms as the evaluator takes them, for one micro-batch."""
    terms = []
    for term, weight in zip(micro.stream.terms, micro.weights, strict=True):
        scale = weighting.scales(term.spec, weight, divide_by[term.key]).to(runtime.student_dtype).to(runtime.device)
        terms.append(term.bound(scale, progress, micro.batch, micro.gaps))
    return terms


def _asked(streams: Sequence[LiveStream]) -> int:
    """Tokens that teachers behind caches have been asked about."""
    return sum(stream.cache.count.asked_tokens for stream in streams if stream.cache)


def _reduce(
    micro_batches: Sequence[MicroBatch], values: Sequence[Tensor], runtime: Runtime, progress: float, asked: int
) -> StepResult:
    """The step's figures over all processes; the gradient norm is not known yet.

    ``asked`` tokens were no teacher's words from a cache, in streams that have one.
    """
    own: dict[str, float] = {}
    coefficients: dict[str, float] = {}
    for micro, term_values in zip(micro_batches, values, strict=True):
        for term, value in zip(micro.stream.terms, term_values.tolist(), strict=True):
            own[term.key] = own.get(term.key, 0.0) + value
            coefficients[term.key] = term.coefficient(progress)
    live = (micro for micro in micro_batches if micro.stream.spec.signal.name != "none" and not micro.stream.cache)
    counts = [
        float(sum(micro.batch.num_response_tokens for micro in micro_batches)),
        float(sum(micro.batch.num_tokens for micro in micro_batches)),
        float(sum(micro.batch.num_tokens for micro in live) + asked),
    ]
    summed = runtime.sum([*own.values(), *counts])
    by_term = dict(zip(own, summed, strict=False))
    response_tokens, tokens, teacher_tokens = map(int, summed[len(own) :])
    loss = sum(coefficients[key] * value for key, value in by_term.items())
    selected = _selected(micro_batches, runtime)
    return StepResult(loss, by_term, float("nan"), response_tokens, tokens, teacher_tokens, selected)


def _selected(micro_batches: Sequence[MicroBatch], runtime: Runtime) -> dict[str, float]:
    """The share of response tokens with a weight, of each term whose weighting may leave tokens out."""
    kept: dict[str, float] = {}
    of: dict[str, float] = {}
    for micro in micro_batches:
        for term, weight in zip(micro.stream.terms, micro.weights, strict=True):
            if term.spec.weighting.selects:
                kept[term.key] = kept.get(term.key, 0.0) + float((weight > 0).sum())
                of[term.key] = of.get(term.key, 0.0) + micro.batch.num_response_tokens
    summed = runtime.sum([*kept.values(), *of.values()]) if kept else []
    return {key: summed[at] / summed[at + len(kept)] for at, key in enumerate(kept)}


def _clip(student: Family, maps: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip the gradient, that of maps of channels included, to a global norm and return the norm it had.

    Raises: NumericsError, naming the first parameter at fault, where it is not finite.
    """
    named = [*student.model.named_parameters(), *((f"map {at} of channels", p) for at, p in enumerate(maps))]
    trained = {name: p for name, p in named if p.grad is not None}
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
    student: Family,
    micro_batches: Sequence[MicroBatch],
    divide_by: dict[str, float],
    runtime: Runtime,
    progress: float,
) -> NumericsError:
    """Look again, position by position, for what was not finite: whose logits, which term, which examples."""
    for micro in micro_batches:
        with runtime.autocast():
            output, inside = run_student(student, student, micro.batch, micro.stream.places)
            signal, terms = micro.ask(), bound(micro, divide_by, runtime, progress)
            for term, live in zip(terms, micro.stream.terms, strict=True):
                if live.match is None:
                    continue
                _, value = evaluate(output, inside, signal, micro.batch, [term], [live.match])
                if not value.isfinite().all():
                    return _not_finite(term.name, "what is inside one of the models", micro.batch.example_ids)
            positions = select(output, signal, micro.batch, micro.batch.response_mask)
            for _, chunk in positions.chunks():
                for term in terms:
                    if term.reads in ("response", "inside"):
                        continue  # of finite logits the first is finite, and the second was looked at
                    bad = ~term.objective(*chunk.arguments(term), **chunk.settings(term)).isfinite()
                    if not bad.any():
                        continue
                    rows = sorted(set(chunk.places[0][bad].tolist()))
                    return _not_finite(
                        term.name, _whose_logits(chunk[bad]), [micro.batch.example_ids[row] for row in rows]
                    )
    return NumericsError(
        "a term is not finite on another process; the student was not updated", "see that process's message"
    )


def _not_finite(term: str, whose: str, example_ids: Sequence[str]) -> NumericsError:
    return NumericsError(
        f"{term} is not finite ({whose}) on {', '.join(example_ids)}; the student was not updated",
        "look at these examples; lower optimizer.learning_rate or use dtype=float32 if they are sound; "
        "`potstill resume` goes on from the last checkpoint",
    )


def _whose_logits(chunk: Chunk) -> str:
    if isinstance(chunk.teacher, Tensor) and not chunk.teacher.isfinite().all():
        return "the teacher's logits are not finite"
    if not chunk.student_logits.isfinite().all():
        return "the student's logits are not finite"
    return "both models' logits are finite"
