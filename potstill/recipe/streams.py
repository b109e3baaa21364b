"""Stream = source x teacher signal, plus weighted Terms."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from potstill.recipe.features import FeatureSection
from potstill.recipe.objectives import Objective, PolicyGradient, TeacherSection
from potstill.recipe.schedules import CurriculumSkew, Schedule, Scheduled, bounds
from potstill.recipe.section import Count, Finite, Positive, Section, named
from potstill.recipe.sources import DatasetSource, RolloutSource, Source, rollout_of
from potstill.recipe.weightings import STUDENT_SCORES, UniformWeighting, Weighting


class Term(Section):
    """One summand of the loss: coefficient x reduction(weighting x objective)."""

    shorthand: ClassVar[str | None] = "objective"
    objective: Objective
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = (
        None  # in the metrics; the objective's where unset
    )
    coefficient: Finite | Scheduled = 1.0  # negative for the entropy alone: a bonus
    weighting: Weighting = UniformWeighting()
    # token_mean: every token of the global batch counts the same. sequence_mean: every sequence does.
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"

    @property
    def label(self) -> str:
        """What the term is called: no other of its stream is called the same."""
        return self.name or self.objective.name

    @property
    def needs_teacher(self) -> bool:
        score = self.weighting.score
        compares = isinstance(self.objective, TeacherSection | PolicyGradient | FeatureSection)
        return compares or bool(score and score not in STUDENT_SCORES)

    def scaled(self, by: float) -> Term:
        """The term with its coefficient, a number, multiplied. Raises: ValueError for a schedule."""
        if not isinstance(self.coefficient, float):
            raise ValueError(f"the coefficient of {self.label} is a schedule. Give it a number")
        return self.model_copy(update={"coefficient": self.coefficient * by})

    @field_validator("coefficient")
    @classmethod
    def _has_the_right_sign(cls, value: float | Schedule, info: ValidationInfo) -> float | Schedule:
        objective = info.data.get("objective")
        if bounds(value)[0] < 0 and objective is not None and objective.name != "entropy":
            raise ValueError(f"is negative, so {objective.name} would be made large. Give a number of at least 0")
        return value


class NoSignal(Section):
    """No teacher is asked."""

    name: Literal["none"] = "none"


class LogitsSignal(Section):
    """All of the teacher's logits."""

    name: Literal["logits"] = "logits"


class HiddenSignal(Section):
    """What is inside the teacher, at the layers that the terms name, and no logits."""

    name: Literal["hidden"] = "hidden"


class TopKSignal(Section):
    """The teacher's k most likely tokens, and the mass of the rest: what a cache or a server would give."""

    name: Literal["top_k"] = "top_k"
    k: Count = 64
    temperature: Positive = 1.0  # of the teacher; that of the objective has to be the same


class SampledSignal(Section):
    """Tokens drawn from the teacher, once per example (RS-KD): what a cache would give."""

    name: Literal["sampled"] = "sampled"
    draws: Count = 50  # Anshumann et al. 2025: about 12 distinct tokens
    temperature: Positive = 1.0  # of the teacher; that of the objective has to be the same


class TokenLogprobsSignal(Section):
    """The teacher's log-probability of each token that was sampled, and nothing else."""

    name: Literal["token_logprobs"] = "token_logprobs"


AnySignal: TypeAlias = NoSignal | TokenLogprobsSignal | LogitsSignal | HiddenSignal | TopKSignal | SampledSignal
Signal = Annotated[Annotated[AnySignal, Field(discriminator="name")], BeforeValidator(named)]


