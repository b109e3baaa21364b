"""What is known of a folder of prepared rows: with which settings and tokenizer, from what, and what is in it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.data.corpus.building import tokenizer_card
from potstill.data.tokenise import Template, encodes_pairs
from potstill.errors import DataError
from potstill.hashes import file_sha256
from potstill.recipe import Data

CARD = "rows.json"
HASHED_BYTES = 256 << 20  # files up to this size are hashed when they are opened, in well under a second
ELSEWHERE = ("path", "heldout", "max_bad_rows")  # settings that say where rows are from, not what they are


class FileCard(BaseModel):
    """One file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int
    bytes: int
    sha256: str


class Card(BaseModel):
    """The card of a folder. ``settings`` are those of a recipe's data section, ``counts`` what data.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["potstill rows 1"] = "potstill rows 1"
    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    files: dict[str, FileCard]
    counts: dict[str, Any]


def read_card(folder: Path) -> Card:
    """The card of a folder. Raises: DataError where it is none, or of another version."""
    file = folder / CARD
    try:
        return Card.model_validate_json(file.read_bytes())
    except OSError as error:
        cause = f"{file} cannot be read: {error.strerror or error}"
        raise DataError(cause, "check the disk and the file's permissions") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        cause = f"{file} is no card of prepared rows: {where + ': ' if where else ''}{first['msg']}"
        raise DataError(cause, "prepare the rows again") from None


def settings_of(config: Data) -> dict[str, Any]:
    """The settings that shape rows."""
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in ELSEWHERE}


def overrides_of(card: Card) -> list[str]:
    """What a recipe that reads the folder has to say, KEY=VALUE, because it is not the default."""
    default = settings_of(Data()) | {"fields": card.settings["fields"]}
    return [f"data.{key}={_shown(value)}" for key, value in card.settings.items() if value != default[key]]


def tokenizer_of(tokenizer: Any, template: Template) -> dict[str, Any]:
    """Which tokenizer it is, which chat template where prompts go through one, and whether it encodes pairs."""
    hashed = sha256(str(tokenizer.chat_template).encode()).hexdigest() if template == "chat" else None
    pairs = {"pairs": True} if encodes_pairs(tokenizer) else {}  # said where it is so: older cards have no word for it
    return tokenizer_card(tokenizer) | {"chat_template_sha256": hashed} | pairs


def file_card(file: Path, rows: int) -> FileCard:
    return FileCard(rows=rows, bytes=file.stat().st_size, sha256=file_sha256(file))


# --- what is checked when a folder is opened --------------------------------------------------------------------------


def check_settings(folder: Path, card: Card, config: Data) -> None:
    """Refuse a recipe that asks for other rows than there are: its record would be untrue. Raises: DataError.

    ``template: auto`` and no ``fields`` ask for nothing.
    """
    if config.heldout is not None:
        cause = f"data.heldout={config.heldout}, and {folder} has held-out rows of its own"
        raise DataError(cause, "leave data.heldout out, or prepare the rows again with it")
    made = card.settings | {"template": card.counts.get("template")}
    asked = settings_of(config)
    passed = {"template": "auto", "fields": {}}
    differing = [key for key in asked if asked[key] != made.get(key) and asked[key] != passed.get(key, ...)]
    if not differing:
        return
    found = "; ".join(f"data.{key} is {_shown(made.get(key))} there and {_shown(asked[key])} here" for key in differing)
    fix = " ".join(f"data.{key}={_shown(made.get(key))}" for key in differing if key in made)
    raise DataError(f"{folder} was prepared with other settings: {found}", f"set {fix}, or prepare the rows again")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_tokenizer(folder: Path, card: Card, tokenizer: Any) -> None:
    """Refuse rows of another tokenizer, or of another chat template. Raises: DataError."""
    then, now = card.tokenizer, tokenizer_of(tokenizer, card.counts.get("template", "none"))
    checked = {
        "sha256": "its rules and vocabulary",
        "eos_id": "its end-of-sequence token",
        "chat_template_sha256": "its chat template",
        "pairs": "what it is for, a causal or an encoder-decoder model",
    }
    if differing := [what for key, what in checked.items() if then.get(key) != now.get(key)]:
        names = f"{then.get('name') or 'another tokenizer'}, and the model's is {now['name'] or 'another'}"
        cause = f"{folder} was prepared with the tokenizer of {names}: they differ in {' and '.join(differing)}"
        raise DataError(cause, "prepare the rows again with --model set to the student")


def check_files(folder: Path, card: Card) -> None:
    """Refuse files that are not those the card is of. The size is looked at always, the hash up to ``HASHED_BYTES``.

    Raises: DataError.
    """
    for name, known in card.files.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{folder} has no {name}", "prepare the rows again")
        if (size := file.stat().st_size) != known.bytes:
            cause = f"{file} has {size:,} bytes, and had {known.bytes:,} when it was written"
            raise DataError(cause, "prepare the rows again")
        if size <= HASHED_BYTES and file_sha256(file) != known.sha256:
            raise DataError(f"{file} is not what it was when it was written", "prepare the rows again")
