"""Puts together the terms of a stage that look inside its models: the layers and channels that meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from potstill import recipe as schema
from potstill.data.examples import Tokenised
from potstill.data.order import seed_of
from potstill.features.building import Between, build_match
from potstill.features.matching import Match
from potstill.models import pruning
from potstill.models.families import Family
from potstill.models.layout import DECODER
from potstill.sources.dataset import batches
from potstill.training.runtime import Runtime

BATCH = 8  # rows that are measured at once


@dataclass(frozen=True)
class Looking:
    """What a match is made of.

    ``rows`` are those that layers and channels are measured on: neither trained on nor held out. ``kept`` are the
    teacher's channels that the student was cut with, if it was.
    """

    student: Family
    teacher: Family
    rows: Sequence[Tokenised]
    kept: Sequence[int] | None
    tokenizer: Any
    runtime: Runtime
    folder: Path
    seed: int

    def match(self, key: str, spec: schema.FeatureSection) -> Match:
        """The match of a term; ``key`` is that of the term.

        Raises: ConfigError for layers and channels that cannot meet; ModelError for models whose inside is not known.
        """
        between = Between(
            self.student,
            self.teacher,
            self.kept,
            seed_of(self.seed, "maps", key),
            self._influence,
            lambda *asked: self._chosen(key, *asked),
        )
        return build_match(spec, between)

    def _influence(self) -> Float[Tensor, " layer"]:
        sample = [batch.to(self.runtime.device) for batch in batches(self.rows, BATCH, self.tokenizer.eos_token_id)]
        return pruning.block_influence(self.teacher.model, sample)[DECODER]

    def _chosen(
        self, key: str, spec: schema.SelectedChannels, layers: Sequence[int], place: schema.Place, count: int
    ) -> Mapping[int, Sequence[int]]:
        raise NotImplementedError
