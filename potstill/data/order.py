"""The order of the examples: an endless run of shuffled epochs, as a pure function of a position."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor


def indices(position: int, count: int, num_examples: int, seed: int, *, shuffled_from: int = 0) -> list[int]:
    """Which examples are drawn next.

    Epoch ``e`` is a permutation of all examples seeded with ``seed + e``. The order depends on nothing else, so any
    number of processes, micro-batches and restarts sees the same one.

    Args:
        position: examples drawn so far, over all processes.
        count: examples to draw; they may run over the end of an epoch, even several.
        shuffled_from: the epochs before this one keep the examples' own order.
    Raises: ValueError for a negative position or count, or no examples.
    """
    return [
        int(_epoch(num_examples, seed + epoch)[offset]) if epoch >= shuffled_from else offset
        for epoch, offset in places(position, count, num_examples)
    ]


def places(position: int, count: int, num_examples: int) -> Iterator[tuple[int, int]]:
    """The epoch of each example to draw, and its place in the epoch. Raises: as ``indices``."""
    if position < 0 or count < 0 or num_examples < 1:
        raise ValueError(f"cannot draw {count} examples at position {position} of {num_examples}")
    return (divmod(place, num_examples) for place in range(position, position + count))


@lru_cache(maxsize=4)  # so that a step costs the same in an epoch of a million examples
def _epoch(num_examples: int, seed: int) -> Int[Tensor, " example"]:
    return torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts, and is as good as independent of any other's."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big")
