"""Documents of text files, jsonl, csv and parquet, one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from potstill.data.corpus.lines import from_line
from potstill.data.examples import Unusable
from potstill.data.formats import text_of
from potstill.data.reader import (
    EXCERPT_CHARS,
    BadRow,
    Row,
    check_file,
    excerpt,
    opened,
    over_long,
    physical_lines,
    read_rows,
)
from potstill.errors import DataError

Paths: TypeAlias = str | Path | Iterable[str | Path]
TEXT = ".txt"
MAX_DOCUMENT_BYTES = 10_000_000


def source_files(paths: Paths) -> tuple[Path, ...]:
    """The files, each one that can be read as a corpus. Raises: DataError for one that is not there, or for none."""
    files = tuple(Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths))
    if not files:
        raise DataError("there are no source files", "name at least one .txt, .jsonl, .csv or .parquet file")
    for file in files:
        if file.suffix.lower() != TEXT or file.is_dir():
            check_file(file)
        elif not file.is_file():
            raise DataError(f"there is no text file {file}", "name a .txt, .jsonl, .csv or .parquet file")
        elif file.stat().st_size == 0:
            raise DataError(f"{file} is empty", "put text in it, or leave the file out")
    return files


def documents(
    paths: Paths,
    field: str = "text",
    *,
    whole_files: bool = False,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[str]:
    """The documents of the files in order; those without text are passed over. Memory holds one.

    Args:
        paths: .txt files, a document on each line with ``MARKER`` for its line breaks; or .jsonl, .csv and .parquet.
        field: the field or column of the text; not asked of .txt files.
        whole_files: each .txt file is one document, its line breaks its own.
        max_document_bytes: a longer line or row is a bad one.
    Raises: DataError for a file that is missing or broken, and at the first bad row; ``texts`` gives bad rows instead.
    """
    for text in texts(paths, field, whole_files=whole_files, max_document_bytes=max_document_bytes):
        if isinstance(text, BadRow):
            raise DataError(f"{text.where}: {text.reason}", "mend or remove the row")
        yield text


def texts(
    paths: Paths,
    field: str = "text",
    *,
    whole_files: bool = False,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[str | BadRow]:
    """As ``documents``, and each bad row in its place."""
    for file in source_files(paths):
        for row in rows_of(file, field, whole_files=whole_files, max_row_bytes=max_document_bytes):
            text = text_in(row, field)
            if isinstance(text, BadRow) or text.strip():
                yield text


def rows_of(file: Path, field: str, *, whole_files: bool, max_row_bytes: int) -> Iterator[Row | BadRow]:
    """The rows of any kind of source file; those of a .txt file have their text in ``field``."""
    if file.suffix.lower() != TEXT:
        return read_rows(file, max_row_bytes=max_row_bytes)
    return (_whole_file if whole_files else _text_lines)(file, field, max_row_bytes)


def text_in(row: Row | BadRow, field: str) -> str | BadRow:
    """The text of a row, empty perhaps; a bad row where there is none."""
    if isinstance(row, BadRow):
        return row
    try:
        return text_of(row.values, field, may_be_empty=True)
    except Unusable as reason:
        excerpt = json.dumps({field: row.values.get(field)}, default=str)[:EXCERPT_CHARS]
        return BadRow(row.where, str(reason), excerpt)


def _text_lines(file: Path, field: str, limit: int) -> Iterator[Row | BadRow]:
    with opened(file) as handle:
        for number, line, too_long in physical_lines(handle, file, limit):
            where = f"{file.name}:{number}"
            if too_long:
                yield BadRow(where, over_long(limit), excerpt(line))
            elif line.strip():
                yield _decoded(where, field, line.removesuffix(b"\n").removesuffix(b"\r"))


def _whole_file(file: Path, field: str, limit: int) -> Iterator[Row | BadRow]:
    with opened(file) as handle:
        text = handle.read(limit + 1)
    if len(text) > limit:
        yield BadRow(file.name, over_long(limit), excerpt(text))
    else:
        yield _decoded(file.name, field, text.removeprefix(b"\xef\xbb\xbf"))


def _decoded(where: str, field: str, line: bytes) -> Row | BadRow:
    try:
        return Row(where, {field: from_line(line.decode("utf-8"))})
    except UnicodeDecodeError as error:
        return BadRow(where, f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}", excerpt(line))
