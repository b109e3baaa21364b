"""Rows or documents: what a file to be prepared looks like, so that the one is not taken for the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.data.datasets import Named, place_of
from potstill.data.reader import SUFFIXES, Row, read_rows
from potstill.errors import ConfigError, DataError

OF_ROWS = (("prompt", "response"), ("instruction", "output"), ("messages",))  # field names of ``data.format``


def one_place(files: Sequence[str]) -> str:
    """The only file of rows that is named. Raises: ConfigError."""
    if len(files) == 1:
        return files[0]
    cause = f"--rows prepares one file, or one split of a data set, and {len(files)} are named"
    raise ConfigError(cause, "name one; held-out rows of their own are named with data.heldout=FILE")


def check_rows(place: str) -> None:
    """Refuse a text file where rows are asked for. Raises: DataError."""
    if Path(place).suffix.lower() == ".txt":
        cause = f"{place} is text, a document on each line, and --rows is for prompts with responses"
        raise DataError(cause, "leave --rows out to make a corpus of it")


def check_documents(files: Sequence[str], field: str) -> None:
    """Refuse rows where documents are asked for: a named split, or fields of rows and no text. Raises: DataError."""
    for file in files:
        if isinstance(place_of(file), Named):
            raise DataError(f"{file} is a split of rows, and a corpus is made of documents", "add --rows")
        if Path(file).suffix.lower() not in SUFFIXES:
            continue
        first = next((row for row in read_rows(Path(file)) if isinstance(row, Row)), None)
        found = next((names for names in OF_ROWS if first and set(names) <= set(first.values)), None)
        if first and found and field not in first.values:
            cause = f"{file} has no {field!r} but {' and '.join(map(repr, found))}: these are rows, not documents"
            raise DataError(cause, "add --rows to prepare them as such, or name the field of a text with --field")
