"""Makes the match of a term: which layers meet, at which places, and through which maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill import recipe
from potstill.data.order import seed_of
from potstill.errors import ConfigError
from potstill.features.layers import Pairs, layer_pairs
from potstill.features.matching import AsTheyAre, Match, Pair, drawn_channels, shared_heads
from potstill.models import taps
from potstill.models.families import Family
from potstill.models.layout import layers_of
from potstill.objectives.features import IdentityMap, LearnedProjection, SelectedChannels
from potstill.types import Tap

COMPARE = {"hidden_correlation": "batch", "relation_divergence": "relations"}
# Channels of each of the teacher's layers that a selection keeps: as many as are asked for.
Choose = Callable[[recipe.SelectedChannels, Sequence[int], recipe.Place, int], Mapping[int, Sequence[int]]]


@dataclass(frozen=True)
class Between:
    """The two models that a match is made between.

    ``kept`` are the teacher's channels that a student was cut with, None of one whose width was not cut; ``seed`` is
    that of what is drawn. ``influence`` tells the Block Influence of the teacher's layers, ``choose`` its channels.
    """

    student: Family
    teacher: Family
    kept: Sequence[int] | None
    seed: int
    influence: Callable[[], Float[Tensor, " layer"]]
    choose: Choose


def build_match(spec: recipe.FeatureSection, between: Between) -> Match:
    """The places that a term compares, and maps for them; those that learn are drawn by the seed.

    Raises: ConfigError for layers and channels that cannot meet; ModelError for a layer whose inside is not known.
    """
    of_student, of_teacher = (len(layers_of(family.model)) for family in (between.student, between.teacher))
    layers = layer_pairs(spec.layers, of_student, of_teacher, between.influence)
    if isinstance(spec, recipe.RelationDivergence):
        return _relations(spec, between, layers)
    assert isinstance(spec, recipe.StateSection)
    pairs = [Pair(Tap(ours, spec.place), Tap(theirs, spec.place)) for ours, theirs in layers]
    maps = _maps(spec, between, pairs)
    return Match(pairs, maps, COMPARE.get(spec.name, "tokens"))


def _relations(spec: recipe.RelationDivergence, between: Between, layers: Pairs) -> Match:
    pairs = [Pair(Tap(ours, what), Tap(theirs, what)) for ours, theirs in layers for what in spec.of]
    widths = [taps.width(between.student, pair.student) for pair in pairs]
    widths += [taps.width(between.teacher, pair.teacher) for pair in pairs]
    config = between.student.model.config.get_text_config()
    heads = spec.heads or shared_heads(widths, int(config.num_attention_heads))
    if bad := next((width for width in widths if width % heads), None):
        fit = shared_heads(widths, heads)
        raise ConfigError(f"heads is {heads}, and {bad} channels do not make as many", f"set it to {fit}, or leave it")
    return Match(pairs, [AsTheyAre() for _ in pairs], "relations", heads)


def _maps(spec: recipe.StateSection, between: Between, pairs: Sequence[Pair]) -> list[nn.Module]:
    widths = [(taps.width(between.student, p.student), taps.width(between.teacher, p.teacher)) for p in pairs]
    channels = spec.channels
    if isinstance(channels, recipe.AllChannels):
        return [IdentityMap(ours, theirs) for ours, theirs in widths]
    if isinstance(channels, recipe.ProjectedChannels):
        return _projections(between, widths)
    for ours, theirs in widths:
        if ours > theirs:
            raise ConfigError(
                f"channels is {channels.name}, and the student is {ours} wide at {spec.place}, the teacher {theirs}",
                "use channels=projection, which needs no width",
            )
    match channels:
        case recipe.KeptChannels():
            return [_kept(spec, between, theirs) for _, theirs in widths]
        case recipe.RandomChannels(seed=seed):
            drawn = [
                drawn_channels(seed_of(between.seed, "channels", seed, at), ours, theirs)
                for at, (ours, theirs) in enumerate(widths)
            ]
        case recipe.SelectedChannels():
            layers = [pair.teacher.layer for pair in pairs]
            chosen = between.choose(channels, layers, spec.place, widths[0][0])
            drawn = [list(chosen[layer]) for layer in layers]
    return [SelectedChannels(one, theirs) for one, (_, theirs) in zip(drawn, widths, strict=True)]


def _kept(spec: recipe.StateSection, between: Between, theirs: int) -> nn.Module:
    if between.kept is None or spec.place != "residual":
        raise ConfigError(
            "channels is kept, which is for the residual stream of a student that was cut in width from its teacher",
            "set student.keep_hidden, or channels to selected or projection",
        )
    return SelectedChannels(between.kept, theirs)


def _projections(between: Between, widths: Sequence[tuple[int, int]]) -> list[nn.Module]:
    parameter = next(between.student.parameters())
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU, so that a device changes nothing
        torch.manual_seed(between.seed)
        maps = [LearnedProjection(ours, theirs) for ours, theirs in widths]
    return [one.to(device=parameter.device, dtype=parameter.dtype) for one in maps]
