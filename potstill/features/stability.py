"""How sure a choice of channels is: what two halves of the sample have in common, beside what chance would have."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import ConfigError

SPLITS = 5  # of the sample into halves


def select(scores: Float[Tensor, "layer channel"], count: int) -> tuple[tuple[int, ...], ...]:
    """The ``count`` channels of each layer that score most, in rising order; of equal ones the first.

    Raises: ConfigError for more than there are, or none; ValueError for scores that are not numbers.
    """
    width = scores.shape[-1]
    if not 1 <= count <= width:
        raise ConfigError(f"{count} channels of {width} cannot be kept", f"keep from 1 to {width}")
    if scores.isnan().any():
        raise ValueError("a score is not a number")
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return tuple(tuple(sorted(kept)) for kept in order[:, :count].tolist())


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Jaccard's index: the share of what is in either that is in both."""
    return len(set(one) & set(other)) / len(set(one) | set(other))


def chance_overlap(count: int, width: int) -> float:
    """The expected overlap of two sets of ``count`` of ``width`` channels that are drawn at random."""
    ways = _log_choices(width, count)
    shared = range(max(0, 2 * count - width), count + 1)
    return sum(
        exp(_log_choices(count, both) + _log_choices(width - count, count - both) - ways) * both / (2 * count - both)
        for both in shared
    )


def _log_choices(of: int, count: int) -> float:
    """The logarithm of how many ways there are to take ``count``."""
    return lgamma(of + 1) - lgamma(count + 1) - lgamma(of - count + 1)


def half_overlaps(
    sums: Float[Tensor, "part layer channel"], count: int, seed: int, splits: int = SPLITS
) -> list[list[float]]:
    """For each of several random splits of the sample's parts into halves, the overlap of what they select, by layer.

    A half has half the text: the choice from the whole is at least as sure as this.

    Args:
        sums: scores of each part times its tokens. seed: of the splits.
    Returns: none where there are not two parts.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(splits if len(sums) > 1 else 0):
        halves = torch.randperm(len(sums), generator=generator).chunk(2)
        one, other = (select(sums[half].sum(0), count) for half in halves)
        found.append([overlap(*both) for both in zip(one, other, strict=True)])
    return found
