"""Rows that the ``datasets`` library opens: of a name on the Hub, of other machines, of kinds that only it reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from potstill.data.reader import BadRow, Row
from potstill.errors import ConfigError, DataError

PREFIX = "datasets:"


class HubRows:
    """The shards of a data set that is read over the network, nothing of it kept on disk.

    The library's own shuffling and state are not used: its state leaves out what lies in the shuffle buffer, so that
    rows would be lost on the way. Shards are read in order, and the place in one is a number of rows.

    Args:
        path: ``datasets:NAME`` or ``datasets:NAME:SPLIT``; the split is ``train`` where it is left out. A NAME that is
            a folder here is that folder.
        field: the only column that is wanted; None reads all of them.
        subset: of the data set, where it has several. revision: a branch, tag or commit on the Hub.
    Raises: ConfigError where the library is not installed; DataError where it cannot open the name.
    Source: https://huggingface.co/docs/datasets/stream, section "Save a dataset checkpoint and resume iteration".
    """

    def __init__(self, path: str, field: str | None = None, *, subset: str | None = None, revision: str | None = None):
        self._name, self._split = named_split(path)
        self._subset, self._revision = subset, revision
        library = import_datasets()
        with self._refusing("opened"):
            self._rows = library.load_dataset(
                self._name, name=subset, split=self._split, revision=revision, streaming=True
            )
            if field in (self._rows.column_names or ()):  # pictures or sound beside the text are not decoded
                self._rows = self._rows.select_columns([field])
        self._count = int(self._rows.num_shards)

    @property
    def names(self) -> Sequence[str]:
        return [f"{self._name}:{self._split}, shard {number + 1} of {self._count}" for number in range(self._count)]

    def rows(self, shard: int, skip: int) -> Iterator[Row | BadRow]:
        where = self.names[shard]
        with self._refusing(f"read any further than row {skip} of shard {shard + 1}"):
            rows = self._rows.shard(num_shards=self._count, index=shard).skip(skip)
            for number, values in enumerate(rows, start=skip + 1):
                yield Row(f"{where}, row {number}", dict(values))

    def identity(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "split": self._split,
            "subset": self._subset,
            "revision": self._revision,
            "shards": self._count,
        }

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the library, its network clients or its readers: each has its own kinds
            said = (str(error).splitlines() or [""])[0]
            cause = f"{self._name}, split {self._split}, could not be {what}: {type(error).__name__}: {said}"
            fix = "look at the name, split, subset, revision and network; `potstill resume` goes on with a begun run"
            raise DataError(cause, fix) from error


def named_split(path: str) -> tuple[str, str]:
    """The name and split in ``datasets:NAME[:SPLIT]``. Raises: ConfigError where there is no name."""
    match = re.fullmatch(rf"{PREFIX}(?P<name>[^:]+)(?::(?P<split>\w+))?", path)
    if match is None:
        raise ConfigError(f"{path!r} names no data set", f"write {PREFIX}NAME or {PREFIX}NAME:SPLIT")
    return match["name"], match["split"] or "train"


def import_datasets() -> Any:
    """The ``datasets`` library, which takes a second and is not always there. Raises: ConfigError."""
    try:
        return import_module("datasets")
    except ImportError as error:
        cause = f"streaming from {PREFIX}NAME needs the datasets library, which cannot be imported: {error}"
        raise ConfigError(cause, 'pip install "potstill[streaming]"') from error
