"""Numbers that change while training, as functions of the share of the budget that is spent."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_factor(
    progress: float, *, schedule: Literal["cosine", "linear", "constant"], warmup_fraction: float
) -> float:
    """What the learning rate is multiplied by: up from 0 over the warm-up, then down to 0 or level.

    Args:
        progress: share of the budget spent, in the middle of the step where that is known: from 0 to 1.
        schedule: the shape after the warm-up.
        warmup_fraction: share of the budget over which the factor rises linearly to 1.
    """
    if progress < warmup_fraction:
        return progress / warmup_fraction
    if schedule == "constant" or warmup_fraction >= 1:
        return 1.0
    left = (1 - min(progress, 1.0)) / (1 - warmup_fraction)
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
