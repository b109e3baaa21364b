"""From what steps cost to what a budget costs: arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from potstill import recipe as schema


@dataclass(frozen=True)
class Cost:
    """Of one step, or of several together. ``flops`` are those of ``potstill.training.compute``."""

    seconds: float = 0.0
    flops: float = 0.0
    response_tokens: float = 0.0

    def times(self, factor: float) -> Cost:
        return Cost(factor * self.seconds, factor * self.flops, factor * self.response_tokens)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds, self.flops + other.flops, self.response_tokens + other.response_tokens
        )


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


def steps_in(budget: schema.Budget, costs: Sequence[Cost], *, batch_size: int, examples_per_epoch: int) -> int:
    """How many steps a budget is, as the trainer counts: the first at whose end it is spent.

    Args:
        budget: anything but ``compute_of``, which is flops when a stage's turn comes.
        costs: of the first steps, one or more; those after them are taken to cost their mean.
        batch_size: examples of a step. examples_per_epoch: the train rows.
    """
    if budget.steps is not None:
        return budget.steps
    if budget.epochs is not None:
        return max(1, math.ceil(budget.epochs * examples_per_epoch / batch_size))
    if budget.tokens is not None:
        return _reaching(budget.tokens, [cost.response_tokens for cost in costs])
    if budget.seconds is not None:
        return _reaching(budget.seconds, [cost.seconds for cost in costs])
    assert budget.flops is not None
    return _reaching(budget.flops, [cost.flops for cost in costs])


def _reaching(wanted: float, amounts: Sequence[float]) -> int:
    """The first number of steps whose amounts add up to what is wanted."""
    reached = 0.0
    for at, amount in enumerate(amounts, start=1):
        reached += amount
        if reached >= wanted:
            return at
    mean = reached / len(amounts)
    return len(amounts) + math.ceil((wanted - reached) / mean) if mean > 0 else len(amounts)


def cost_of(steps: int, costs: Sequence[Cost]) -> Cost:
    """Of so many steps, where ``costs`` are those of the first."""
    known = total(costs[:steps])
    return known + total(costs).times(max(0, steps - len(costs)) / len(costs))


def validations(steps: int, every: int) -> int:
    """How often a student is validated: untouched, at each checkpoint, and at the end."""
    return 1 + checkpoints(steps, every)


def checkpoints(steps: int, every: int) -> int:
    """How many checkpoints are written."""
    return math.ceil(steps / every)
