"""The objectives a term may name. Settings and defaults are those of the function of that name.

``reads`` is what the function is given beside the student's logits; ``signals`` are the forms of a teacher it accepts.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.features import AnyFeature
from potstill.recipe.objective import ObjectiveSection, Reads
from potstill.recipe.schedules import CurriculumSkew, Scheduled, TaidSchedule, bounds
from potstill.recipe.section import Between, Finite, Fraction, Positive, Section, named

DENSE = ("logits",)
MERGED = ("logits", "top_k")
LINEAR = ("logits", "top_k", "sampled")
Skew = Annotated[float, Field(strict=True, ge=0, lt=1)]
Curriculum = Annotated[CurriculumSkew, BeforeValidator(named)]


class CrossEntropy(ObjectiveSection):
    """Cross-entropy to the response's own tokens."""

    reads: ClassVar[Reads] = "tokens"
    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Skew = 0.0


class Entropy(ObjectiveSection):
    """The student's entropy: with a negative coefficient a bonus for spreading out."""

    reads: ClassVar[Reads] = "student"
    name: Literal["entropy"] = "entropy"


class Unlikelihood(ObjectiveSection):
    """Unlikelihood of the response's earlier tokens: a penalty on repetition."""

    reads: ClassVar[Reads] = "earlier_tokens"
    name: Literal["unlikelihood"] = "unlikelihood"


class EmbeddingSimilarity(ObjectiveSection):
    """Mean cosine similarity of the expected embeddings within a response: a penalty on sameness."""

    reads: ClassVar[Reads] = "response"
    in_nats: ClassVar[bool] = False
    name: Literal["embedding_similarity"] = "embedding_similarity"


class Advantages(Section):
    """How a sampled response's rewards log p - log q become its tokens' advantages. Defaults: MiniLLM's paper."""

    discount: Fraction = 1.0
    include_current: bool = False  # false: the single-step term counts a token's own reward
    add_current: bool = False  # beside the long-term part, after that was normalised
    length_normalise: bool = True
    whiten: bool = False  # over the real tokens of a whole rollout, on all processes
    reward_scale: Positive = 1.0
    reward_clip: Positive | None = None

    @model_validator(mode="after")
    def _counts_once(self) -> Self:
        if self.include_current and self.add_current:
            raise ValueError("include_current and add_current would count a token's own reward twice. Set one of them")
        return self


class PolicyGradient(ObjectiveSection):
    """The sampled tokens' policy gradient, their log-ratios the rewards."""

    reads: ClassVar[Reads] = "tokens"
    in_nats: ClassVar[bool] = False
    function: ClassVar[str] = "token_policy_gradient"
    made_elsewhere: ClassVar[tuple[str, ...]] = ("advantages", "use_importance_weights")
    name: Literal["policy_gradient"] = "policy_gradient"
    advantages: Advantages = Advantages()
    use_importance_weights: bool = True  # where the teacher has written too
    clip: Between | None = None  # 0.2 in MiniLLM
    clip_weights: bool = False  # the weight inside the clip, as in MiniLLM's public code
    temperature: Positive = 1.0


class TeacherSection(ObjectiveSection):
    """An objective that compares with a teacher."""

    reads: ClassVar[Reads] = "teacher"
    signals: ClassVar[tuple[str, ...]] = MERGED
    temperature: Positive = 1.0


class ForwardKL(TeacherSection):
    """KL(teacher || student): mode-covering."""

    signals: ClassVar[tuple[str, ...]] = LINEAR
    name: Literal["forward_kl"] = "forward_kl"


class ReverseKL(TeacherSection):
    """KL(student || teacher): mode-seeking."""

    signals: ClassVar[tuple[str, ...]] = DENSE  # the teacher's own top k is the wrong list for it
    name: Literal["reverse_kl"] = "reverse_kl"


class Jeffreys(TeacherSection):
    """Forward plus reverse KL."""

    signals: ClassVar[tuple[str, ...]] = DENSE
    name: Literal["jeffreys"] = "jeffreys"


class JensenShannon(TeacherSection):
    """Generalised Jensen-Shannon divergence with ``teacher_weight`` of the teacher in the mixture."""

    name: Literal["jensen_shannon"] = "jensen_shannon"
    teacher_weight: Fraction = 0.5  # Agarwal et al. 2024, GKD: beta
    rescale: bool = False  # divide by w (1 - w): forward KL's scale at 0, reverse KL's at 1

    @model_validator(mode="after")
    def _weight_has_a_scale(self) -> Self:
        if self.teacher_weight in (0, 1) and not self.rescale:
            raise ValueError(
                f"at teacher_weight {self.teacher_weight:g} the divergence is 0 everywhere. Set rescale to true, "
                "or use forward_kl or reverse_kl"
            )
        return self


