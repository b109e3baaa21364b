"""Sequences from prepared rows, in a seeded order that is the same for any number of processes and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.data.order import indices
from potstill.types import Batch


class DatasetSource:
    """Draws global batches from an endless run of shuffled epochs; its position is the number of examples drawn."""

    def __init__(self, examples: Sequence[Tokenised], *, seed: int, pad_id: int):
        self.examples = examples
        self.seed = seed
        self.pad_id = pad_id
        self.position = 0

    def next(self, batch_size: int, micro_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        """This process's share of the next global batch, cut into micro-batches.

        Args:
            batch_size: sequences over all processes.
            micro_size: sequences per micro-batch; the last may be smaller.
        """
        drawn = indices(self.position, batch_size, len(self.examples), self.seed)
        self.position += batch_size
        share = batch_size // world_size
        return list(
            batches([self.examples[i] for i in drawn[rank * share : (rank + 1) * share]], micro_size, self.pad_id)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def batches(examples: Sequence[Tokenised], size: int, pad_id: int) -> Iterator[Batch]:
    """All examples in their order, ``size`` at a time."""
    return (collate(examples[start : start + size], pad_id) for start in range(0, len(examples), size))
