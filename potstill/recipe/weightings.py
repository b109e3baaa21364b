"""How much each token of a term counts. What they compute is in ``potstill.weighting``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.section import Count, Index, NonNegative, Section, named

Score = Literal[
    "student_entropy",
    "teacher_entropy",
    "student_loss",
    "teacher_loss",
    "loss_gap",
    "forward_kl",
    "reverse_kl",
    "total_variation",
    "squared_hellinger",
]
STUDENT_SCORES = ("student_entropy", "student_loss")  # those that need no teacher
TEACHER_SCORES = ("teacher_entropy", "teacher_loss")  # those that need no student


class WeightingSection(Section):
    """What all weightings have: whether they may leave tokens out."""

    selects: ClassVar[bool] = False


class UniformWeighting(WeightingSection):
    """Every response token counts the same."""

    score: ClassVar[Score | None] = None
    name: Literal["uniform"] = "uniform"


class ImportanceWeighting(WeightingSection):
    """Sampled tokens count as much as the student would have written them rather than whoever did."""

    score: ClassVar[Score | None] = None
    name: Literal["importance"] = "importance"


class TeacherEntropyWeighting(WeightingSection):
    """Tokens count as much as the teacher is uncertain of them."""

    score: ClassVar[Score | None] = "teacher_entropy"
    name: Literal["teacher_entropy"] = "teacher_entropy"


class StudentEntropyWeighting(WeightingSection):
    """Tokens count as much as the student is uncertain of them."""

    score: ClassVar[Score | None] = "student_entropy"
    name: Literal["student_entropy"] = "student_entropy"


class GapWeighting(WeightingSection):
    """Tokens count as much as the models differ on them."""

    name: Literal["gap"] = "gap"
    score: Literal["total_variation", "squared_hellinger", "forward_kl", "reverse_kl"] = "total_variation"


class TopFractionWeighting(WeightingSection):
    """In each response the ceil(fraction x tokens) tokens with the highest score count, and no others."""

    selects: ClassVar[bool] = True
    name: Literal["top_fraction"] = "top_fraction"
    fraction: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.2  # SE-KD: 20% by student entropy
    score: Score = "student_entropy"


class PositionWeighting(WeightingSection):
    """The t-th token of a response, from 0, counts decay**t."""

    score: ClassVar[Score | None] = None
    name: Literal["position"] = "position"
    decay: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.99


class SpanWeighting(WeightingSection):
    """The tokens of a response from the ``start``-th, from 0, up to and without the ``stop``-th count, and no others.

    ``stop: 1`` is the first token alone, ``start: 1`` all others: a label and the rationale after it.
    """

    score: ClassVar[Score | None] = None
    selects: ClassVar[bool] = True
    name: Literal["span"] = "span"
    start: Index = 0
    stop: Count | None = None  # the response's end where unset

    @model_validator(mode="after")
    def _holds_a_token(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"a span from {self.start} to {self.stop} holds no token. Set stop above start")
        return self


class EntropyGateWeighting(WeightingSection):
    """Tokens count where the teacher's entropy is above a threshold, and not where it is below."""

    score: ClassVar[Score | None] = "teacher_entropy"
    selects: ClassVar[bool] = True
    name: Literal["entropy_gate"] = "entropy_gate"
    threshold: NonNegative = 0.8  # nats; EOPD, 2603.07079


AnyWeighting: TypeAlias = (
    UniformWeighting
    | ImportanceWeighting
    | TeacherEntropyWeighting
    | StudentEntropyWeighting
    | GapWeighting
    | TopFractionWeighting
    | PositionWeighting
    | SpanWeighting
    | EntropyGateWeighting
)
Weighting = Annotated[Annotated[AnyWeighting, Field(discriminator="name")], BeforeValidator(named)]
