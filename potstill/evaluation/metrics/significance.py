"""How sure a difference between models is, from their scores on the same examples.

Draws depend on seed, number of draws and number of examples only. So two calls with the same three resample the same
examples, and figures of several models are paired without more ado. Scores of nan give nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
SIGN_FLIPS = 10_000
NORMAL_95 = 1.959964
_AT_ONCE = 4_000_000  # drawn numbers in memory
Scores = Sequence[float] | Float[np.ndarray, " example"]


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A mean difference, its interval and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Disagreement:
    """On how many examples only one model is right, and the two-sided p that either is as likely to be the one."""

    only_ours: int
    only_theirs: int
    p: float


@dataclass(frozen=True)
class GapClosed:
    """The share of the gap between untouched student and teacher that a student closed: 1 is all of it.

    ``note`` says why there is no interval, where the gap itself may be none: ``low`` and ``high`` are nan then.
    """

    share: float
    low: float
    high: float
    gap: float
    gap_low: float
    gap_high: float
    note: str | None


def bootstrap_interval(
    scores: Scores,
    *,
    weights: Scores | None = None,
    level: float = 0.95,
    num_draws: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean over examples; nan without examples, and a point for one.

    It is too narrow for few examples: of 3000 sets of normal scores the 95% interval covered the mean of 90% at 10
    examples a set, 93% at 30 and 94% at 100.

    Args:
        scores: one of each example.
        weights: of the examples in the mean, the number of their tokens for instance; equal where None. They are drawn
            with their examples, so the interval is that of a ratio.
        level: share of the distribution within, both tails alike.
        num_draws: sets of examples drawn with replacement. seed: of the draws.
    Raises: ValueError where level is not between 0 and 1, or there are no draws.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values = _columns(scores)
    return _percentiles(_resampled_means(values, num_draws, seed, weights)[0], level)


def share_interval(scores: Scores) -> Interval:
    """The 95% interval of the mean of scores that are 0 or 1: the bootstrap's, or Wilson's where all are the same.

    Of such scores each resample is the same, and the bootstrap would be sure of what a few examples have shown.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    values = np.asarray(scores, dtype=float)
    if len(values) and (not values.any() or (values == 1).all()):
        return wilson_interval(int(values.sum()), len(values))
    return bootstrap_interval(values)


def wilson_interval(successes: int, trials: int) -> Interval:
    """The 95% interval of a share: within 0 and 1, and of some width even where all trials went the same way.

    Raises: ValueError without trials.
    Source: Wilson 1927, as above.
    """
    if trials < 1:
        raise ValueError("a share of no trials has no interval")
    share, weight = successes / trials, NORMAL_95**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = NORMAL_95 / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return Interval(0.0 if successes == 0 else middle - half, 1.0 if successes == trials else middle + half)


def paired_difference(ours: Scores, theirs: Scores, *, weights: Scores | None = None, seed: int = 0) -> Difference:
    """Mean of ours - theirs over examples, with its 95% bootstrap interval and the p of ``sign_flip_test``.

    That p is right for few examples too, where a bootstrap's is too small: of four examples it is 0.125 or more.

    Args: as for ``bootstrap_interval``.
    Raises: ValueError where the models have different numbers of scores.
    """
    differences = (_columns(ours) - _columns(theirs, len(ours)))[0]
    interval = bootstrap_interval(differences, weights=weights, seed=seed)
    p = sign_flip_test(ours, theirs, weights=weights, seed=seed)
    return Difference(_mean(differences, weights), *interval, p)


def sign_flip_test(
    ours: Scores, theirs: Scores, *, weights: Scores | None = None, num_draws: int = SIGN_FLIPS, seed: int = 0
) -> float:
    """Two-sided p of the mean difference if each example's two scores were as likely the other way round.

    The approximate randomisation test for pairs; seen and drawn count 1 more each, so it is never 0. nan without
    examples.

    Raises: ValueError where the models have different numbers of scores.
    Source: Noreen 1989, Computer Intensive Methods for Testing Hypotheses; the correction is Phipson
    and Smyth 2010, section 4.
    """
    differences = (_columns(ours) - _columns(theirs, len(ours)))[0]
    if not len(differences) or not np.isfinite(differences).all():
        return math.nan
    if weights is not None:
        share = _weights(weights, len(differences))
        differences = differences * share / share.mean()

    def flipped(random: np.random.Generator, count: int) -> Float[np.ndarray, " draw"]:
        signs = random.integers(0, 2, (count, len(differences)), dtype=np.int8) * 2.0 - 1
        means: Float[np.ndarray, " draw"] = signs @ differences / len(differences)
        return means

    means = np.concatenate(list(_drawn(flipped, len(differences), num_draws, seed)))
    return _two_sided(means, _mean(differences))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> Disagreement:
    """McNemar's exact test of two models that are right or wrong on the same examples; p is 1 where they agree.

    Raises: ValueError where the models have different numbers of answers.
    Source: McNemar 1947; exact as the two-sided sign test of the examples they disagree on.
    """
    pairs = list(zip(ours, theirs, strict=True))
    only_ours = sum(bool(one) and not other for one, other in pairs)
    only_theirs = sum(bool(other) and not one for one, other in pairs)
    p = 2 * sign_test(max(only_ours, only_theirs), only_ours + only_theirs)
    return Disagreement(only_ours, only_theirs, min(1.0, p))


