"""Sequences from prepared rows, in a seeded order that is the same for any number of processes and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.data.order import indices
from potstill.sources.source import Share
from potstill.types import Batch


class Order(Protocol):
    """Which examples are drawn next: ``indices``, or another function of the same arguments."""

    def __call__(
        self, position: int, count: int, num_examples: int, seed: int, *, shuffled_from: int = 0
    ) -> list[int]: ...


class DatasetSource:
    """Draws global batches from an endless run of shuffled epochs; its position is the number of examples drawn.

    Args:
        examples: of an epoch. seed: of their order. pad_id: any token.
        first_in_order: the first epoch keeps the examples' own order.
        order: of all epochs; ``scattered`` for examples whose order alone would fill memory.
    """

    def __init__(
        self,
        examples: Sequence[Tokenised],
        *,
        seed: int,
        pad_id: int,
        first_in_order: bool = False,
        order: Order = indices,
    ):
        self.examples = examples
        self.seed = seed
        self.pad_id = pad_id
        self._shuffled_from = int(first_in_order)
        self._order = order
        self.position = 0

    def next(self, share: Share, progress: float = 0.0) -> list[Batch]:
        return micro_batches(self.draw(share), share, self.pad_id)

    def draw(self, share: Share) -> list[Tokenised]:
        """This process's examples of the next global batch."""
        drawn = self._order(
            self.position, share.batch_size, len(self.examples), self.seed, shuffled_from=self._shuffled_from
        )
        self.position += share.batch_size
        return [self.examples[i] for i in drawn[share.own]]

    def observe(self, validation: Mapping[str, float]) -> None:
        pass

    def figures(self) -> dict[str, float]:
        return {}

    def held(self) -> list[Batch]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def micro_batches(examples: Sequence[Tokenised], share: Share, pad_id: int) -> list[Batch]:
    """This process's examples of a global batch, cut: by length where that is allowed and there are several parts."""
    in_order = share.by_length and len(examples) > share.micro_size
    return list(batches(longest_first(examples) if in_order else examples, share.micro_size, pad_id))


def longest_first(examples: Sequence[Tokenised]) -> list[Tokenised]:
    """By length, so that neighbours need little padding; most memory is taken first, and what does not fit fails there.

    Which examples a global batch has is not changed, and its loss does not depend on how it is cut.
    """
    return sorted(examples, key=lambda row: len(row.prompt_ids) + len(row.response_ids), reverse=True)


def batches(examples: Sequence[Tokenised], size: int, pad_id: int) -> Iterator[Batch]:
    """All examples in their order, ``size`` at a time."""
    return (collate(examples[start : start + size], pad_id) for start in range(0, len(examples), size))
