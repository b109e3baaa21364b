"""TAID: forward KL to a target that moves from the student itself to the teacher, on the data's own text.

    loss = KL(softmax((1 - t) sg[student] + t teacher) || student),    t rising from ``start`` to ``end``

t rises at least linearly with the budget, and faster while the loss falls. With the paper's rate and under some ten
thousand steps the straight line decides. Early on the gradient is about t times forward KL's: compare it with ``kd``
at a learning rate that is warmed up as slowly.

Paper: Shing et al. 2025, arXiv:2501.16937; start 0.4 (0.2 for StableLM to Pythia), end 1, rate 5e-4 and momentum
0.99 are theirs.
"""

from __future__ import annotations

from potstill.recipe import Fraction, InterpolatedForwardKL, LogitsSignal, Positive, Recipe, Stream, TaidSchedule, Term
from potstill.recipes.common import distillation


def taid(*, start: Fraction = 0.4, end: Fraction = 1.0, rate: Positive = 5e-4, momentum: Fraction = 0.99) -> Recipe:
    """Distil towards a target that moves to the teacher.

    Args:
        start: t at the first step.
        end: the largest t.
        rate: how much of the way left one step may take.
        momentum: of the relative fall of the loss.
    """
    schedule = TaidSchedule(start=start, end=end, rate=rate, momentum=momentum)
    term = Term(objective=InterpolatedForwardKL(t=schedule))
    return distillation("taid", Stream(signal=LogitsSignal(), terms=(term,)))
