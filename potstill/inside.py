"""Puts together the terms of a stage that look inside its models: the layers and channels that meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from potstill import recipe as schema
from potstill.data.examples import Tokenised
from potstill.data.order import seed_of
from potstill.errors import ConfigError
from potstill.features.building import Between, build_match
from potstill.features.choosing import choose, rows_sha256
from potstill.features.matching import Match
from potstill.features.selection import Model, Selection, Wanted, kept_or_made, load
from potstill.models import pruning
from potstill.models.families import Family
from potstill.models.fingerprint import fingerprint_of
from potstill.models.layout import DECODER
from potstill.sources.dataset import batches
from potstill.training.runtime import Runtime
from potstill.training.terms import LiveTerm
from potstill.types import Tap

Terms: TypeAlias = tuple[LiveTerm, ...]  # of one stream
BATCH = 8  # rows that are measured at once


@dataclass(frozen=True)
class Looking:
    """What a match is made of. ``teacher_name`` is the model's, for the record of what is chosen of it.

    ``rows`` are those that layers and channels are measured on: neither trained on nor held out. ``kept`` are the
    teacher's channels that the student was cut with, if it was.
    """

    student: Family
    teacher: Family
    teacher_name: str
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
        try:
            return build_match(spec, between)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error.cause}", error.fix) from None

    def _influence(self) -> Float[Tensor, " layer"]:
        sample = [batch.to(self.runtime.device) for batch in batches(self.rows, BATCH, self.tokenizer.eos_token_id)]
        return pruning.block_influence(self.teacher.model, sample)[DECODER]

    def _chosen(
        self, key: str, spec: schema.SelectedChannels, layers: Sequence[int], place: schema.Place, count: int
    ) -> Mapping[int, Sequence[int]]:
        """The channels of each layer that a selection keeps, the same on all processes."""
        of = tuple(sorted(set(layers)))
        wanted = Wanted(layers=of, count=count, place=place, measure=spec.measure)
        chosen = self._selection(key, spec, wanted) if self.runtime.is_main else None
        return self.runtime.share({layer: chosen.channels_of(layer) for layer in of} if chosen else None)

    def _selection(self, key: str, spec: schema.SelectedChannels, wanted: Wanted) -> Selection:
        """From the file that is named, or from the run's, which is made where it is not there yet."""
        fingerprint, rows = fingerprint_of(self.teacher_name), self.rows[: spec.rows]
        if spec.file is not None:
            found = load(Path(spec.file), fingerprint=fingerprint)
            _check_fits(found, wanted, spec.file)
            return found

        def make() -> Selection:
            model, pad_id = Model(name=self.teacher_name, fingerprint=fingerprint), self.tokenizer.eos_token_id
            return choose(self.teacher, rows, wanted, model=model, source="validation rows", pad_id=pad_id)

        file = self.folder / "channels" / f"{key.replace('/', '-')}.json"
        return kept_or_made(file, wanted.settings(fingerprint, rows_sha256(rows)), make)


def terms_of(spec: schema.Stream, looking: Callable[[], Looking]) -> Terms:
    """The terms of a stream; ``looking`` makes what those need that look inside. Raises: as ``Looking.match``."""

    def match(term: schema.Term) -> Match | None:
        if not isinstance(term.objective, schema.FeatureSection):
            return None
        return looking().match(f"{spec.name}/{term.label}", term.objective)

    return tuple(LiveTerm(spec.name, term, match(term)) for term in spec.terms)


def places_of(terms: Terms) -> tuple[Tap, ...]:
    """Where the teacher is looked into."""
    return tuple({tap: None for term in terms if term.match for tap in term.match.teacher_taps})


def _check_fits(found: Selection, wanted: Wanted, file: str) -> None:
    """Refuse a selection of another place, or of more or fewer channels than the student has. Raises: ConfigError."""
    made, asked = found.wanted, f"--place {wanted.place} --keep {wanted.count}"
    if (made.place, made.count) != (wanted.place, wanted.count):
        raise ConfigError(
            f"{file} keeps {made.count} channels of {made.place}, and the student has {wanted.count} of {wanted.place}",
            f"make one with `potstill attribute` and {asked}",
        )
