"""What a plan says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StagePlan:
    """What a stage will take. Bytes, seconds and parameters are by what takes them.

    ``memory`` is what a training step takes, and ``peaks`` the most that is in use in each phase, of the device that is
    trained on. ``step_seconds`` are those of the steps that were timed, ``probe_seconds`` how long all took that was
    measured. ``unknown`` says what could not be looked at.
    """

    stage: str
    method: str
    device: str
    dtype: str
    parameters: dict[str, int]
    steps: int
    examples: int
    response_tokens: int
    flops: float
    baseline_steps: int
    seconds: dict[str, float]
    memory: dict[str, int]
    peaks: dict[str, int]
    disk: dict[str, int]
    step_seconds: tuple[float, ...]
    probe_seconds: float
    unknown: tuple[str, ...]

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def memory_bytes(self) -> int:
        """In use at the worst moment."""
        return max(self.peaks.values())

    @property
    def disk_bytes(self) -> int:
        return sum(self.disk.values())

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        totals = {name: getattr(self, name) for name in ("total_seconds", "memory_bytes", "disk_bytes")}
        return vars(self) | totals


@dataclass(frozen=True)
class Plan:
    """What a recipe will take: its stages, in order."""

    stages: tuple[StagePlan, ...]

    @property
    def total_seconds(self) -> float:
        return sum(stage.total_seconds for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        """Of the stage that takes most; stages come one after the other."""
        return max(stage.memory_bytes for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        names = ("total_seconds", "memory_bytes", "disk_bytes", "flops", "steps")
        return {name: getattr(self, name) for name in names} | {"stages": [one.as_data() for one in self.stages]}
