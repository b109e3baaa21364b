"""Means and how sure of them we are."""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor


def mean_and_error(sums: Float[Tensor, " example"], counts: Int[Tensor, " example"]) -> tuple[float, float]:
    """The mean over tokens, and its standard error over examples (the ratio estimator's, by linearisation).

    Args:
        sums: of each example's tokens. counts: tokens of each example.
    Returns: mean; standard error, nan below two examples.
    Source: Cochran 1977, Sampling Techniques, section 6.3.
    """
    total = float(counts.sum())
    mean = float(sums.sum()) / total
    examples = len(counts)
    if examples < 2:
        return mean, math.nan
    residuals = sums.double() - mean * counts.double()
    variance = float((residuals**2).sum()) * examples / (examples - 1)
    return mean, math.sqrt(variance) / total
