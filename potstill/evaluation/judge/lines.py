"""Lines of a .jsonl file that a person may have written or changed: each by a strict schema, each named where it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from potstill.data.reader import MAX_ROW_BYTES, BadRow, read_jsonl_rows
from potstill.errors import DataError

Line = TypeVar("Line", bound=BaseModel)


def read_lines(file: Path, kind: type[Line], *, fix: str) -> Iterator[tuple[str, Line]]:
    """Where each line stands, as ``folder/file.jsonl:3``, and what it says. Blank lines are passed over.

    Args:
        file: may be empty. kind: the schema. fix: what to do where there is no such file.
    Raises: DataError for a missing file and for the first line that is not of the schema.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}", fix)
    for row in read_jsonl_rows(file, 4 * MAX_ROW_BYTES):  # a prompt repeats what it is about
        where = str(file.with_name(row.where))
        if isinstance(row, BadRow):
            raise DataError(f"{where}: {row.reason}", "correct the line, or remove it")
        try:
            yield where, kind.model_validate(row.values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "the line"
            fix = "correct the line; docs/how-to/judge.md has an example"
            raise DataError(f"{where}: {field}: {first['msg']}", fix) from None


def by_id(lines: Iterable[tuple[str, Line]]) -> dict[str, tuple[str, Line]]:
    """Lines with where they stand, by their ``id``, in order.

    Raises: DataError where an id stands twice, naming both lines.
    """
    found: dict[str, tuple[str, Line]] = {}
    for where, line in lines:
        name: str = line.id  # type: ignore[attr-defined]
        if name in found:
            raise DataError(f"{where}: id {name!r} stands at {found[name][0]} already", "remove one of the two lines")
        found[name] = (where, line)
    return found
