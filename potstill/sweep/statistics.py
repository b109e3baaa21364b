"""What figures of a few training seeds are worth: intervals of their mean, and of differences seed by seed.

The unit that is drawn again is the training: its first weights where they are random, and the order of its data. Two
intervals are offered. Student's t takes the figures of the seeds as they are. The two-level bootstrap draws seeds and
held-out examples again, so it is also about other examples of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from potstill.evaluation.metrics.significance import Interval

RESAMPLES = 2000
_AT_ONCE = 4_000_000  # drawn numbers in memory


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95% interval, nan where there is one seed; p: two-sided, of a mean of 0."""

    mean: float
    low: float
    high: float
    p: float
    num: int


@dataclass(frozen=True)
class Examples:
    """What was measured of each held-out example in each seed's student.

    Args:
        values: by seed and example.
        weights: of the examples in a figure, such as their tokens; by seed and example.
        is_log: whether the figure is exp of the weighted mean, as a perplexity is.
    """

    values: Float[np.ndarray, "seed example"]
    weights: Float[np.ndarray, "seed example"]
    is_log: bool = False

    def figures(self, counts: Int[np.ndarray, "draw example"]) -> Float[np.ndarray, "draw seed"]:
        """Each seed's figure, of examples as often as each draw has them."""
        means = counts @ (self.values * self.weights).T / (counts @ self.weights.T)
        return np.exp(means) if self.is_log else means


def t_mean(values: Sequence[float]) -> Mean:
    """Mean, 95% interval and p by Student's t with n - 1 degrees of freedom.

    It supposes that figures of seeds are about normal, which no handful of them can show. Where all are the same the
    interval is a point, and p is 1 at 0 and nan elsewhere: a spread of nothing is no evidence.

    Args:
        values: one of each seed; differences of pairs for a paired test.
    Source: Student 1908, The Probable Error of a Mean.
    """
    num = len(values)
    mean = math.fsum(values) / num if num else math.nan
    if num < 2 or not math.isfinite(mean):
        return Mean(mean, math.nan, math.nan, math.nan, num)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1) / num)
    if error <= 1e-12 * abs(mean):
        return Mean(mean, mean, mean, math.nan if mean else 1.0, num)
    reach = t_quantile(0.975, num - 1) * error
    return Mean(mean, mean - reach, mean + reach, 1 - t_within(abs(mean) / error, num - 1), num)


def t_within(t: float, freedom: int) -> float:
    """The share of Student's t between -t and t, exactly, for a whole number of degrees of freedom.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2 == 1
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for at in range(2 if odd else 1, freedom, 2):  # 2, 4, .. or 1, 3, ..
        total += term
        term *= square * at / (at + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_quantile(share: float, freedom: int) -> float:
    """The value below which this share of Student's t lies, for a share above a half, by halving.

    Raises: ValueError for a share outside (0.5, 1), or no degree of freedom.
    """
    if not 0.5 < share < 1 or freedom < 1:
        raise ValueError(f"a share of {share} with {freedom} degrees of freedom: above 0.5, below 1, and 1 or more")
    low, high = 0.0, 1.0
    while t_within(high, freedom) < 2 * share - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < 2 * share - 1 else (low, middle)
    return high


def two_level_interval(ours: Examples, theirs: Examples | None = None, *, seed: int = 0) -> Interval:
    """95% percentile interval of the mean over seeds of a figure, or of ours - theirs, seeds and examples drawn again.

    Seeds are drawn with replacement, and examples likewise, the same ones for all drawn seeds and both sides: every
    seed's student was asked the same examples. Of n seeds the part of the spread that comes from seeds is too small by
    a factor of about sqrt((n - 1) / n), as with every bootstrap.

    Args:
        ours: two seeds or more. theirs: of the same seeds and examples.
        seed: of the draws; the same for the same number of seeds and examples.
    Source: Owen 2007, The Pigeonhole Bootstrap.
    """
    num_seeds, num_examples = ours.values.shape
    random = np.random.default_rng(seed)
    means = []
    for draws in _parts(num_examples):
        counts = random.multinomial(num_examples, np.full(num_examples, 1 / num_examples), draws)
        figures = ours.figures(counts) - (theirs.figures(counts) if theirs else 0.0)
        chosen = random.integers(0, num_seeds, (draws, num_seeds))
        means.append(np.take_along_axis(figures, chosen, axis=1).mean(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(low), float(high))


def _parts(num_examples: int) -> Iterator[int]:
    """Draws that fit into memory together, until there are enough."""
    size = max(1, _AT_ONCE // num_examples)
    yield from (min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size))
