"""Matching what is inside both models, beside any method: states of some layers, or relations between tokens.

    loss = the method's + feature_weight * feature

A feature is ``hidden_cosine``, ``hidden_mse``, ``hidden_correlation`` or ``relation_divergence``. Of each, ``layers``
says which layers meet: ``uniform`` by depth, ``last``, ``block_influence`` by how much of the teacher's work is done,
or ``pairs``. The first three compare channels, so widths have to be brought together, by ``channels``:
``projection``, a matrix that learns with the student and is then dropped; ``selected``, the channels of the teacher
that matter most for the task, chosen once and frozen; ``random``, the control of a selection; ``kept``, those a
narrower student was cut with; or ``all``, for equal widths. Relations need none of it.

    potstill train feature_kd feature=hidden_cosine feature.channels=selected feature.layers.name=last

Papers: Jiao et al. 2020, TinyBERT, arXiv:1909.10351 (states, projection); Sanh et al. 2019, DistilBERT,
arXiv:1910.01108 (cosine); Wang et al. 2020, MiniLM, arXiv:2002.10957 and 2012.15828 (relations); Zbontar et al. 2021,
arXiv:2103.03230 (correlation); Khsaadi 2025, arXiv:2507.10155 (channels selected by attribution). Of decoders
Minitron (arXiv:2407.14679) finds that matching states helps where many layers were cut, and little elsewhere.

Defaults: cosine through a projection, since a decoder's states grow with depth; every layer, as TinyBERT; weight 1 is
ours, and not tuned. ``text=same`` compares on the method's own sequences, which costs no further forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from potstill.recipe import (
    AnySource,
    Count,
    DatasetSource,
    Feature,
    HiddenCosine,
    HiddenSignal,
    LogitsSignal,
    Positive,
    Recipe,
    RolloutSource,
    Stage,
    Stream,
    StudentPolicy,
    TeacherPolicy,
    Term,
)
from potstill.recipes.common import stage_of


def feature_kd(
    *,
    stage_method: str = "kd",
    stage_settings: Mapping[str, Any] = {},
    feature: Feature = HiddenCosine(),
    feature_weight: Positive = 1.0,
    text: Literal["same", "data", "teacher", "student"] = "same",
    max_new_tokens: Count = 64,
) -> Recipe:
    """Match what is inside both models while a method distils.

    Args:
        stage_method: what is done beside it: a built-in one of one stage, with a teacher.
        stage_settings: parameters and settings of that method, such as ``{ce_weight: 0.5}``.
        feature: which objective, and which layers and channels meet.
        feature_weight: what it is multiplied by.
        text: the sequences on which it is compared: those of the method, the data's, or what teacher or student write.
        max_new_tokens: of what they write.
    """
    stage, term = stage_of(stage_method, stage_settings), Term(objective=feature, coefficient=feature_weight)
    streams = _beside(stage, term, max_new_tokens, text) if text != "same" else _within(stage, term)
    whole = stage.model_copy(update={"streams": streams, "method": None})
    return Recipe(method="feature_kd", baseline="equal_time_sft", stages=(whole,))


def _within(stage: Stage, term: Term) -> tuple[Stream, ...]:
    """The method's streams, the first of those that have the teacher's logits with one term more."""
    at = next((at for at, stream in enumerate(stage.streams) if isinstance(stream.signal, LogitsSignal)), None)
    if at is None:
        raise ValueError(
            f"stage_method is {stage.method}, which does not run its teacher with logits. Set text to data"
        )
    found = stage.streams[at]
    joined = found.model_copy(update={"terms": (*found.terms, term)})
    return (*stage.streams[:at], joined, *stage.streams[at + 1 :])


def _beside(stage: Stage, term: Term, max_new_tokens: int, text: str) -> tuple[Stream, ...]:
    """The method's streams, and one more."""
    sources: dict[str, AnySource] = {
        "data": DatasetSource(),
        "teacher": RolloutSource(policy=TeacherPolicy(), max_new_tokens=max_new_tokens),
        "student": RolloutSource(policy=StudentPolicy(), max_new_tokens=max_new_tokens),
    }
    return (*stage.streams, Stream(name="inside", source=sources[text], signal=HiddenSignal(), terms=(term,)))
