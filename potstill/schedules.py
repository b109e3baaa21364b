"""Numbers that change while training: functions of the share of the budget that is spent, and two that adapt.

``build`` makes what a recipe's setting asks for. Adaptive schedules learn from figures that are the same on every
process, and their state goes into the checkpoint.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from potstill import recipe


class Schedule(Protocol):
    """A number that changes. ``observe`` tells an adaptive one the value of its term after a step."""

    def value(self, progress: float) -> float: ...

    def observe(self, figure: float, progress: float) -> None: ...

    def state_dict(self) -> dict[str, float | None]: ...

    def load_state_dict(self, state: dict[str, float | None]) -> None: ...


# --- Functions of progress alone --------------------------------------------------------------------------------------


def linear(progress: float, *, start: float, end: float, share: float = 1.0) -> float:
    """From start to end in a straight line over the first ``share`` of the budget, then level."""
    return start + (end - start) * min(progress / share, 1.0)


def cosine(progress: float, *, start: float, end: float, share: float = 1.0) -> float:
    """From start to end along half a cosine over the first ``share`` of the budget, then level."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress / share, 1.0))) / 2


def exponential(progress: float, *, start: float, end: float, left: float = 0.01) -> float:
    """From start towards end, by the same factor at every step; ``left`` of the distance is left at the end."""
    return end + (start - end) * left ** min(progress, 1.0)


def step(progress: float, *, values: Sequence[float], at: Sequence[float]) -> float:
    """values[0], then values[i] from at[i - 1] on."""
    return values[bisect_right(at, progress)]


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
    after = (min(progress, 1.0) - warmup_fraction) / (1 - warmup_fraction)
    return (linear if schedule == "linear" else cosine)(after, start=1.0, end=0.0)


class Fixed:
    """A schedule that is a function of progress, and learns nothing."""

    def __init__(self, function: Callable[[float], float]):
        self.value = function

    def observe(self, figure: float, progress: float) -> None:
        pass

    def state_dict(self) -> dict[str, float | None]:
        return {}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        pass


# --- Adaptive schedules -----------------------------------------------------------------------------------------------


class TaidSchedule:
    """TAID's t: rises with the budget at least linearly, and faster while the value of its term falls.

    After step n with value J_n: m <- b m + (1 - b) (J_(n-1) - J_n) / J_(n-1), t <- t + rate * sigmoid(m) * (1 - t),
    never under the line from start to end, never over the end. Because sigmoid(0) is 1/2, t rises by about
    rate / 2 * (1 - t) a step even without progress; with the paper's rate and under some ten thousand steps the line
    is what decides.

    Source: Shing et al. 2025, TAID, arXiv:2501.16937, section 3.3.
    """

    def __init__(self, *, start: float = 0.4, end: float = 1.0, rate: float = 5e-4, momentum: float = 0.99):
        self._start, self._end, self._rate, self._momentum = start, end, rate, momentum
        self._reached = start
        self._fall = 0.0
        self._previous: float | None = None

    def value(self, progress: float) -> float:
        """t for a step at this progress."""
        return min(self._end, max(self._reached, linear(progress, start=self._start, end=self._end)))

    def observe(self, figure: float, progress: float) -> None:
        """Learn from the value of the term at the step that ``value(progress)`` was used for."""
        if not math.isfinite(figure):
            return  # nothing can be learned from it, and it would be remembered for ever
        self._reached = self.value(progress)
        if self._previous is not None:
            fall = (self._previous - figure) / (self._previous + 1e-15)
            self._fall = self._momentum * self._fall + (1 - self._momentum) * fall
            self._reached = min(self._end, self._reached + self._rate * _sigmoid(self._fall) * (1 - self._reached))
        self._previous = figure

    def state_dict(self) -> dict[str, float | None]:
        return {"reached": self._reached, "fall": self._fall, "previous": self._previous}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._reached, self._fall = state["reached"] or 0.0, state["fall"] or 0.0
        self._previous = state["previous"]


class DistillmSchedule:
    """DistiLLM's share of student-made sequences: up by ``step`` whenever the validation loss rises.

    A loss counts as risen if it is more than ``tolerance`` above the one at the last rise (the first one, before any):
    that is how the public code has it. Of the student-made sequences, the share that is generated and not replayed
    falls linearly to 0 over the budget.

    Source: Ko et al. 2024, DistiLLM, arXiv:2402.03898, section 3.2; their code for the defaults.
    """

    def __init__(self, *, start: float = 0.0, step: float = 0.1, tolerance: float = 0.1):
        self._share, self._step, self._tolerance = start, step, tolerance
        self._compared_with: float | None = None

    def value(self, progress: float) -> float:
        """The share of student-made sequences."""
        return self._share

    def generated(self, progress: float) -> float:
        """The share of sequences that the student writes anew; the rest of ``value`` is replayed."""
        return self._share * (1 - min(progress, 1.0))

    def observe(self, figure: float, progress: float) -> None:
        """Learn from a validation loss."""
        if not math.isfinite(figure):
            return
        if self._compared_with is None:
            self._compared_with = figure
        elif figure >= self._compared_with + self._tolerance:
            self._share = min(1.0, self._share + self._step)
            self._compared_with = figure

    def state_dict(self) -> dict[str, float | None]:
        return {"share": self._share, "compared_with": self._compared_with}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._share = state["share"] or 0.0
        self._compared_with = state["compared_with"]


class CurriculumSkew:
    """DistiLLM-2's skew, one for each response: 1 - (1 - start) * c / gap, kept from ``least`` to ``start``.

    The gap of a response is exp(mean log p) - exp(mean log q), teacher less student, over its tokens, and c is the mean
    gap of the first step. So a response on which the models have come closer gets a smaller skew, a harder comparison.

    Source: Ko et al. 2025, DistiLLM-2, arXiv:2503.07067, section 3.3; their code for the numbers.
    """

    def __init__(self, *, start: float = 0.1, least: float = 0.01):
        self._start, self._least = start, least
        self._first: float | None = None

    @property
    def is_anchored(self) -> bool:
        return self._first is not None

    def anchor(self, mean_gap: float) -> None:
        """Take the mean gap of the first step for c."""
        self._first = mean_gap

    def values(self, gaps: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The skew of each response."""
        if self._first is None:
            raise ValueError("the skew is measured against the first step's gap, which has not been told yet")
        wanted = 1 - (1 - self._start) * self._first / (gaps + 1e-5)
        return wanted.nan_to_num(self._start).clamp(self._least, self._start)

    def state_dict(self) -> dict[str, float | None]:
        return {"first": self._first}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._first = state["first"]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# --- From recipes -----------------------------------------------------------------------------------------------------


def build(setting: float | recipe.Schedule) -> Schedule:
    """What a recipe's setting asks for; a number is a schedule that never changes."""
    match setting:
        case recipe.LinearSchedule():
            return Fixed(partial(linear, start=setting.start, end=setting.end, share=setting.share))
        case recipe.CosineSchedule():
            return Fixed(partial(cosine, start=setting.start, end=setting.end, share=setting.share))
        case recipe.ExponentialSchedule():
            return Fixed(partial(exponential, start=setting.start, end=setting.end, left=setting.left))
        case recipe.StepSchedule():
            return Fixed(partial(step, values=setting.values, at=setting.at))
        case recipe.TaidSchedule():
            return TaidSchedule(**setting.model_dump(exclude={"name"}))
    return Fixed(lambda progress: float(setting))
