"""A few steps of training, taken as a run takes them, with what each costs; and what that says of all the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import log
from statistics import median
from typing import Any

import torch
from torch import nn

from potstill import recipe as schema
from potstill import schedules
from potstill.checks.planning.budget import Cost, total
from potstill.checks.planning.lengths import Lengths, move_to, of_steps
from potstill.checks.planning.memory import GIVEN_BACK, Kept, gradients, optimizer_state
from potstill.models.families import Family
from potstill.sources.dataset import DatasetSource
from potstill.sources.source import Share, Source
from potstill.streams import Parts
from potstill.training import optim
from potstill.training.compute import Meter
from potstill.training.dropping import dropped
from potstill.training.recompute import recomputing
from potstill.training.step import LiveStream, train_step
from potstill.training.trainer import training
from potstill.types import Batch

LOOKED_AT = 1000  # steps whose rows are looked at before any is taken; later ones are taken to be like them
AMONG = (0.5, 0.9, 0.25, 0.75, 0.1, 0.6)  # where steps that are timed stand among all, by how much they are fed
DRAWN = 4  # steps that are timed where rows are written as they come
PATIENCE = 15.0  # seconds after which no more are timed, once there are two


@dataclass(frozen=True)
class Taken:
    """One step that was taken. ``writing``: what of it went into writing responses. ``lengths``: of its rows, where
    they were there before."""

    cost: Cost
    writing: Cost
    lengths: Lengths | None


@dataclass(frozen=True)
class Probed:
    """What the steps of a stage cost.

    ``costs`` are those predicted of the first steps, in order; where rows are written as they come, of all of them one
    mean. ``taken`` are the steps that were timed. ``peaks`` are the bytes in use at the most after each step that was
    taken. ``kept``: bytes that the longest forward kept for its gradient. ``trained`` is how many parameters there are
    with gradients of ``gradients`` bytes; ``optimizer`` is its state, ``given_back`` what of that leaves the process
    when it is freed.
    """

    costs: tuple[Cost, ...]
    taken: tuple[Taken, ...]
    peaks: tuple[int, ...]
    kept: int
    trained: int
    gradients: int
    optimizer: int
    given_back: int

    def growth(self, steps: int) -> float:
        """Bytes by which the peak grows from the steps that were taken to all of them.

        Freed memory is in pieces, and libraries keep what they made for each length they have seen (oneDNN about a
        megabyte, for each bfloat16 product): new to a process less and less often. In runs that were watched the peak
        followed the logarithm of the number of steps.
        """
        if len(self.peaks) < 2 or steps <= len(self.peaks):
            return 0.0
        _, slope = line([log(step) for step in range(1, len(self.peaks) + 1)], self.peaks)
        return slope * log(steps / len(self.peaks))


# --- Sources that write -----------------------------------------------------------------------------------------------


def parts_of(stage: schema.Stage) -> list[tuple[float, schema.Stage]]:
    """A stage whose streams mix data and rollouts, as stages that have one of the two, and the share of each."""
    sources = [stream.source for stream in stage.streams]
    mixed = [source for source in sources if isinstance(source, schema.MixtureSource | schema.ReplaySource)]
    if not mixed:
        return [(1.0, _writing_each_step(stage))]
    share = sum(map(_share, mixed)) / len(mixed)
    data, rollouts = (_writing_each_step(_alone(stage, rollout=rollout)) for rollout in (False, True))
    return [part for part in ((1 - share, data), (share, rollouts)) if part[0] > 0]


def updates_of(stage: schema.Stage) -> int:
    """How many steps a written batch is trained on, where that is the same for all streams; else one."""
    rollouts = [rollout for stream in stage.streams if (rollout := schema.rollout_of(stream.source))]
    updates = {rollout.num_updates_per_batch for rollout in rollouts}
    return updates.pop() if len(updates) == 1 else 1


def _share(source: schema.MixtureSource | schema.ReplaySource) -> float:
    """The mean share of steps on what is written. Of a replay, which adapts, the share that it begins with."""
    if isinstance(source, schema.ReplaySource):
        return source.student_share
    share = schedules.build(source.rollout_share)
    return sum(share.value((at + 0.5) / 100) for at in range(100)) / 100


def _alone(stage: schema.Stage, *, rollout: bool) -> schema.Stage:
    def one(stream: schema.Stream) -> schema.Stream:
        if not isinstance(stream.source, schema.MixtureSource | schema.ReplaySource):
            return stream
        return stream.model_copy(update={"source": stream.source.rollout if rollout else schema.DatasetSource()})

    return stage.model_copy(update={"streams": tuple(map(one, stage.streams))})


def _writing_each_step(stage: schema.Stage) -> schema.Stage:
    """The stage with a rollout of one batch for each step, so that every step that is taken costs the same."""

    def one(stream: schema.Stream) -> schema.Stream:
        if not isinstance(stream.source, schema.RolloutSource) or stream.source.policy.name == "teacher":
            return stream
        once = stream.source.model_copy(update={"batches_per_rollout": 1, "num_updates_per_batch": 1})
        return stream.model_copy(update={"source": once})

    return stage.model_copy(update={"streams": tuple(map(one, stage.streams))})


class Watched:
    """A source that may ask models for what it gives: what that costs is noted."""

    def __init__(self, source: Source):
        self._source = source
        self.meter: Meter | None = None
        self.cost = Cost()

    def next(self, share: Share, progress: float) -> list[Batch]:
        flops, begun = self.meter.flops if self.meter else 0.0, time.perf_counter()
        drawn = self._source.next(share, progress)
        self.cost += Cost(time.perf_counter() - begun, (self.meter.flops if self.meter else 0.0) - flops)
        return drawn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def watched(streams: Sequence[LiveStream]) -> list[LiveStream]:
    return [
        stream if isinstance(stream.source, DatasetSource) else replace(stream, source=Watched(stream.source))
        for stream in streams
    ]


# --- Steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """What takes the steps of a stage: all that ``train_step`` needs, and nothing that a run keeps."""

    parts: Parts
    streams: Sequence[LiveStream]
    families: Sequence[Family]  # whose work is counted
    optimizer: torch.optim.Optimizer
    peak: Callable[[], int]
    peaks: list[int] = field(default_factory=list)

    def take(self, step: int) -> tuple[Cost, Cost]:
        """The cost of a step with this number, and of the writing in it."""
        stage, runtime, student = self.parts.stage, self.parts.runtime, self.parts.student
        move_to(self.streams, step, stage.batch.size)
        sources = [stream.source for stream in self.streams if isinstance(stream.source, Watched)]
        out = dropped([stream.spec for stream in self.streams], self.parts.seed, step)
        begun = time.perf_counter()
        with Meter().reading(self.families) as meter:
            for source in sources:
                source.meter, source.cost = meter, Cost()
            result = train_step(
                student,
                student,
                self.optimizer,
                self.streams,
                stage.batch,
                stage.optimizer.max_grad_norm,
                runtime,
                0.5,
                out,
            )
        cost = Cost(time.perf_counter() - begun, meter.flops, result.response_tokens)
        self.peaks.append(self.peak())
        return cost, total(source.cost for source in sources)


def probe(parts: Parts, streams: Sequence[LiveStream], families: Sequence[Family], peak: Callable[[], int]) -> Probed:
    """Take a few steps of a stage, typical ones and the longest, and tell from them what all of its steps cost.

    The learning rate is that of the very first step, so the student stays nearly what it was.

    Args:
        parts: of the streams. families: the models whose work is counted. peak: tells the bytes in use at the most.
    """
    stage, student = parts.stage, parts.student
    matches = nn.ModuleList([match for stream in streams for match in stream.matches])
    optimizer = optim.build(nn.ModuleList([student, matches]), stage.optimizer)
    optim.set_learning_rate(optimizer, stage.optimizer, 0.0)
    steps, kept = Steps(parts, watched(streams), families, optimizer, peak), Kept(student.parameters())
    at_hand = all(isinstance(stream.source, DatasetSource) for stream in streams)
    looked_at = min(stage.budget.steps or LOOKED_AT, LOOKED_AT)
    lengths = of_steps(streams, parts, range(looked_at)) if at_hand else []
    order = sorted(range(len(lengths)), key=lambda step: lengths[step].all_positions)
    with ExitStack() as stack:
        stack.enter_context(training(student, dropout=stage.dropout))
        stack.enter_context(recomputing(student, wanted=stage.gradient_checkpointing, dropout=stage.dropout))
        steps.take(order[len(order) // 2] if order else 0)  # a warm-up
        with kept.counting():
            steps.take(order[-1] if order else 1)
        asked = [order[int(place * len(order))] for place in AMONG] if order else range(2, 2 + DRAWN)
        taken = list(_timed(steps, asked, lengths))
    trained = [p for p in (*student.parameters(), *matches.parameters()) if p.requires_grad]
    return Probed(
        costs=tuple(_costs(lengths, taken)) if lengths else (_mean(taken),),
        taken=tuple(taken),
        peaks=tuple(steps.peaks),
        kept=kept.most,
        trained=sum(p.numel() for p in trained),
        gradients=gradients(trained),
        optimizer=optimizer_state(optimizer),
        given_back=optimizer_state(optimizer, at_least=GIVEN_BACK),
    )


def _timed(steps: Steps, asked: Sequence[int], lengths: Sequence[Lengths]) -> Iterator[Taken]:
    begun = time.perf_counter()
    for count, step in enumerate(asked):
        if count >= 2 and time.perf_counter() - begun > PATIENCE:
            return
        yield Taken(*steps.take(step), lengths[step] if lengths else None)


# --- What they say of the others --------------------------------------------------------------------------------------


def _costs(lengths: Sequence[Lengths], taken: Sequence[Taken]) -> Iterator[Cost]:
    """Of each step: operations by how much models are fed, and seconds by operations."""
    operations = _flops([step.positions for step in lengths], taken)
    idle, per_flop = line([one.cost.flops for one in taken], [one.cost.seconds for one in taken])
    for step, flops in zip(lengths, operations, strict=True):
        yield Cost(idle + per_flop * flops, flops, step.response_tokens)


def _flops(fed: Sequence[tuple[float, ...]], taken: Sequence[Taken]) -> list[float]:
    """Operations are so many for each position of a stream: exactly, whatever the models, so some steps tell them."""
    seen = torch.tensor([one.lengths.positions for one in taken if one.lengths], dtype=torch.float64)
    counted = torch.tensor([one.cost.flops for one in taken], dtype=torch.float64)
    # The least norm where the steps do not tell streams apart: then those to come do not differ either.
    per_position = torch.linalg.lstsq(seen, counted[:, None], driver="gelsd").solution
    return (torch.tensor(fed, dtype=torch.float64) @ per_position)[:, 0].tolist()


def line(at: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope through points that a busy machine may have moved up: medians (Theil 1950, Sen 1968).

    Neither is below 0; where one would be, the line is level or goes through 0.
    """
    pairs = [(i, j) for i in range(len(at)) for j in range(i) if at[i] != at[j]]
    slope = median((values[i] - values[j]) / (at[i] - at[j]) for i, j in pairs) if pairs else 0.0
    if slope <= 0:
        return median(values), 0.0
    start = median(value - slope * place for place, value in zip(at, values, strict=True))
    if start >= 0:
        return start, slope
    return 0.0, median(value / place for place, value in zip(at, values, strict=True))


