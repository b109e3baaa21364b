"""What every source is: it gives each process its share of one global batch after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from potstill.types import Batch


@dataclass(frozen=True)
class Share:
    """The part of a global batch that one process gets.

    ``batch_size`` is in sequences over all processes; ``micro_size`` in sequences per forward on one. ``by_length``
    allows sequences of like length to come into one micro-batch.
    """

    batch_size: int
    micro_size: int
    rank: int = 0
    world_size: int = 1
    by_length: bool = True

    @property
    def size(self) -> int:
        """Sequences of this process."""
        return self.batch_size // self.world_size

    @property
    def own(self) -> slice:
        """Where they are in the global batch."""
        return slice(self.rank * self.size, (self.rank + 1) * self.size)


class Source(Protocol):
    """Draws batches without end. What it has drawn is in its state, so a run that goes on draws what comes next."""

    def next(self, share: Share, progress: float) -> list[Batch]:
        """This process's share of the next global batch, cut into micro-batches.

        Args:
            share: which part.
            progress: share of the budget spent, for what changes with it.
        """

    def observe(self, validation: Mapping[str, float]) -> None:
        """Learn from the figures of a validation."""

    def figures(self) -> dict[str, float]:
        """What is worth logging of the last batch, on this process."""

    def held(self) -> list[Batch]:
        """Batches that come again, on this process, in an order that a restart keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts: what a checkpoint can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
