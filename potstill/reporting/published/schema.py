"""What a file of published figures holds: sources, the names that models go by, and tables of figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from potstill.evaluation.suites import SUITES
from potstill.recipe.section import Count, Finite, Index, NonNegative, Positive, Section
from potstill.recipe_errors import did_you_mean

Text = Annotated[str, Field(min_length=1)]
Tag = Literal["P", "V", "I", "C", "R", "M"]
HOW_SURE: dict[Tag | None, str] = {
    "P": "read in the publication",
    "V": "seen in a text or plot that quotes it",
    "I": "an issue or pull request",
    "C": "read in the code",
    "R": "confirmed by a check",
    "M": "from memory, not verified",
    None: "not said",
}


class Source(Section):
    """Who published: ``title`` and, where they are known, ``paper`` (authors, year, arXiv number) and ``url``."""

    title: Text
    paper: Text | None = None
    url: Text | None = None


class Asked(Section):
    """How the models were asked, as far as it is known, in a suite's own settings. Temperature 0 is greedy."""

    max_prompt_tokens: Count | None = None
    max_new_tokens: Count | None = None
    temperature: NonNegative | None = None
    no_repeat_ngram: Index | None = None
    seeds: tuple[Index, ...] | None = None


class Row(Section):
    """A figure. ``value`` and ``deviation`` (over seeds) are as they were published, before ``scale``.

    ``method`` is a recipe's name where it is one, ``teacher`` for the teacher itself, else free text. ``tag`` says how
    sure the figure is, see HOW_SURE. ``note``: what is particular to this figure and not to its table.
    """

    method: Text
    model: Text
    teacher: Text | None = None
    value: Finite
    deviation: NonNegative | None = None
    tag: Tag | None
    note: Text | None = None


class Table(Section):
    """Figures of one kind, measured in one way.

    ``suite`` and ``figure`` are ours; ``suite`` null where we have none, and then the other words are free. A published
    value times ``scale`` is in the unit of our figure: 0.01 where they print per cent and we a share.
    """

    source: Text
    where: Text
    suite: Text | None
    figure: Text
    dataset: Text
    split: Text | None
    num_items: Count | None
    unit: Text
    scale: Positive | None = Field(default=None, validate_default=True)
    settings: Text
    asked: Asked = Asked()
    figures: Annotated[tuple[Row, ...], Field(min_length=1)]

    @field_validator("suite")
    @classmethod
    def _is_a_suite(cls, suite: str | None) -> str | None:
        if suite is not None and suite not in SUITES:
            raise ValueError(f"no suite is called {suite!r}. {did_you_mean(suite, SUITES, 'null, or one of')}")
        return suite

    @field_validator("figure")
    @classmethod
    def _is_of_the_suite(cls, figure: str, info: ValidationInfo) -> str:
        if suite := info.data.get("suite"):
            known = SUITES[suite].protocol.headline
            if figure not in known:
                raise ValueError(f"{suite} has no figure {figure!r}. {did_you_mean(figure, known, 'It has')}")
        return figure

    @field_validator("scale")
    @classmethod
    def _is_there_for_a_suite(cls, scale: float | None, info: ValidationInfo) -> float | None:
        if scale is None and info.data.get("suite"):
            raise ValueError("is missing. Say what a value is multiplied by to be in our figure's unit, 1 for the same")
        return scale

    def in_our_unit(self, value: float) -> float:
        """A published value times the scale; as it is where we have no such figure."""
        return float(f"{value * (self.scale or 1):.12g}")  # 88.38 per cent is 0.8838, not 0.8838000000000001


class PublishedFile(Section):
    """A file of published figures. ``models``: the names under which a model of its figures is known elsewhere."""

    about: Text
    sources: dict[str, Source]
    models: dict[str, tuple[Text, ...]] = Field(default_factory=dict)
    tables: Annotated[tuple[Table, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Published:
    """A figure with all that its file says of it. ``known_as``: by model, the other names that it goes by."""

    source: Source
    table: Table
    row: Row
    known_as: Mapping[str, tuple[str, ...]]

    @property
    def suite(self) -> str | None:
        return self.table.suite

    @property
    def figure(self) -> str:
        return self.table.figure

    @property
    def method(self) -> str:
        return self.row.method

    @property
    def value(self) -> float:
        """In our figure's unit, or as published where we have no such figure."""
        return self.table.in_our_unit(self.row.value)

    @property
    def deviation(self) -> float | None:
        return None if self.row.deviation is None else self.table.in_our_unit(self.row.deviation)