def _mean(taken: Sequence[Taken]) -> Cost:
    """Of a step whose rows are written as they come."""
    return Cost(
        median(one.cost.seconds for one in taken),
        sum(one.cost.flops for one in taken) / len(taken),
        sum(one.cost.response_tokens for one in taken) / len(taken),
    )


def less_writing(probed: Probed, updates: int) -> Probed:
    """The same, where what is written is trained on in several steps."""
    if updates == 1:
        return probed
    written = total(one.writing for one in probed.taken).times(1 / len(probed.taken))
    less = written.times(1 / updates - 1)
    return replace(probed, costs=tuple(cost + less for cost in probed.costs))


def then(first: Probed, later: Probed, steps: int) -> Probed:
    """The same, where after so many steps the others cost what ``later`` says; memory is that of the first."""
    if len(first.costs) != len(later.costs) or len(first.costs) <= steps:
        return first
    return replace(first, costs=(*first.costs[:steps], *later.costs[steps:]))


def mixed(parts: Sequence[tuple[float, Probed]]) -> Probed:
    """What steps cost that are of one part or another, by the share of each; memory is that of the largest."""
    if len(parts) == 1:
        return parts[0][1]
    means = [total(one.costs).times(share / len(one.costs)) for share, one in parts]
    largest = max((one for _, one in parts), key=lambda one: one.kept)
    return replace(largest, costs=(total(means),), taken=tuple(step for _, one in parts for step in one.taken))
