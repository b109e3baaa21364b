"""What a suite is: items of a data set, and a protocol that asks a model about them and scores what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from potstill.data.catalogue.item import Item
from potstill.errors import ConfigError
from potstill.evaluation.suites.subject import Subject

Row: TypeAlias = dict[str, Any]  # a line of rows.jsonl: id, group, input, references, predictions, scores
Scores: TypeAlias = dict[str, Any]  # a figure by its name; means with their intervals as {mean, low, high, num}
PROMPT = "{prompt}"  # where an item's own prompt stands in a frame


class Weighed(NamedTuple):
    """One example's figure, and what it counts for in the mean over examples."""

    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class Settings:
    """How a model is asked. All of it is part of what a result is known by.

    ``seeds`` draw at ``temperature`` from the whole vocabulary, beside a greedy answer. MiniLLM's tables are of its
    five seeds, with no six tokens in a row written twice; that setting alone moves Rouge-L by about a point.
    ``frame`` is put around a prompt, and ``template`` around both: auto is the model's chat template, if it has one.
    ``variants`` are other frames, in which each item is asked as well.
    """

    max_prompt_tokens: int = 512
    max_new_tokens: int = 256
    temperature: float = 1.0
    no_repeat_ngram: int = 0
    seeds: tuple[int, ...] = ()
    frame: str = "{prompt}"
    template: Literal["auto", "chat", "none"] = "auto"
    variants: tuple[str, ...] = ()

    @property
    def frames(self) -> tuple[str, ...]:
        """All of them, the first first."""
        return (self.frame, *self.variants)

    def framed(self, items: Sequence[Item], frame: str | None = None) -> list[str]:
        """The prompts as models are asked them, in the first frame where none is named."""
        return [(self.frame if frame is None else frame).replace(PROMPT, item.prompt) for item in items]

    def told(self) -> dict[str, Any]:
        """What a result is known by. Without variants they are not named: results from before there were any stay."""
        return {name: value for name, value in asdict(self).items() if name != "variants" or value}


class SuiteProtocol(Protocol):
    """Asks and scores. ``version`` goes up when a change makes other figures, so that no old one is taken for new.

    ``max_frames``: in how many frames an item can be asked; None where in any number. ``shortens``: inputs over
    ``max_prompt_tokens`` lose their middle before they are asked. ``headline``: the figures that a table shows where
    they are there, in order. ``primary``: the one that models are compared by, settled beforehand so that nobody
    chooses it by how it came out, and ``better`` which way.
    """

    version: int
    max_frames: int | None
    shortens: bool
    headline: tuple[str, ...]
    primary: str
    better: Literal["higher", "lower"]

    def check(self, item: Item) -> None:
        """Refuse an item that cannot be asked, before a model is loaded. Raises: Unusable with the reason."""

    def ask(self, subject: Subject, items: Sequence[Item], settings: Settings) -> list[Row]:
        """A row for each item, in order, with every figure of that item under ``scores``."""

    def scores(self, rows: Sequence[Row], settings: Settings) -> Scores:
        """The figures over all rows."""

    def of_each(self, rows: Sequence[Row]) -> list[Weighed | None]:
        """The primary figure of each row, so that its weighted mean is that of all; None where there is none."""


@dataclass(frozen=True)
class Suite:
    """Splits of a data set, asked in one way. ``dataset`` None: the items are those of a file that the user names."""

    name: str
    about: str
    protocol: SuiteProtocol
    settings: Settings
    dataset: str | None = None
    splits: tuple[str, ...] = ()

    def changed(
        self,
        seeds: Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        frames: Sequence[str] | None = None,
    ) -> Suite:
        """The suite with other seeds, where it samples at all, another length of answers, and other frames.

        None keeps its own, as no frame does. Raises: ConfigError for frames that it cannot be asked in.
        """
        settings = self.settings
        if seeds is not None and settings.seeds:
            settings = replace(settings, seeds=tuple(dict.fromkeys(seeds)))  # one seed twice is one answer twice
        if max_new_tokens is not None:
            settings = replace(settings, max_new_tokens=max_new_tokens)
        if frames:
            first, *others = self._checked(frames)
            settings = replace(settings, frame=first, variants=tuple(others))
        return replace(self, settings=settings)

    def _checked(self, frames: Sequence[str]) -> list[str]:
        """The frames, each once."""
        if (wrong := next((frame for frame in frames if frame.count(PROMPT) != 1), None)) is not None:
            cause = f"frame {wrong!r} has {PROMPT} {wrong.count(PROMPT)} times"
            raise ConfigError(cause, f"write it once, where the item's own prompt is to stand: 'predict: {PROMPT}'")
        found = list(dict.fromkeys(frames))
        most = self.protocol.max_frames
        if most == 0:
            raise ConfigError(f"suite {self.name} asks nothing, so no frame can stand around it", "leave --frame out")
        if most is not None and len(found) > most:
            fix = "give one --frame; only suites of options, such as anli, are asked in several"
            raise ConfigError(f"suite {self.name} is asked in one frame, and {len(found)} are given", fix)
        return found


def row_of(item: Item, prompt: str, predictions: dict[str, Any], scores: Mapping[str, float | None]) -> Row:
    """An item's line: what was asked, what would have been right, what was said, and what that is worth.

    A score that cannot be computed is null.
    """
    return {
        "id": item.id,
        "group": item.group,
        "input": prompt,
        "references": list(item.references),
        "predictions": predictions,
        "scores": {name: None if value is None or math.isnan(value) else value for name, value in scores.items()},
    }
