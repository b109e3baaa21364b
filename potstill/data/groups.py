"""Rows of some groups alone, for a stream that is about them: chosen after everything else, and read as they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from potstill.data.examples import Tokenised
from potstill.data.lazy import LazyRows
from potstill.data.prepared.splits import Prepared
from potstill.errors import DataError
from potstill.recipe import DatasetSource

MOST_TOLD = 12  # groups in a message


class Chosen(LazyRows):
    """Some of the rows, by their places; those that lie in a file stay there."""

    def __init__(self, rows: Sequence[Tokenised], places: Sequence[int]):
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    def row(self, index: int) -> Tokenised:
        return self._rows[self._places[index]]


def of_groups(rows: Sequence[Tokenised], groups: Sequence[str], stream: str) -> Chosen:
    """The rows of these groups, in order.

    Args:
        stream: whose rows they are to be.
    Raises: DataError where a group has no rows, naming those that there are.
    """
    found = Counter(row.group for row in rows)
    if missing := next((group for group in groups if not found[group]), None):
        there = [f"{name} ({count} rows)" for name, count in found.most_common() if name is not None]
        if not there:
            raise DataError(
                f"stream {stream} is about group {missing}, and none of the {len(rows)} train rows has a group",
                "set data.fields.group to the field of the rows that names it; only a file of rows can have one",
            )
        more = f" and {len(there) - MOST_TOLD} more" if len(there) > MOST_TOLD else ""
        raise DataError(
            f"stream {stream} is about group {missing}, and no train row is of it. "
            f"There are {', '.join(there[:MOST_TOLD])}{more}",
            "name one of these in where.group",
        )
    return Chosen(rows, [at for at, row in enumerate(rows) if row.group in groups])


def with_groups(prepared: Prepared, streams: Mapping[str, DatasetSource]) -> Prepared:
    """The rows with a view more for each stream that is about some groups alone.

    Args:
        streams: by name. Raises: DataError as ``of_groups`` does.
    """
    chosen = {
        name: of_groups(prepared.views.get(name, prepared.train), source.where.group, name)
        for name, source in streams.items()
        if source.where is not None
    }
    if not chosen:
        return prepared
    told = {name: {"rows_of_groups": len(rows)} for name, rows in chosen.items()}
    before = prepared.counts.get("views", {})
    views = before | {name: before.get(name, {}) | own for name, own in told.items()}
    return replace(prepared, views={**prepared.views, **chosen}, counts=prepared.counts | {"views": views})
