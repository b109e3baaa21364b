"""What a teacher wrote, as it was written: a line for each question, added as it comes and never changed.

Beside ``annotations.jsonl`` stand ``annotations.raw.jsonl``, these lines, and ``annotations.card.json``: what they
depend on, written before the first of them. A command that was stopped goes on after the last whole line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.data.catalogue.item import Item
from potstill.data.examples import prompt_sha256
from potstill.errors import ConfigError, DataError
from potstill.run import json_object, read_jsonl, write_text
from potstill.served.keeping import end_last_line

SHOWN = 300  # characters of a setting in a message


class RawLine(BaseModel):
    """One answer.

    Args:
        id, sample, prompt_sha256: the row, which of its answers, and the hash of the row's own prompt.
        text: as written; empty where nothing was to be written. finished: its end was written too.
        problem: why there is no text.
        nats: how much less likely than the likeliest each option is as the label, in the options' order; None where
            none was scored.
        seconds: what it took.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: str
    sample: int
    prompt_sha256: str
    text: str
    finished: bool
    problem: str | None = None
    nats: list[float] | None = None
    seconds: float = 0.0


@dataclass
class RawFile:
    """The lines of one output, and its card. One process at a time has it open."""

    out: Path
    lines: dict[tuple[str, int], RawLine] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.raw.jsonl")

    @property
    def decided_file(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.decided.jsonl")

    @property
    def card_file(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.card.json")

    def card(self) -> dict[str, Any]:
        """What is known of the output; empty where it is not begun. Raises: DataError for a damaged card."""
        if not self.card_file.exists():
            return {}
        if (found := json_object(self.card_file.read_bytes())) is None or not isinstance(found.get("settings"), dict):
            raise DataError(
                f"{self.card_file} is damaged", "choose another --out: nothing says what these lines are of"
            )
        return found

    def write_card(self, card: Mapping[str, Any]) -> None:
        write_text(self.card_file, json.dumps(card, indent=2, ensure_ascii=False) + "\n")

    def begin(self, settings: Mapping[str, Any], items: Mapping[str, Item]) -> None:
        """Read what is there, and note what is to come.

        Args:
            settings: everything that a line depends on. items: the rows, by id.
        Raises: ConfigError where what is there was asked otherwise; DataError for a damaged or foreign line.
        """
        card = self.card()
        for file in (self.out, self.file):
            if not card and file.exists() and file.stat().st_size:
                raise DataError(f"{file} has no card beside it that says what it is of", "choose another --out")
        self.settings = dict(settings)
        if self.file.exists():
            end_last_line(self.file)
        if card and self.file.exists() and self.file.stat().st_size:
            _refuse_others(self.card_file, card["settings"], json.loads(json.dumps(self.settings)))
        for number, values in enumerate(read_jsonl(self.file), 1):
            line = _line(values, f"{self.file}:{number}")
            if line.id in items and line.prompt_sha256 != prompt_sha256(items[line.id].prompt):
                raise DataError(
                    f"{self.file}:{number}: {line.id!r} was asked about another prompt than the row has",
                    "choose another --out",
                )
            self.lines.setdefault((line.id, line.sample), line)

    def add(self, line: RawLine) -> None:
        """Keep an answer: on disk before the next is asked for, and the card before the first."""
        if not self.lines:  # not earlier: a teacher that there is none of leaves nothing that binds the next command
            self.write_card({"settings": self.settings})
        with open(self.file, "a", encoding="utf-8", newline="\n") as handle:
            handle.write(json.dumps(line.model_dump(), ensure_ascii=False) + "\n")
        self.lines[line.id, line.sample] = line


def _line(values: dict[str, Any], where: str) -> RawLine:
    try:
        return RawLine.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or "the line"
        raise DataError(
            f"{where}: {name}: {first['msg']}", "take the line out, and its row is asked about again"
        ) from None


def _refuse_others(file: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on otherwise than was begun, naming what differs."""
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    if names:
        told = "; ".join(f"{name} was {_shown(there.get(name))}, and is {_shown(now.get(name))}" for name in names)
        raise ConfigError(
            f"{file.with_name(file.name.replace('.card.json', '.raw.jsonl'))} was begun otherwise: {told}",
            "go on with the settings it has, or choose another --out",
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
