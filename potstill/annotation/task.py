"""What is asked of a teacher about each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from potstill.annotation.templates import BUILT_IN, Shot, Template
from potstill.data.catalogue.item import Item
from potstill.data.views import MARK
from potstill.errors import ConfigError

Want: TypeAlias = Literal["label", "rationale", "rationale_and_label", "response"]
Choose: TypeAlias = Literal["likelihood", "parse"]


@dataclass(frozen=True)
class Task:
    """What is wanted, and how it is asked.

    Args:
        want: of each row.
        given_label: the gold label stands in the prompt and the teacher explains it (rationalisation); without it the
            teacher reasons and does not see the label. Two modes whose rationales are not alike.
        labels: what every label is one of; where empty, a row's own options, if it has some.
        choose: how a label is found where there are labels to choose from: the likeliest, or the one that is written.
        mark: what stands between a rationale and its label.
        template: around the row's prompt; the built-in one of the mode where None.
        shots: worked examples before the row.
    Raises: ConfigError for settings that do not go together.
    """

    want: Want
    given_label: bool = False
    labels: tuple[str, ...] = ()
    choose: Choose = "likelihood"
    mark: str = MARK
    template: Template | None = None
    shots: tuple[Shot, ...] = ()

    def __post_init__(self) -> None:
        if self.want not in get_args(Want):
            raise ConfigError(f"--want is {self.want!r}", f"it is one of {', '.join(get_args(Want))}")
        if self.given_label and self.want != "rationale":
            raise ConfigError(
                f"--given-label is for rationales, and --want is {self.want}",
                "leave it out, or use --want rationale: a teacher that is told the label has none to give",
            )
        if self.labels and self.want not in ("label", "rationale_and_label"):
            raise ConfigError(f"--labels is given, and --want {self.want} has no label", "leave one of them out")
        if self.labels and len({label.casefold() for label in self.labels}) < max(2, len(self.labels)):
            raise ConfigError(f"--labels is {','.join(self.labels)}", "name two or more, each once")
        if self.choose == "parse" and not self.has_label:
            raise ConfigError(f"--choose parse is for labels, and --want {self.want} has none", "leave it out")
        if not self.mark.strip():
            raise ConfigError("--mark is empty", f"give words such as {MARK!r}")
        self.used_template.check(self.given_label)

    @property
    def mode(self) -> str:
        """What a line is: rationalisation (of a label that is given), reasoning, label or response."""
        if self.want in ("label", "response"):
            return self.want
        return "rationalisation" if self.given_label else "reasoning"

    @property
    def used_template(self) -> Template:
        return self.template or Template(BUILT_IN[self.want, self.given_label])

    @property
    def has_label(self) -> bool:
        return self.want in ("label", "rationale_and_label")

    def options_of(self, item: Item) -> tuple[str, ...]:
        """What the label of an item is one of; none where it is free."""
        return (self.labels or item.options) if self.has_label else ()

    def chosen_by_likelihood(self, item: Item) -> bool:
        return self.choose == "likelihood" and len(self.options_of(item)) > 1

    @property
    def told_by(self) -> tuple[str, ...]:
        """The fields of a row in which a person has written what is wanted."""
        match self.want:
            case "rationale":
                return ("rationale",)
            case "rationale_and_label":
                return ("rationale", "response")
            case _:
                return ("response",)

    def is_there(self, item: Item) -> bool:
        """Whether a person has written what is wanted already."""
        said = {"rationale": bool(item.rationale and item.rationale.strip()), "response": bool(item.references)}
        return all(said[name] for name in self.told_by)

    def settings(self) -> dict[str, Any]:
        """Everything that an answer depends on, for the card."""
        return {
            "want": self.want,
            "mode": self.mode,
            "labels": list(self.labels),
            "choose": self.choose,
            "mark": self.mark,
            "template": self.used_template.text,
            "template_sha256": self.used_template.sha256,
            "shots": [shot.sha256 for shot in self.shots],
        }
