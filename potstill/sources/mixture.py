"""Two sources, of which each step uses one: a fixed or scheduled share, or DistiLLM's with its replay buffer.

Which one is decided by a draw that belongs to the step, so all processes decide the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from potstill.data.examples import Tokenised
from potstill.data.order import seed_of
from potstill.schedules import DistillmSchedule, Schedule
from potstill.sources.dataset import DatasetSource, micro_batches
from potstill.sources.rollout import RolloutSource
from potstill.sources.source import Share, Source
from potstill.types import Batch


class MixtureSource:
    """A batch of the rollout with the scheduled probability, otherwise one of the data (GKD's lambda)."""

    def __init__(self, data: Source, rollout: Source, share: Schedule, *, seed: int):
        self.data, self._rollout, self._share, self._seed = data, rollout, share, seed
        self._step = 0
        self._last = data

    def next(self, share: Share, progress: float) -> list[Batch]:
        chance = chance_of(self._seed, self._step)
        self._step += 1
        self._last = self._rollout if chance < self._share.value(progress) else self.data
        return self._last.next(share, progress)

    def observe(self, validation: Mapping[str, float]) -> None:
        for source in (self.data, self._rollout):
            source.observe(validation)

    def figures(self) -> dict[str, float]:
        return {"is_rollout": float(self._last is self._rollout)} | self._last.figures()

    def held(self) -> list[Batch]:
        return self._rollout.held()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "data": self.data.state_dict(), "rollout": self._rollout.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self.data.load_state_dict(state["data"])
        self._rollout.load_state_dict(state["rollout"])


class ReplaySource:
    """The student's text, new or out of a buffer, with a share that may adapt; otherwise the data (DistiLLM).

    Args:
        data: what is used when the student's text is not.
        rollout: writes the student's text.
        schedule: the share, and how much of it is written anew.
        capacity: sequences in this process's part of the buffer; beyond it the oldest go.
        seed: of the decisions and of what is replayed.
    """

    def __init__(
        self, data: DatasetSource, rollout: RolloutSource, schedule: DistillmSchedule, capacity: int, *, seed: int
    ):
        self.data, self._rollout, self._schedule, self._seed = data, rollout, schedule, seed
        self._capacity = capacity
        self._buffer: list[Tokenised] = []
        self._step = 0
        self._kind: Literal["data", "new", "replayed"] = "data"

    def next(self, share: Share, progress: float) -> list[Batch]:
        chance = chance_of(self._seed, self._step)
        self._step += 1
        self._kind = self._choose(chance, progress)
        if self._kind == "data":
            return self.data.next(share, progress)
        if self._kind == "replayed":
            rows = self._replayed(share.size)
        else:
            rows = [row for row, _ in self._rollout.write(share)]
            self._buffer = [*self._buffer, *rows][-self._capacity :]
        return [replace(batch, again="in_this_run") for batch in micro_batches(rows, share, self.data.pad_id)]

    def _choose(self, chance: float, progress: float) -> Literal["data", "new", "replayed"]:
        if chance >= self._schedule.value(progress):
            return "data"
        full = len(self._buffer) >= self._capacity
        return "replayed" if full and chance >= self._schedule.generated(progress) else "new"

    def _replayed(self, count: int) -> list[Tokenised]:
        generator = torch.Generator().manual_seed(seed_of(self._seed, "replay", self._step))
        order = torch.randperm(len(self._buffer), generator=generator)[:count]
        return [self._buffer[at] for at in order]

    def observe(self, validation: Mapping[str, float]) -> None:
        """Learn from the validation text's negative log-likelihood, per token."""
        self._schedule.observe(math.log(validation["perplexity"]), progress=0.0)

    def figures(self) -> dict[str, float]:
        own = {"student_share": self._schedule.value(0.0), "replay_sequences": float(len(self._buffer))}
        return own | ({"is_rollout": float(self._kind != "data"), "is_new": float(self._kind == "new")})

    def held(self) -> list[Batch]:
        return self._rollout.held()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "data": self.data.state_dict(),
            "rollout": self._rollout.state_dict(),
            "schedule": self._schedule.state_dict(),
            "buffer": [vars(row) for row in self._buffer],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self.data.load_state_dict(state["data"])
        self._rollout.load_state_dict(state["rollout"])
        self._schedule.load_state_dict(state["schedule"])
        self._buffer = [Tokenised(**row) for row in state["buffer"]]


def chance_of(seed: int, step: int) -> float:
    """A number from 0 to 1 that belongs to a step."""
    generator = torch.Generator().manual_seed(seed_of(seed, "chance", step))
    return float(torch.rand((), generator=generator, dtype=torch.float64))
