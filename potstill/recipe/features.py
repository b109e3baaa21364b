"""Objectives on hidden states: which layers of both models meet, where in them, and how their channels do."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.objective import ObjectiveSection, Reads
from potstill.recipe.section import Count, Index, NonNegative, Section, named

Place: TypeAlias = Literal["residual", "mlp"]
Relation: TypeAlias = Literal["queries", "keys", "values"]
Measure: TypeAlias = Literal["grad_activation", "integrated_gradients", "mean_activation", "logit_lens"]


# --- Which layers meet ------------------------------------------------------------------------------------------------


class UniformLayers(Section):
    """Layers of the student, evenly spaced up to its last, each with the teacher's at the same share of its depth."""

    name: Literal["uniform"] = "uniform"
    count: Count | None = None  # of the student's layers; all of them where unset (Jiao et al. 2020, TinyBERT)


class LastLayers(Section):
    """The last layers of both, from the last one backwards."""

    name: Literal["last"] = "last"
    count: Count = 3  # Khsaadi's selective distillation


class InfluenceLayers(Section):
    """As uniform, but a share of the depth is one of what the teacher's layers change: of their Block Influence."""

    name: Literal["block_influence"] = "block_influence"
    count: Count | None = None


class PairedLayers(Section):
    """Layers named one by one, each as [student's, teacher's], from 0."""

    shorthand: ClassVar[str | None] = "pairs"
    name: Literal["pairs"] = "pairs"
    pairs: Annotated[tuple[tuple[Index, Index], ...], Field(min_length=1)]


AnyLayers: TypeAlias = UniformLayers | LastLayers | InfluenceLayers | PairedLayers
Layers = Annotated[Annotated[AnyLayers, Field(discriminator="name")], BeforeValidator(named)]


# --- How their channels meet ------------------------------------------------------------------------------------------


class AllChannels(Section):
    """Channel by channel; for models of one width."""

    name: Literal["all"] = "all"


class ProjectedChannels(Section):
    """The student's through a matrix for each pair of layers, which is trained with it and then dropped."""

    name: Literal["projection"] = "projection"


class SelectedChannels(Section):
    """As many of the teacher's as the student has: those that matter most for the task, chosen once and frozen."""

    name: Literal["selected"] = "selected"
    measure: Measure = "grad_activation"
    rows: Count = 64  # of the validation split, at most: neither trained on nor held out
    file: str | None = None  # made by `potstill attribute`; where set, nothing is measured


class RandomChannels(Section):
    """As many of the teacher's, drawn: what a selection has to be better than."""

    name: Literal["random"] = "random"
    seed: Index = 0  # of the draw, beside the recipe's own


class KeptChannels(Section):
    """Those that the student was cut with, of one whose width was cut: each channel follows the one it was."""

    name: Literal["kept"] = "kept"


AnyChannels: TypeAlias = AllChannels | ProjectedChannels | SelectedChannels | RandomChannels | KeptChannels
Channels = Annotated[Annotated[AnyChannels, Field(discriminator="name")], BeforeValidator(named)]


# --- What is compared -------------------------------------------------------------------------------------------------


class FeatureSection(ObjectiveSection):
    """An objective on what is inside both models. Its value is the mean over pairs of layers."""

    reads: ClassVar[Reads] = "inside"
    in_nats: ClassVar[bool] = False
    signals: ClassVar[tuple[str, ...]] = ("hidden", "logits")
    name: str
    layers: Layers = UniformLayers()


class StateSection(FeatureSection):
    """An objective on states: the residual stream that leaves a layer, or what its MLP's last matrix reads."""

    made_elsewhere: ClassVar[tuple[str, ...]] = ("layers", "place", "channels")
    place: Place = "residual"
    channels: Channels = ProjectedChannels()


class HiddenMSE(StateSection):
    """Mean squared difference of the channels."""

    name: Literal["hidden_mse"] = "hidden_mse"
    normalise: bool = True  # a decoder's states grow with depth, and the loss with them


class HiddenCosine(StateSection):
    """1 - cosine similarity."""

    name: Literal["hidden_cosine"] = "hidden_cosine"


class HiddenCorrelation(StateSection):
    """The channels' cross-correlation over a micro-batch, against the identity.

    It is not a mean over tokens: its value depends on which of them share a micro-batch.
    """

    name: Literal["hidden_correlation"] = "hidden_correlation"
    off_diagonal_weight: NonNegative = 0.005  # Zbontar et al. 2021, Barlow Twins


class RelationDivergence(FeatureSection):
    """KL of the relations between tokens of the response (MiniLM); neither widths nor heads have to agree."""

    made_elsewhere: ClassVar[tuple[str, ...]] = ("layers", "of", "heads")
    in_nats: ClassVar[bool] = True
    name: Literal["relation_divergence"] = "relation_divergence"
    layers: Layers = LastLayers(count=1)  # Wang et al. 2020, MiniLM
    of: Annotated[tuple[Relation, ...], Field(min_length=1)] = ("queries", "keys", "values")  # MiniLM v2
    heads: Count | None = None  # where unset as many as the student's attention has, if all widths divide by it
    causal: bool = True  # a token relates to itself and earlier ones, as in a decoder's attention

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.of)) != len(self.of):
            raise ValueError(f"of names one of {', '.join(self.of)} twice. Name each once")
        return self


AnyFeature: TypeAlias = HiddenMSE | HiddenCosine | HiddenCorrelation | RelationDivergence
Feature = Annotated[Annotated[AnyFeature, Field(discriminator="name")], BeforeValidator(named)]