class SkewForwardKL(TeacherSection):
    """KL(teacher || skew teacher + (1 - skew) student)."""

    name: Literal["skew_forward_kl"] = "skew_forward_kl"
    skew: Skew | Curriculum = 0.1  # Ko et al. 2024, DistiLLM: alpha


class SkewReverseKL(TeacherSection):
    """KL(student || (1 - skew) teacher + skew student)."""

    name: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    skew: Skew | Curriculum = 0.1  # Ko et al. 2024, DistiLLM: alpha


class TotalVariation(TeacherSection):
    """Half the sum of the probabilities' differences: from 0 to 1."""

    in_nats: ClassVar[bool] = False
    name: Literal["total_variation"] = "total_variation"


class SquaredHellinger(TeacherSection):
    """Half the squared distance of the probabilities' roots: from 0 to 1."""

    in_nats: ClassVar[bool] = False
    name: Literal["squared_hellinger"] = "squared_hellinger"


class AdaptiveKL(TeacherSection):
    """Forward and reverse KL, weighted by where the models differ: head or tail of the teacher."""

    signals: ClassVar[tuple[str, ...]] = DENSE
    name: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: Between = 0.5  # Wu et al. 2024, AKL: mu


class AlphaBeta(TeacherSection):
    """The alpha-beta divergence."""

    signals: ClassVar[tuple[str, ...]] = DENSE
    in_nats: ClassVar[bool] = False
    name: Literal["alpha_beta"] = "alpha_beta"
    alpha: Finite = 0.2  # Wang et al. 2025, ABKD, instruction following
    beta: Finite = 0.7


class InterpolatedForwardKL(TeacherSection):
    """Forward KL to a target that moves from the student to the teacher (TAID)."""

    signals: ClassVar[tuple[str, ...]] = DENSE
    name: Literal["interpolated_forward_kl"] = "interpolated_forward_kl"
    t: Fraction | Scheduled = TaidSchedule()

    @model_validator(mode="after")
    def _t_in_range(self) -> Self:
        low, high = bounds(self.t)
        if low < 0 or high > 1:
            raise ValueError(f"t goes from {low:g} to {high:g}. It is a share: keep it from 0 to 1")
        return self


class AssistantDivergence(TeacherSection):
    """The anchor against a mixture of both models (AMiD)."""

    signals: ClassVar[tuple[str, ...]] = DENSE
    in_nats: ClassVar[bool] = False
    name: Literal["assistant_divergence"] = "assistant_divergence"
    alpha: Finite = -1.0
    teacher_weight: Fraction = 0.1
    anchor: Literal["teacher", "student"] = "teacher"
    divergence_alpha: Finite = 0.2
    divergence_beta: Finite = 0.7

    @model_validator(mode="after")
    def _assistant_is_not_the_anchor(self) -> Self:
        if self.teacher_weight == (1 if self.anchor == "teacher" else 0):
            raise ValueError(
                f"at teacher_weight {self.teacher_weight:g} the assistant is the {self.anchor}. Give another share"
            )
        return self


class LogitMatching(TeacherSection):
    """Squared difference of all logit gaps."""

    signals: ClassVar[tuple[str, ...]] = DENSE
    in_nats: ClassVar[bool] = False
    name: Literal["logit_matching"] = "logit_matching"
    weights: Literal["student", "teacher", "uniform"] = "student"
    other_weights: Literal["student", "teacher", "uniform"] | None = None


AnyDivergence: TypeAlias = (
    ForwardKL
    | ReverseKL
    | Jeffreys
    | JensenShannon
    | SkewForwardKL
    | SkewReverseKL
    | TotalVariation
    | SquaredHellinger
    | AdaptiveKL
    | AlphaBeta
    | InterpolatedForwardKL
    | AssistantDivergence
    | LogitMatching
)
AnyObjective: TypeAlias = (
    AnyDivergence | CrossEntropy | Entropy | Unlikelihood | EmbeddingSimilarity | PolicyGradient | AnyFeature
)

NOT_LOSSES = {
    "k1": "its gradient is zero on average, whatever the teacher says",
    "k3": "on the student's own samples its gradient is forward KL's, not reverse KL's",
}


def objective_of(value: Any) -> Any:
    """A bare name as a mapping; estimators that are no losses are refused with the reason."""
    spelled = named(value)
    name = spelled.get("name") if isinstance(spelled, dict) else None
    if name in NOT_LOSSES:
        raise ValueError(
            f"{name} estimates the value of reverse KL for the log, and cannot be trained on: {NOT_LOSSES[name]}. "
            "Use reverse_kl"
        )
    return spelled


Objective = Annotated[Annotated[AnyObjective, Field(discriminator="name")], BeforeValidator(objective_of)]
Divergence = Annotated[Annotated[AnyDivergence, Field(discriminator="name")], BeforeValidator(objective_of)]