def sign_test(wins: int, count: int) -> float:
    """One-sided p of so many wins of ``count``, or more, where a win has probability 1/2; exact."""
    ways, total = 1, 0  # ways to have so many losses
    for losses in range(count - wins + 1):
        total += ways
        ways = ways * (count - losses) // (losses + 1)
    return total / 2**count


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: each is right for the whole family. nan counts as 1.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    values = np.array([1.0 if math.isnan(p) else p for p in p_values])
    order = np.argsort(values, kind="stable")
    steps = np.minimum(values[order] * np.arange(len(values), 0, -1), 1.0)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return [float(value) for value in adjusted]


def gap_closed(
    student: Scores,
    untouched: Scores,
    teacher: Scores,
    *,
    weights: Scores | None = None,
    level: float = 0.95,
    num_draws: int = RESAMPLES,
    seed: int = 0,
) -> GapClosed:
    """(student - untouched) / (teacher - untouched), of mean scores on the same examples, with its interval.

    Examples are resampled for the three together, with their weights where they have some. The share may be below 0 or
    above 1. Where the interval of the gap has 0 in it, shares are of nothing sure and there is only a note. Draws
    without any gap are left out.

    Raises: ValueError where the models have different numbers of scores.
    """
    base = _columns(untouched)
    gains = np.concatenate([_columns(student, len(untouched)), _columns(teacher, len(untouched))]) - base
    gained, gaps = _resampled_means(gains, num_draws, seed, weights)
    gain, gap = (_mean(row, weights) for row in gains)
    around = _percentiles(gaps, level)
    share = gain / gap if gap else math.nan
    if around.low > 0 or around.high < 0:
        there = gaps != 0  # of few examples a far draw may have no gap
        return GapClosed(share, *_percentiles(gained[there] / gaps[there], level), gap, *around, None)
    note = (
        f"the gap between teacher and untouched student, {gap:.4g} [{around.low:.4g}, {around.high:.4g}], may be none: "
        "the share of it has no interval"
    )
    return GapClosed(share, math.nan, math.nan, gap, *around, note)


def _columns(scores: Scores, count: int | None = None) -> Float[np.ndarray, "1 example"]:
    values = np.asarray(scores, dtype=float)
    if values.ndim != 1 or (count is not None and len(values) != count):
        raise ValueError(f"scores of shape {values.shape}: give one score of each example, and as many of each model")
    return values[None]


def _weights(weights: Scores, count: int) -> Float[np.ndarray, " example"]:
    found = _columns(weights, count)[0]
    if not (found > 0).all():
        raise ValueError("a weight is not above 0: leave such an example out")
    return found


def _resampled_means(
    values: Float[np.ndarray, "row example"], num_draws: int, seed: int, weights: Scores | None = None
) -> Float[np.ndarray, "row draw"]:
    """Means over examples drawn with replacement, the same ones for every row; nan without examples."""
    count = values.shape[1]
    if not count:
        return np.full((len(values), num_draws), math.nan)
    share = None if weights is None else _weights(weights, count)

    def means(random: np.random.Generator, draws: int) -> Float[np.ndarray, "row draw"]:
        chosen = random.integers(0, count, (draws, count))
        if share is None:
            return np.stack([row[chosen].mean(1) for row in values])
        drawn = share[chosen]
        return np.stack([(row[chosen] * drawn).sum(1) / drawn.sum(1) for row in values])

    return np.concatenate(list(_drawn(means, count, num_draws, seed)), axis=1)


def _drawn(
    draw: Callable[[np.random.Generator, int], np.ndarray], num_examples: int, num_draws: int, seed: int
) -> Iterator[np.ndarray]:
    """Draws in parts that fit into memory."""
    if num_draws < 1:
        raise ValueError(f"{num_draws} draws: give 1 or more")
    random = np.random.default_rng(seed)
    size = max(1, _AT_ONCE // num_examples)
    for start in range(0, num_draws, size):
        yield draw(random, min(size, num_draws - start))


def _percentiles(values: Float[np.ndarray, " draw"], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"a level of {level}: give one between 0 and 1")
    with np.errstate(invalid="ignore"):  # between two infinities is nan, and that is what is wanted
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _two_sided(null: Float[np.ndarray, " draw"], seen: float) -> float:
    """Share of draws under no difference that are as far from 0 as what was seen, which counts as one of them."""
    if not math.isfinite(seen):
        return math.nan
    nearly = abs(seen) * (1 - 1e-9)  # the same sum in another order may differ in its last digit
    return float((1 + (np.abs(null) >= nearly).sum()) / (1 + len(null)))


def _mean(values: Float[np.ndarray, " example"], weights: Scores | None = None) -> float:
    if not len(values):
        return math.nan
    return float(np.average(values, weights=None if weights is None else _weights(weights, len(values))))
