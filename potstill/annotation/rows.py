"""The rows that a teacher is asked about, with what a person has said about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from potstill.annotation.task import Task
from potstill.data import datasets
from potstill.data.catalogue import load
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.rows import items_of
from potstill.data.datasets import Named
from potstill.data.examples import Unusable
from potstill.data.formats import check_fields, example_of, text_of
from potstill.data.reader import BadRow, Row
from potstill.errors import ConfigError, DataError
from potstill.hashes import file_sha256
from potstill.recipe import Data

UNSAID = "-"  # where a format wants a response and the row has none
SHOWN = 3  # bad rows named in a message


@dataclass(frozen=True)
class Rows:
    """The usable rows of a file or split in its order, and those that are not, with the reason.

    ``fields``: how rationale and response are named there; None where they cannot be named otherwise.
    """

    items: tuple[Item, ...]
    bad: tuple[BadRow, ...]
    place: str
    sha256: str
    fields: Mapping[str, str] | None = None

    @property
    def counts(self) -> dict[str, Any]:
        return {
            "file": self.place,
            "sha256": self.sha256,
            "rows": len(self.items) + len(self.bad),
            "quarantined": len(self.bad),
        }


def read_items(config: Data, task: Task) -> Rows:
    """The rows of ``config.path`` that the task can be asked about.

    Args:
        config: a file, or a split of a named data set; and how a file's rows are read.
    Raises: DataError for what cannot be read as a whole, or has a larger share of bad rows than the config allows.
    """
    place = datasets.train_place(config)
    if config.format == "chat":
        raise ConfigError(
            "rows of messages are not annotated", "give rows of prompt and response, or of MiniLLM's layout (dolly)"
        )
    if isinstance(place, Named):
        loaded = load(place.name, place.split)
        found: list[Item | BadRow] = [*loaded.items, *loaded.bad]
        digest = sha256("".join(sorted(loaded.sha256.values())).encode()).hexdigest()
    else:
        check_fields(config)
        found = list(items_of(place, lambda row: _item(row, config)))
        digest = file_sha256(place)
    sorted_rows = [_checked(item, task) for item in found]
    rows = Rows(
        tuple(row for row in sorted_rows if isinstance(row, Item)),
        tuple(row for row in sorted_rows if isinstance(row, BadRow)),
        datasets.shown(place),
        digest,
        None if isinstance(place, Named) else _fields(config),
    )
    _judge(rows, config.max_bad_rows)
    return rows


def _fields(config: Data) -> dict[str, str] | None:
    if config.format != "prompt_response":
        return None
    return {name: config.fields.get(name, name) for name in ("rationale", "response")}


def _item(row: Row, config: Data) -> Item:
    """A row of a file, which need not have a response. Raises: Unusable."""
    name = config.fields.get("response", "response") if config.format == "prompt_response" else "output"
    answered = row.values.get(name) not in (None, "", [])
    example = example_of(row if answered else Row(row.where, row.values | {name: UNSAID}), config)
    if not example.prompt.strip():
        raise Unusable("the prompt is empty")
    options = _options(row.values) if row.values.get("options") is not None else ()
    references = (example.response,) if answered else ()
    return Item(example.id, example.prompt, references, options=options, rationale=example.rationale)


def _options(values: dict[str, Any]) -> tuple[str, ...]:
    options = values["options"]
    if not isinstance(options, list) or len(options) < 2:
        raise Unusable("field 'options' is not a list of two or more texts")
    named = {f"options[{index}]": option for index, option in enumerate(options)}
    return tuple(text_of(named, name) for name in named)


def _checked(item: Item | BadRow, task: Task) -> Item | BadRow:
    """The item as the task asks about it, or why it cannot."""
    if isinstance(item, BadRow):
        return item
    gold = item.references[0] if item.references else None
    if task.given_label and gold is None:
        return BadRow(item.id, "it has no label to be explained", item.prompt[:200])
    options = task.options_of(item)
    if gold is None or not options or gold in options:
        return item
    spelt = next((option for option in options if option.casefold() == gold.strip().casefold()), None)
    if spelt is None:
        return BadRow(item.id, f"its label {gold[:40]!r} is none of {', '.join(options)[:80]}", item.prompt[:200])
    return replace(item, references=(spelt, *item.references[1:]))


def _judge(rows: Rows, max_bad_rows: float) -> None:
    """Refuse a file without a usable row, or with too many that are not."""
    count = len(rows.items) + len(rows.bad)
    if not count:
        raise DataError(f"{rows.place} has no rows", "put rows in it, or name another file of rows")
    share = len(rows.bad) / count
    if rows.items and share <= max_bad_rows:
        return
    named = "; ".join(f"{row.where}: {row.reason}" for row in rows.bad[:SHOWN])
    raise DataError(f"{len(rows.bad)} of the {count} rows of {rows.place} cannot be used: {named}", _fix(rows, share))


def _fix(rows: Rows, share: float) -> str:
    if any(row.reason.startswith("missing field") for row in rows.bad):
        return "say how the file names its fields: data.fields.prompt=question"
    if not rows.items:
        return "mend the rows, or name another file of rows"
    return f"mend these rows, or allow them with data.max_bad_rows={math.ceil(100 * share) / 100:g}"


def asked_about(items: Sequence[Item], task: Task, *, only_missing: bool) -> tuple[list[Item], list[Item]]:
    """The items to ask about, and those of which a person's words are kept."""
    human = [item for item in items if only_missing and task.is_there(item)]
    kept = {item.id for item in human}
    return [item for item in items if item.id not in kept], human


def nothing_there(rows: Rows, task: Task, num_asked: int) -> str:
    """That no row has what is wanted, and how its field is named where it may have another name."""
    names = task.told_by
    if rows.fields is None:
        return f"--only-missing: no row has a {' and a '.join(names)}, so all {num_asked} are asked about"
    sought = " and a ".join(f"field {rows.fields[name]!r}" for name in names)
    named = " ".join(f"data.fields.{name}=NAME" for name in names)
    return (
        f"--only-missing: no row has a {sought} with words in it, so all {num_asked} are asked about; "
        f"if it has another name, add {named}"
    )
