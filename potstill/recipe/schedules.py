"""Settings that change while training: a number, or one of these in its place."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.section import Between, Finite, Fraction, Positive, Section, named


class LinearSchedule(Section):
    """From ``start`` to ``end`` in a straight line over the first ``share`` of the budget, then level."""

    name: Literal["linear"] = "linear"
    start: Finite
    end: Finite
    share: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0


class CosineSchedule(Section):
    """From ``start`` to ``end`` along half a cosine over the first ``share`` of the budget, then level."""

    name: Literal["cosine"] = "cosine"
    start: Finite
    end: Finite
    share: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0


class ExponentialSchedule(Section):
    """From ``start`` towards ``end``, the distance left multiplied by the same factor at every step.

    ``left`` is the share of the distance that is left at the end of the budget.
    """

    name: Literal["exponential"] = "exponential"
    start: Finite
    end: Finite
    left: Between = 0.01


class StepSchedule(Section):
    """``values[0]``, then ``values[i]`` from ``at[i - 1]`` of the budget on."""

    name: Literal["step"] = "step"
    values: Annotated[tuple[Finite, ...], Field(min_length=1)]
    at: tuple[Fraction, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.values) != len(self.at) + 1:
            raise ValueError(f"{len(self.values)} values need {len(self.values) - 1} changes, not {len(self.at)}")
        if list(self.at) != sorted(set(self.at)):
            raise ValueError("at does not rise. Give shares of the budget in order")
        return self


class TaidSchedule(Section):
    """TAID's adaptive t: at least linear in the budget, and faster while its term's value falls."""

    name: Literal["taid"] = "taid"
    start: Fraction = 0.4  # Shing et al. 2025; 0.2 for StableLM to Pythia
    end: Fraction = 1.0
    rate: Positive = 5e-4  # alpha, how much of the way left one step may take
    momentum: Fraction = 0.99  # beta, of the relative fall of the value

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start is {self.start} and end {self.end}. t only rises: give a start up to the end")
        return self


class CurriculumSkew(Section):
    """DistiLLM-2's skew of each response: ``start`` where the models differ as at the first step, less where they have
    come closer, down to ``least``."""

    name: Literal["curriculum"] = "curriculum"
    start: Between = 0.1  # alpha_0, the largest; Ko et al. 2025, DistiLLM-2
    least: Between = 0.01  # their code

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.least > self.start:
            raise ValueError(f"least is {self.least} and start {self.start}. Give a least up to the start")
        return self


Schedule: TypeAlias = LinearSchedule | CosineSchedule | ExponentialSchedule | StepSchedule | TaidSchedule
Scheduled = Annotated[Annotated[Schedule, Field(discriminator="name")], BeforeValidator(named)]


def bounds(setting: float | Schedule) -> tuple[float, float]:
    """The smallest and the largest value a setting takes."""
    match setting:
        case LinearSchedule() | CosineSchedule() | ExponentialSchedule() | TaidSchedule():
            return min(setting.start, setting.end), max(setting.start, setting.end)
        case StepSchedule():
            return min(setting.values), max(setting.values)
    return setting, setting
