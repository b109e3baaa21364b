"""The channels that were chosen of a teacher for a task, as one file: made once, frozen, and reused.

The file says what was chosen and how sure that is, and from what: model, rows, measure, versions. It holds no text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from potstill.errors import ConfigError, DataError
from potstill.features.attribution import STEPS, Measure
from potstill.features.stability import select
from potstill.recipe import Place
from potstill.run import write_text

__all__ = ["Selection", "cached", "kept_or_made", "load", "save", "select"]

MAKE = "make one with `potstill attribute`"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Model(_Part):
    """Whose channels: what the user called it, and the hash of its files."""

    name: str
    fingerprint: str


class Rows(_Part):
    """The sample: where from, the hash of its token ids, and how much of it there is."""

    source: str
    sha256: str
    rows: int
    response_tokens: int


class Wanted(_Part):
    """Which channels are to be chosen: of which layers of the decoder, how many of each, where, and by what measure.

    Args: as for ``channel_scores``. ``seed`` is of random channels, and of the halves that a choice is tried on.
    """

    layers: tuple[int, ...]
    count: int
    place: Place = "residual"
    measure: Measure = "grad_activation"
    steps: int = STEPS
    seed: int = 0

    def settings(self, fingerprint: str, rows_sha256: str) -> dict[str, Any]:
        """What the choice depends on, of a model and rows by their hashes. Alike, it is the same but for rounding."""
        unused = set() if self.measure == "integrated_gradients" else {"steps"}
        return {"model": fingerprint, "rows": rows_sha256, **self.model_dump(mode="json", exclude=unused)}


class Spread(_Part):
    """A layer's scores, and the share of their sum that the selected channels have."""

    lowest: float
    median: float
    highest: float
    selected_share: float


class Stability(_Part):
    """How much of a layer's choice stays the same: overlaps are Jaccard's index.

    ``between`` is what was compared: halves of the sample, split at random several times; of random channels, two
    seeds. ``by_layer`` is the mean of ``comparisons``, ``lowest`` the lowest of all. ``chance`` is the expected overlap
    of random choices.
    """

    between: Literal["halves of the sample", "seeds"]
    comparisons: int
    by_layer: tuple[float, ...]
    lowest: float
    chance: float

    @property
    def mean(self) -> float:
        return sum(self.by_layer) / len(self.by_layer)


class Selection(_Part):
    """Channels of a teacher's layers, rising: channel j of a student follows the same one at every step.

    Args:
        width: of how many channels. channels: of each layer that was wanted, in its order.
        scores: of each layer. stability: None where the sample is one row.
    """

    kind: Literal["potstill channels 1"] = "potstill channels 1"
    model: Model
    rows: Rows
    wanted: Wanted
    width: int
    channels: tuple[tuple[int, ...], ...]
    scores: tuple[Spread, ...]
    stability: Stability | None
    versions: dict[str, str]

    @model_validator(mode="after")
    def _fits_together(self) -> Selection:
        for chosen in (self.layers, *self.channels):
            if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0:
                raise ValueError("layers or channels are not a rising list")
        if not len(self.layers) == len(self.channels) == len(self.scores):
            raise ValueError("there are not as many layers as lists of channels")
        if {len(chosen) for chosen in self.channels} != {self.wanted.count}:
            raise ValueError(f"there are not {self.wanted.count} channels of each layer")
        if max(map(max, self.channels)) >= self.width:
            raise ValueError(f"a channel is beyond the {self.width} there are")
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        return self.wanted.layers

    @property
    def settings(self) -> dict[str, Any]:
        """As ``Wanted.settings``."""
        return self.wanted.settings(self.model.fingerprint, self.rows.sha256)

    def channels_of(self, layer: int) -> tuple[int, ...]:
        """Raises: ConfigError for a layer that none were chosen of."""
        if layer in self.layers:
            return self.channels[self.layers.index(layer)]
        there = ", ".join(map(str, self.layers))
        raise ConfigError(f"no channels were chosen of layer {layer}", f"it is one of {there}; or choose again")


def save(selection: Selection, file: Path) -> None:
    """Write the file, whole or not at all."""
    write_text(file, json.dumps(selection.model_dump(mode="json"), indent=1) + "\n")


def load(file: Path, *, fingerprint: str | None = None, width: int | None = None) -> Selection:
    """What ``save`` wrote.

    Args:
        fingerprint: of the model it is to be used with, see ``fingerprint_of``. width: of that model's channels.
    Raises: DataError where there is no such file or it is damaged; ConfigError where it is of another model or width.
    """
    try:
        found = Selection.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}", MAKE) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        cause = f"{file} is no selection of channels: {where + ': ' if where else ''}{first['msg']}"
        raise DataError(cause, f"remove it, and {MAKE}") from None
    name = found.model.name
    if width is not None and found.width != width:
        cause = f"{file} chooses of {found.width} channels, those of {name}, and this model has {width} there"
        raise ConfigError(cause, f"name that model's own selection, or {MAKE}")
    if fingerprint is not None and found.model.fingerprint != fingerprint:
        cause = f"{file} was made of {name}, whose files are not this model's"
        raise ConfigError(cause, f"name that model's own selection, or {MAKE}")
    return found


def cached(folder: Path, settings: Mapping[str, Any], make: Callable[[], Selection]) -> Selection:
    """The selection that was made with these settings, from its file in ``folder``; made and kept where there is none.

    Args:
        settings: as ``Selection.settings`` of what ``make`` makes. A file that is damaged is made again.
    """
    file = folder / f"channels-{sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]}.json"
    try:
        found = load(file)
    except DataError:
        found = None
    return found if found and found.settings == settings else _made(file, make)


def kept_or_made(file: Path, settings: Mapping[str, Any], make: Callable[[], Selection]) -> Selection:
    """The same, of one file that the user names.

    Raises: ConfigError where something else is in that file, which is never overwritten.
    """
    if not file.exists():
        return _made(file, make)
    try:
        found = load(file)
    except DataError as error:
        raise ConfigError(error.cause, "remove it, or name another file") from None
    if found.settings != settings:
        told = ((key, value, settings.get(key)) for key, value in found.settings.items())
        unlike = ", ".join(
            f"{key} ({there} there, {asked} asked for)" if isinstance(there, int) else key
            for key, there, asked in told
            if there != asked
        )
        raise ConfigError(f"{file} holds another selection: it differs in {unlike}", "name another file, or remove it")
    return found


def _made(file: Path, make: Callable[[], Selection]) -> Selection:
    selection = make()
    save(selection, file)
    return selection
