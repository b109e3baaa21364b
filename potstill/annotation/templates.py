"""What a teacher is shown: a template around the row's prompt, after worked examples where there are some."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from potstill.data.catalogue.item import Item
from potstill.data.examples import Unusable
from potstill.data.formats import text_of
from potstill.data.reader import BadRow, read_rows
from potstill.errors import ConfigError, DataError, nearest

Turns: TypeAlias = tuple[tuple[str, str], ...]  # (role, content)
PLACES = ("prompt", "label", "options", "mark")
_PLACE = re.compile(r"\{([a-z_]+)\}")
# Without a chat template, what ends a worked example; a teacher that writes it begins one of its own invention.
BETWEEN = "\n\n---\n\n"

BUILT_IN: Mapping[tuple[str, bool], str] = {
    ("label", False): "{prompt}\n\nAnswer with one of: {options}.\nAnswer:",
    ("rationale", True): (
        "{prompt}\n\nThe right answer is: {label}.\nSay in one or two sentences why it is right.\nReason:"
    ),
    ("rationale", False): "{prompt}\n\nThink it through, in one or two sentences.\nReason:",
    ("rationale_and_label", False): (
        "{prompt}\n\nThink it through in one or two sentences, then end with "
        '"{mark}" and the answer, one of: {options}.\nReason:'
    ),
    ("response", False): "{prompt}",
}
OPTIONS_PHRASES = (", one of: {options}", " with one of: {options}")  # left out where a row has no options


@dataclass(frozen=True)
class Template:
    """A text with places for the row's {prompt}, and where they are wanted its {label}, {options} and the {mark}.

    ``where`` it is from is for messages.
    """

    text: str
    where: str = "the built-in template"

    @property
    def sha256(self) -> str:
        return sha256(self.text.encode()).hexdigest()

    def check(self, given_label: bool) -> None:
        """Refuse a template that does not show what it must, or shows the label that is not to be seen.

        Raises: ConfigError.
        """
        named = _PLACE.findall(self.text)
        if (unknown := next((name for name in named if name not in PLACES), None)) is not None:
            places = ", ".join(f"{{{name}}}" for name in PLACES)
            raise ConfigError(
                f"{self.where} has a place {{{unknown}}}", f"{nearest(unknown, PLACES)}There are {places}; or reword it"
            )
        if "prompt" not in named:
            raise ConfigError(f"{self.where} has no place for the row: {{prompt}}", "put {prompt} where it belongs")
        if given_label and "label" not in named:
            raise ConfigError(f"{self.where} has no {{label}}, and --given-label shows it", "put {label} into it")
        if not given_label and "label" in named:
            raise ConfigError(
                f"{self.where} shows the {{label}}, which the teacher is not to see",
                "add --given-label (with --want rationale), or take {label} out",
            )

    def filled(self, prompt: str, *, label: str, options: Sequence[str], mark: str) -> str:
        """The template about one row; what a row says is never taken for a place."""
        text = self.text
        if not options:
            for phrase in OPTIONS_PHRASES:
                text = text.replace(phrase, "")
        values = {"prompt": prompt, "label": label, "options": ", ".join(options), "mark": mark}
        return _PLACE.sub(lambda found: values[found[1]], text)


def read_template(file: Path) -> Template:
    """The template in a text file, without its last line break. Raises: ConfigError."""
    try:
        text = file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{file} cannot be read: {reason}", "name a text file with {prompt} in it") from None
    return Template(text, str(file))


# --- worked examples --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """A worked example. ``id`` is empty where it has none."""

    id: str
    prompt: str
    label: str | None = None
    rationale: str | None = None
    response: str | None = None
    options: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        return sha256(repr(self).encode("utf-8", "surrogatepass")).hexdigest()

    def answer(self, want: str, mark: str) -> str:
        """What the teacher would have said."""
        found = {
            "label": self.label,
            "rationale": self.rationale,
            "rationale_and_label": f"{self.rationale} {mark} {self.label}.",
            "response": self.response,
        }[want]
        assert found is not None  # read_shots has seen to it
        return found


NEEDED = {
    "label": ("label",),
    "rationale": ("rationale",),
    "rationale_and_label": ("rationale", "label"),
    "response": ("response",),
}


def read_shots(file: Path, want: str, given_label: bool) -> tuple[Shot, ...]:
    """The worked examples of a .jsonl file: ``prompt``, what is wanted (``label``, ``rationale``, ``response``), and
    perhaps ``id`` and ``options``. Raises: DataError, naming file, line and field."""
    needed = (*NEEDED[want], *(["label"] if given_label else []))
    shots = []
    for row in read_rows(file):
        if isinstance(row, BadRow):
            raise DataError(f"{row.where}: {row.reason}", "correct the line, or remove it")
        try:
            shots.append(_shot(row.values, needed))
        except Unusable as reason:
            fix = f"give every shot of --want {want} its prompt, {', '.join(dict.fromkeys(needed))}"
            raise DataError(f"{row.where}: {reason}", fix) from None
    if not shots:
        raise DataError(f"{file} has no worked examples", "put some in, or leave --shots out")
    return tuple(shots)


def _shot(values: dict[str, Any], needed: Sequence[str]) -> Shot:
    texts = {name: text_of(values, name) for name in dict.fromkeys(("prompt", *needed))}
    options = values.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise Unusable("field 'options' is not a list of texts")
    return Shot(str(values.get("id", "")), options=tuple(options), **texts)


def is_shot(item: Item, shots: Sequence[Shot]) -> bool:
    """Whether a row is one of the worked examples, by id or by prompt: asked about it, a teacher would copy."""
    return any((shot.id and shot.id == item.id) or shot.prompt.strip() == item.prompt.strip() for shot in shots)


def turns_of(
    prompt: str, template: Template, shots: Sequence[Shot], *, want: str, label: str, options: Sequence[str], mark: str
) -> Turns:
    """The conversation: each worked example as a question and its answer, then the row's question."""
    turns: list[tuple[str, str]] = []
    for shot in shots:
        asked = template.filled(shot.prompt, label=shot.label or "", options=shot.options or options, mark=mark)
        turns += [("user", asked), ("assistant", shot.answer(want, mark))]
    return (*turns, ("user", template.filled(prompt, label=label, options=options, mark=mark)))


def plain_text(turns: Turns) -> str:
    """The conversation for a model without a chat template: examples apart, the last question left open."""
    *before, (_, asked) = turns
    pairs = zip(before[::2], before[1::2], strict=True)
    worked = [
        f"{question}{'' if question[-1:].isspace() else ' '}{answer}{BETWEEN}" for (_, question), (_, answer) in pairs
    ]
    return "".join(worked) + asked
