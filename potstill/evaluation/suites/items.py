"""The items of a suite: of its data set, or of a file that the user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.data.catalogue import Item, load
from potstill.data.corpus import documents
from potstill.data.examples import Unusable
from potstill.data.formats import text_of
from potstill.data.reader import BadRow, Row, read_rows
from potstill.errors import ConfigError, DataError
from potstill.evaluation.suites.suite import Suite

MEND = "mend or remove the row"
OPTIONS = "options are a list of two or more texts, which .jsonl and .parquet files can hold; response is one of them"
NEEDS = {  # what a suite asks of a row beside its prompt and response
    "classification": f"give each row its options, or use suite instruction; {OPTIONS}",
    "maths": "give each row a number or an equation as its response, or use suite instruction, which takes any text",
}


def items_of(
    suite: Suite, *, limit: int | None = None, file: Path | None = None, folder: Path | None = None
) -> tuple[Item, ...]:
    """What the suite asks about, in the order of its files.

    Args:
        limit: items of each split, from the first; all where None. So two models always get the same ones.
        file: of the user's own, for a suite without a data set.
        folder: of the data set; by default the one below the data root.
    Raises: ConfigError where a file is missing or one too many; DataError for a file that cannot be used, and an item
        that the suite cannot ask.
    """
    if suite.dataset is None:
        if file is None:
            raise ConfigError(f"suite {suite.name} is about rows of your own, and no file is named", "add --data FILE")
        if file.is_dir():
            rows = "documents" if suite.name == "plain_text" else "rows"
            raise DataError(f"{file} is a folder", f"name a file of {rows}; suites do not read prepared folders")
        own = tuple(_own_items(suite, file))
        if not own:
            raise DataError(f"{file} has no rows", "put rows in it, or name another file")
        return own[:limit]
    if file is not None:
        fix = "leave --data out, or use suite instruction, classification, maths, summaries or plain_text with it"
        raise ConfigError(f"suite {suite.name} has its own data set, {suite.dataset}", fix)
    loaded = [load(suite.dataset, split, folder=folder) for split in suite.splits]
    return tuple(_checked(suite, item) for part in loaded for item in part.items[:limit])


def _checked(suite: Suite, item: Item) -> Item:
    try:
        suite.protocol.check(item)
    except Unusable as reason:
        raise DataError(f"{suite.name}: {item.id}: {reason}", "use a split with its answers, or leave it out") from None
    return item


def _own_items(suite: Suite, file: Path) -> Iterator[Item]:
    """Rows of a file as items. A row that cannot be one is refused: figures would be of fewer rows than the file's."""
    if suite.name == "plain_text":
        for number, text in enumerate(documents(file), 1):
            yield Item(f"{file.name}, document {number}", text, (), content=text)
        return
    first: dict[str, str] = {}  # id -> where
    for row in read_rows(file):
        if isinstance(row, BadRow):
            raise DataError(f"{row.where}: {row.reason}", MEND)
        item = _own_item(suite, row, file, is_first=not first)
        if (seen := first.setdefault(item.id, row.where)) != row.where:
            raise DataError(f"{row.where}: duplicate id {item.id[:60]!r} (first at {seen})", MEND)
        yield item


def _own_item(suite: Suite, row: Row, file: Path, *, is_first: bool) -> Item:
    """A row as an item that the suite can ask. Raises: DataError with a way out that fits the row."""
    try:
        item = own_item(row)
    except Unusable as reason:
        raise DataError(f"{row.where}: {reason}", _way_out(row, file, is_first)) from None
    try:
        suite.protocol.check(item)
    except Unusable as reason:
        raise DataError(f"{row.where}: {reason}", NEEDS.get(suite.name, MEND)) from None
    return item


def _way_out(row: Row, file: Path, is_first: bool) -> str:
    if is_first and not {"prompt", "response"} <= row.values.keys():  # and so most likely all of them
        names = "fields" if file.suffix.lower() == ".jsonl" else "columns"
        return f"name the {names} prompt and response, and options where there are some"
    if not isinstance(row.values.get("options", []), list):
        return OPTIONS
    return MEND


def own_item(row: Row) -> Item:
    """A row of ``prompt`` with ``response`` (text, or a list of acceptable ones) and, to choose from, ``options``.

    Raises: Unusable.
    """
    values = row.values
    options = _texts(values, "options") if "options" in values else ()
    references = _texts(values, "response")
    if options and references[0] not in options:
        raise Unusable(f"field 'response' is {references[0][:40]!r}, which is none of the options")
    return Item(
        _word(values, "id") or row.where,
        text_of(values, "prompt"),
        references,
        options=options,
        answer=options.index(references[0]) if options else None,
        group=_word(values, "group"),
    )


def _word(values: dict[str, Any], name: str) -> str:
    """A text, or a number as text; empty where there is none."""
    found = values.get(name)
    return "" if found is None or found == "" else text_of({name: str(found)}, name)


def _texts(values: dict[str, Any], name: str) -> tuple[str, ...]:
    """A field that holds a text or a list of them; at least one."""
    found = values.get(name)
    if not isinstance(found, list):
        return (text_of(values, name),)
    if not found:
        raise Unusable(f"field {name!r} is an empty list")
    named = {f"{name}[{index}]": text for index, text in enumerate(found)}
    return tuple(text_of(named, key) for key in named)


def check_ids(items: Sequence[Item], of: str) -> None:
    """Refuse items that share an id, by which results are kept. Raises: DataError."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"{of} has two items with the id {item.id!r}", "give each its own")
        seen.add(item.id)
