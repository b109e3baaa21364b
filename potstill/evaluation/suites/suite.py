"""What a suite is: items of a data set, and a protocol that asks a model about them and scores what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from potstill.data.catalogue.item import Item
from potstill.evaluation.suites.subject import Subject

Row: TypeAlias = dict[str, Any]  # a line of rows.jsonl: id, group, input, references, predictions, scores
Scores: TypeAlias = dict[str, Any]  # a figure by its name; means with their intervals as {mean, low, high, num}


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
    """

    max_prompt_tokens: int = 512
    max_new_tokens: int = 256
    temperature: float = 1.0
    no_repeat_ngram: int = 0
    seeds: tuple[int, ...] = ()
    frame: str = "{prompt}"
    template: Literal["auto", "chat", "none"] = "auto"

    def framed(self, items: Sequence[Item]) -> list[str]:
        """The prompts as models are asked them."""
        return [self.frame.replace("{prompt}", item.prompt) for item in items]


class SuiteProtocol(Protocol):
    """Asks and scores. ``version`` goes up when a change makes other figures, so that no old one is taken for new.

    ``shortens``: inputs over ``max_prompt_tokens`` lose their middle before they are asked. ``headline``: the figures
    that a table shows, in order. ``primary``: the one that models are compared by, settled beforehand so that nobody
    chooses it by how it came out, and ``better`` which way.
    """

    version: int
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

    def changed(self, seeds: Sequence[int] | None = None, max_new_tokens: int | None = None) -> Suite:
        """The suite with other seeds, where it samples at all, and another length of answers; None keeps its own."""
        settings = self.settings
        if seeds is not None and settings.seeds:
            settings = replace(settings, seeds=tuple(dict.fromkeys(seeds)))  # one seed twice is one answer twice
        if max_new_tokens is not None:
            settings = replace(settings, max_new_tokens=max_new_tokens)
        return replace(self, settings=settings)


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
