"""What rows are streamed from: files that lie here, as one shard each, or anything else that comes in shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from potstill.data.corpus.reading import MAX_DOCUMENT_BYTES, TEXT, Paths, rows_of, source_files, text_in
from potstill.data.reader import SUFFIXES, BadRow, Row
from potstill.errors import DataError


@runtime_checkable
class Shards(Protocol):
    """Parts of a corpus, each of which has its rows in an order that never changes."""

    @property
    def names(self) -> Sequence[str]:
        """One for each shard, for messages."""

    def rows(self, shard: int, skip: int) -> Iterator[Row | BadRow]:
        """The rows of a shard, good and bad, after the first ``skip``. Raises: DataError."""

    def identity(self) -> dict[str, Any]:
        """What json can hold of what this is: a state that says otherwise is of something else."""


class Files:
    """Files of text, each of them a shard.

    Args:
        paths: .jsonl, .csv or .parquet files, or .txt with a document on each line.
        field: where the text of a .txt file is put.
    Raises: DataError for a file that is not there or not of these kinds.
    """

    def __init__(self, paths: Paths, field: str = "text", *, max_row_bytes: int = MAX_DOCUMENT_BYTES):
        self._files = source_files(paths)
        self._field, self._max_row_bytes = field, max_row_bytes

    @property
    def names(self) -> Sequence[str]:
        return [file.name for file in self._files]

    def rows(self, shard: int, skip: int) -> Iterator[Row | BadRow]:
        found = rows_of(self._files[shard], self._field, whole_files=False, max_row_bytes=self._max_row_bytes)
        return islice(found, skip, None)

    def identity(self) -> dict[str, Any]:
        return {"files": [[file.name, file.stat().st_size] for file in self._files]}


class Texts:
    """The text alone of other shards' rows, in a field "text"; a row without any is a bad one.

    Args:
        field: of the text in those rows.
    """

    def __init__(self, shards: Shards, field: str):
        self._shards, self._field = shards, field

    @property
    def names(self) -> Sequence[str]:
        return self._shards.names

    def rows(self, shard: int, skip: int) -> Iterator[Row | BadRow]:
        for row in self._shards.rows(shard, skip):
            text = text_in(row, self._field)
            yield Row(row.where, {"text": text.strip()}) if isinstance(text, str) else text

    def identity(self) -> dict[str, Any]:
        return {**self._shards.identity(), "field": self._field}


def text_files(path: Path) -> tuple[Path, ...]:
    """The file, or the files of text in a folder by name. Raises: DataError for a folder without any."""
    if not path.is_dir():
        return (path,)
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in (TEXT, *SUFFIXES))
    if not found:
        fix = "name a folder of .txt, .jsonl, .csv or .parquet files, or one that `potstill data prepare` made"
        raise DataError(f"{path} holds neither text nor blocks of tokens", fix)
    return tuple(found)