class Stream(Section):
    """Where sequences come from, what the teacher says about them, and the terms computed on both."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "data"
    source: Source = DatasetSource()
    signal: Signal = NoSignal()
    teacher: str | None = None  # whom it asks: one of the stage's teachers; its teacher where unset
    # The chance of taking no part in a step. The others' weights are then as they were: nothing is made up for.
    drop: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher says or writes anything in it."""
        rollout = rollout_of(self.source)
        return self.signal.name != "none" or bool(rollout and rollout.policy.asks_teacher)

    @property
    def not_cacheable(self) -> str | None:
        """Why what a teacher says in it cannot be kept for another time; None where it can."""
        rollout = rollout_of(self.source)
        if self.signal.name not in ("logits", "top_k", "sampled"):
            return f"its signal is {self.signal.name}"
        if any(isinstance(term.objective, FeatureSection) for term in self.terms):
            return "it looks inside the teacher"
        if isinstance(self.source, RolloutSource) and rollout and rollout.policy.name != "teacher":
            return "a student writes its text anew each time"
        if isinstance(self.source, DatasetSource) and self.source.is_streamed:
            return "its text is streamed, and does not come again"
        return None

    @model_validator(mode="after")
    def _signal_fits_terms(self) -> Self:
        needy = [
            f"objective {term.objective.name}"
            if isinstance(term.objective, TeacherSection | PolicyGradient | FeatureSection)
            else f"weighting {term.weighting.name}"
            for term in self.terms
            if term.needs_teacher
        ]
        if needy and self.signal.name == "none":
            inside = all(isinstance(term.objective, FeatureSection) for term in self.terms if term.needs_teacher)
            wanted = "hidden" if inside else "logits"
            raise ValueError(f"{needy[0]} compares with a teacher but signal is none. Set signal to {wanted}")
        if not needy and self.signal.name != "none":
            raise ValueError(f"signal is {self.signal.name} but no term compares with the teacher. Set signal to none")
        for term in self.terms:
            self._check_form(term)
            self._check_sampled(term)
        self._check_names()
        if not any(bounds(term.coefficient) != (0, 0) for term in self.terms):
            raise ValueError("every coefficient is 0, so nothing would be learned. Give one term a coefficient above 0")
        return self

    def _check_names(self) -> None:
        """Refuse terms that could not be told apart, and two that would share one credit for sampled tokens."""
        names = [term.label for term in self.terms]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"two terms of one stream are called {twice}. Give one a name of its own, or merge the two and add "
                "their coefficients"
            )
        if sum(isinstance(term.objective, PolicyGradient) for term in self.terms) > 1:
            raise ValueError("a stream has one policy gradient, whose credit its tokens get. Merge the two")

    def _check_form(self, term: Term) -> None:
        """Refuse a term that cannot be computed from this form of teacher."""
        if isinstance(term.objective, FeatureSection) and self.signal.name not in ("none", *term.objective.signals):
            raise ValueError(
                f"objective {term.objective.name} compares what is inside both models, and signal is "
                f"{self.signal.name}. Set signal to {' or '.join(term.objective.signals)}"
            )
        if isinstance(self.signal, HiddenSignal):
            if term.needs_teacher and (not isinstance(term.objective, FeatureSection) or term.weighting.score):
                raise ValueError(
                    f"objective {term.objective.name} with weighting {term.weighting.name} needs the teacher's logits, "
                    "and signal is hidden. Set signal to logits"
                )
            return
        if isinstance(self.signal, TokenLogprobsSignal) and term.needs_teacher:
            if not isinstance(term.objective, PolicyGradient) or term.weighting.score:
                raise ValueError(
                    f"objective {term.objective.name} with weighting {term.weighting.name} needs the teacher's logits, "
                    "and signal is token_logprobs. Set signal to logits"
                )
            return
        if not isinstance(self.signal, TopKSignal | SampledSignal):
            return
        if isinstance(term.objective, PolicyGradient):
            raise ValueError(
                f"objective policy_gradient needs the teacher's probability of tokens that it might not name, and "
                f"signal is {self.signal.name}. Set signal to token_logprobs"
            )
        if term.weighting.score and term.weighting.score not in STUDENT_SCORES:
            raise ValueError(
                f"weighting {term.weighting.name} needs all of the teacher's logits, and signal is {self.signal.name}. "
                "Set signal to logits"
            )
        if not isinstance(term.objective, TeacherSection):
            return
        if isinstance(getattr(term.objective, "skew", None), CurriculumSkew):
            raise ValueError(
                f"a curriculum of skews goes by the teacher's probability of each response, and signal is "
                f"{self.signal.name}. Set signal to logits"
            )
        if self.signal.name not in term.objective.signals:
            raise ValueError(
                f"objective {term.objective.name} cannot be computed from {self.signal.name}: it takes "
                f"{' or '.join(term.objective.signals)}. Set signal to logits"
            )
        theirs, ours = self.signal.temperature, term.objective.temperature
        if theirs != ours:
            raise ValueError(
                f"signal.temperature is {theirs:g} and the objective's {ours:g}, "
                "and a sparse teacher cannot be brought to another temperature. Set both the same"
            )

    def _check_sampled(self, term: Term) -> None:
        """Refuse a term about sampled tokens where none are sampled by the student."""
        sampled = isinstance(self.source, RolloutSource) and self.source.policy.name != "teacher"
        of_samples = isinstance(term.objective, PolicyGradient) or term.weighting.name == "importance"
        if of_samples and not sampled:
            what = "objective policy_gradient" if isinstance(term.objective, PolicyGradient) else "weighting importance"
            whose = " of the teacher's text" if isinstance(self.source, RolloutSource) else ""
            raise ValueError(
                f"{what} is about responses that the student has sampled, and source is {self.source.name}{whose}. "
                "Set source to rollout, with policy student, token_mixed or speculative"
            )
        if isinstance(term.objective, PolicyGradient) and isinstance(self.source, RolloutSource):
            self._check_whole(self.source)

    def _check_whole(self, source: RolloutSource) -> None:
        """Refuse a policy gradient of text that is drawn from a part of the distribution: it estimates nothing."""
        whole = {"top_k": 0, "top_p": 1.0, "no_repeat_ngram": 0}
        if source.temperature == 0:
            raise ValueError("a policy gradient is about draws, and the rollout's temperature is 0. Set it above 0")
        if bad := next((name for name, value in whole.items() if getattr(source, name) != value), None):
            raise ValueError(
                f"a policy gradient is of the student's whole distribution, and the rollout has {bad} "
                f"{getattr(source, bad):g}. Set {bad} to {whole[bad]:g}"
            )
