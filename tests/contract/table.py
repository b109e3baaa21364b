"""The axes of a term: what may be combined with what. A newcomer joins by adding a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from pydantic import ValidationError

from potstill import recipe
from potstill.models.families import Family, family_of
from tests import tiny

FAMILIES: dict[str, Callable[[int], Any]] = {
    "llama": lambda seed: tiny.llama(seed, layers=2),
    "llama_untied": lambda seed: tiny.llama(seed, layers=2, tied=False),
    "gpt2": lambda seed: tiny.gpt2(seed, layers=2),
    "t5": lambda seed: tiny.t5(seed, layers=1),
    "t5_untied_gated": lambda seed: tiny.t5(seed, layers=1, tied=False, gated=True),
    "bart": lambda seed: tiny.bart(seed, layers=1),
}
ENCODER_DECODER = ("t5", "t5_untied_gated", "bart")
OBJECTIVES = [section().name for section in get_args(recipe.AnyObjective)]
DIVERGENCES = [section().name for section in get_args(recipe.AnyDivergence)]
FEATURES = [section().name for section in get_args(recipe.AnyFeature)]
SETTINGS: dict[str, dict[str, Any]] = {"interpolated_forward_kl": {"t": 0.5}} | {
    name: {"channels": "all"} for name in FEATURES if name != "relation_divergence"
}
WEIGHTINGS: dict[str, dict[str, Any]] = {section().name: {} for section in get_args(recipe.AnyWeighting)} | {
    "top_fraction": {"fraction": 0.4, "score": "forward_kl"},
    "entropy_gate": {"threshold": 3.0},
}
SIGNALS: dict[str, dict[str, Any]] = {
    "none": {},
    "token_logprobs": {},
    "logits": {},
    "hidden": {},
    "top_k": {"k": 5},
    "sampled": {"draws": 20},
}
OF_SAMPLED_TOKENS = {"policy_gradient", "importance"}  # what stands in a stream of rollouts alone


def stream(
    objective: str, signal: str, weighting: str, reduction: str = "token_mean", **settings: Any
) -> recipe.Stream | None:
    """A stream of one term; None where the schema refuses the combination."""
    term = {
        "objective": {"name": objective} | SETTINGS.get(objective, {}) | settings,
        "weighting": {"name": weighting} | WEIGHTINGS[weighting],
        "reduction": reduction,
    }
    source = "rollout" if {objective, weighting} & OF_SAMPLED_TOKENS else "dataset"
    made = {"source": {"name": source}, "signal": {"name": signal} | SIGNALS[signal], "terms": [term]}
    try:
        return recipe.Stream.model_validate(made)
    except ValidationError:
        return None


def combinations() -> Iterator[tuple[str, str, str]]:
    """Every objective x signal x weighting that the schema takes."""
    for objective in OBJECTIVES:
        for signal in SIGNALS:
            for weighting in WEIGHTINGS:
                if stream(objective, signal, weighting):
                    yield objective, signal, weighting


def family(name: str, seed: int) -> Family:
    return family_of(FAMILIES[name](seed).to(torch.float64))
