"""Statistics of a few paired differences: the exact sign test, and the t interval and test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from potstill.evaluation.metrics.significance import sign_test


def wins_by_chance(differences: Sequence[float]) -> float:
    """One-sided p of so many differences above 0, or more, if either sign were equally likely; 0 is not above."""
    return sign_test(sum(value > 0 for value in differences), len(differences))


def t_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The mean's two-sided interval by Student's t; nan for fewer than two differences, or one that is not finite."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return math.nan, math.nan
    mean, freedom = fmean(differences), len(differences) - 1
    half = t_quantile(level, freedom) * stdev(differences) / math.sqrt(len(differences))
    return mean - half, mean + half


def t_test(differences: Sequence[float]) -> float:
    """One-sided p against a mean of 0 or less, by Student's t; nan where there is no interval."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return 0.5 if mean == 0 else float(mean < 0)
    within = t_within(abs(mean) / error, len(differences) - 1)
    return (1 - within) / 2 if mean > 0 else (1 + within) / 2


def t_within(t: float, freedom: int) -> float:
    """The probability that Student's t lies between -t and t, for whole degrees of freedom.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def t_quantile(level: float, freedom: int) -> float:
    """The t that ``level`` of the distribution lies within, both sides together; by bisection."""
    low, high = 0.0, 1e6
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < level else (low, middle)
    return high
