"""From the rows of a file to items: the fields that data sets have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from potstill.data.catalogue.item import Item
from potstill.data.examples import Unusable
from potstill.data.formats import text_of
from potstill.data.quarantine import excerpt
from potstill.data.reader import MAX_ROW_BYTES, BadRow, Row, kind_of, opened, over_long, read_jsonl_rows, read_rows
from potstill.errors import DataError


def items_of(file: Path, item_of: Callable[[Row], Item]) -> Iterator[Item | BadRow]:
    """The items of a file in its order; of two rows with one id the second is bad.

    Args:
        file: .jsonl, .csv, .parquet, or .json: objects on lines of their own, or one array of them.
        item_of: raises Unusable with the reason why a row holds no item.
    Raises: DataError for a file that cannot be read as a whole.
    """
    first: dict[str, str] = {}  # id -> where
    for row in rows_of(file):
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            item = item_of(row)
            if (seen := first.setdefault(item.id, row.where)) != row.where:
                raise Unusable(f"duplicate id {item.id[:60]!r} (first at {seen})")
            yield item
        except Unusable as reason:
            yield BadRow(row.where, str(reason), excerpt(row))


def rows_of(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a file; those of an array are counted from 1. Raises: DataError."""
    if file.suffix.lower() != ".json":
        return read_rows(file)
    if not file.is_file() or file.stat().st_size == 0:
        raise DataError(f"{file} is not a file with rows", "download it again")
    with opened(file) as handle:
        beginning = handle.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    return _array_rows(file) if beginning.startswith(b"[") else read_jsonl_rows(file, MAX_ROW_BYTES)


def _array_rows(file: Path) -> Iterator[Row | BadRow]:
    short = file.stat().st_size <= MAX_ROW_BYTES  # and so are all its rows
    for number, value in enumerate(array(file), start=1):
        where = f"{file.name}:{number}"
        if not isinstance(value, dict):
            yield BadRow(where, f"not a JSON object but {kind_of(value)}", repr(value)[:200])
        elif not short and num_bytes(value) > MAX_ROW_BYTES:
            yield BadRow(where, over_long(MAX_ROW_BYTES), excerpt(Row(where, value)))
        else:
            yield Row(where, value)


def num_bytes(value: Any) -> int:
    """How long a value would be as a line of its own."""
    try:
        return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    except RecursionError:  # nested as deeply as can be read: its fields say what is wrong with it
        return 0


def array(file: Path) -> list[Any]:
    """The JSON array that a file is. Raises: DataError where it is not one, or is cut off."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not a whole JSON array: {str(error)[:120]}", "download it again") from None
    if not isinstance(values, list):
        raise DataError(f"{file} is not a JSON array but {kind_of(values)}", "download it again")
    return values


# --- fields -----------------------------------------------------------------------------------------------------------


def name_of(values: dict[str, Any], *names: str) -> str:
    """Which of several names for one field a row uses; the first where it uses none."""
    return next((name for name in names if name in values), names[0])


def text(values: dict[str, Any], *names: str) -> str:
    """The text of a field that goes by several names. Raises: Unusable where there is none, or an empty one."""
    return text_of(values, name_of(values, *names))


def optional_text(values: dict[str, Any], *names: str) -> str | None:
    """The first of these fields that holds text; None where all are absent, null or blank."""
    for name in names:
        if values.get(name) is not None and (found := text_of(values, name, may_be_empty=True)).strip():
            return found
    return None


def id_of(row: Row, *names: str) -> str:
    """The row's own id, or where it stands. Raises: Unusable for text that no seed can be made of."""
    name = name_of(row.values, *names)
    value = row.values.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(row.values, name) if isinstance(value, str) and value.strip() else row.where
