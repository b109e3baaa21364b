"""Rows of a corpus too large to hold: in order or shuffled, once or for ever, resumed at the exact row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import Any

from potstill.data.corpus.reading import MAX_DOCUMENT_BYTES, Paths
from potstill.data.corpus.shards import Files, Shards
from potstill.data.reader import BadRow, Row
from potstill.errors import DataError

BUFFER_ROWS = 1000
JUDGED_FROM = 1000  # rows; of fewer a few bad ones are a large share


@dataclass(frozen=True)
class _Place:
    """Where a buffer begins: the pass over the shards, the shard in that pass's order, the row in the shard."""

    epoch: int = 0
    shard: int = 0
    row: int = 0  # rows of the shard read before, good and bad
    buffer: int = 0  # which of its epoch
    good: int = 0  # rows of the epoch read before
    bad: int = 0  # rows read before in all epochs
    read: int = 0  # and all rows, good and bad


class Streamed:
    """An iterator of the good rows of files, whose state is a few numbers however far it has come.

    With a seed each pass takes the files in a new order, and the rows in a new order within each ``buffer_rows`` of
    them: a row moves no further than that, so rows that lie sorted in a file want shuffling on disk first. Every order
    is a function of the seed, the pass and the place, so that going on needs no more than the place: the file is read
    again from its beginning up to there, earlier files are not.

    Args:
        source: .jsonl, .parquet, .csv, or .txt with a document on each line, which is a row with a field "text"; or
            any ``Shards``, which are then what is said of files here.
        position: rows to pass over first, as if they had been taken.
        seed: None is the order of the files.
        buffer_rows: rows held at once where they are shuffled.
        repeat: begin again at the end; otherwise the iterator ends.
        max_row_bytes: a longer row of a file is a bad one.
        max_bad_share: of the rows that may be bad in the first pass, once a thousand are read and at its end.
    Raises: DataError for a file that cannot be read, for too many bad rows, and at the end of the first pass where no
        row is good.
    """

    def __init__(
        self,
        source: Paths | Shards,
        position: int = 0,
        *,
        seed: int | None = None,
        buffer_rows: int = BUFFER_ROWS,
        repeat: bool = False,
        max_row_bytes: int = MAX_DOCUMENT_BYTES,
        max_bad_share: float = 1.0,
    ):
        if position < 0 or buffer_rows < 1:
            raise DataError(f"position {position} with buffer_rows {buffer_rows}", "give at least 0 and at least 1")
        self._shards = source if isinstance(source, Shards) else Files(source, max_row_bytes=max_row_bytes)
        self.seed, self.repeat = seed, repeat
        self.buffer_rows = 1 if seed is None else buffer_rows
        self._max_bad_share = max_bad_share
        self._last_bad: BadRow | None = None  # for messages; no part of the state
        self._go_to(_Place(), taken=0, position=0)
        passed = sum(1 for _ in islice(self, position))
        if passed < position:
            raise DataError(f"position {position} is behind the last row: there are {passed}", "give a smaller one")

    def __iter__(self) -> Streamed:
        return self

    def __next__(self) -> Row:
        while self._taken == len(self._rows):
            self._fill()
        self._taken += 1
        self.position += 1
        return self._rows[self._taken - 1]

    @property
    def num_bad(self) -> int:
        """Rows met so far that could not be read, those of a second pass counted again."""
        return self._next.bad

    @property
    def num_passes(self) -> int:
        """Passes over the files that have been read to their end."""
        return self._next.epoch

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers and names that json can hold: where the next row is, and what it is that is read."""
        return {"position": self.position, "taken": self._taken, "place": asdict(self._start), "of": self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises: DataError where it is of other files or another order."""
        try:
            place = _Place(**{field.name: int(state["place"][field.name]) for field in fields(_Place)})
            taken, position, of = int(state["taken"]), int(state["position"]), dict(state["of"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("the state is not one of a stream of rows", "give one that state_dict made") from error
        now = self._settings()
        if differ := [name for name in now if of.get(name) != now[name]]:
            was = "; ".join(f"{name} was {of.get(name)} and is {now[name]}" for name in differ)
            raise DataError(f"the state is of another stream: {was}", "open the same files with the same settings")
        self._go_to(place, taken, position)

    def _settings(self) -> dict[str, Any]:
        return {**self._shards.identity(), "seed": self.seed, "buffer_rows": self.buffer_rows}

    def _go_to(self, place: _Place, taken: int, position: int) -> None:
        self._start = self._next = place
        self._read = self._rows_from(place)
        self._rows: list[Row] = []
        self._taken, self.position = 0, position
        if taken:
            with suppress(StopIteration):
                self._fill()
            self._taken = taken
        if taken > len(self._rows):
            raise DataError("the state is behind the last row of the files", "open the files that it was taken of")

    # --- reading ------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Read the next buffer, or begin the next pass. Raises: StopIteration at the end."""
        self._start = place = self._next
        self._taken, self._rows = 0, []
        try:
            self._rows = list(islice(self._read, self.buffer_rows))
        except DataError:  # the next attempt meets it again, and does not take it for the end
            self._next, self._read = place, self._rows_from(place)
            raise
        if self._rows:
            self._next = replace(self._next, buffer=place.buffer + 1, good=place.good + len(self._rows))
            if self.seed is not None:
                random.Random(f"{self.seed}/{place.epoch}/{place.buffer}").shuffle(self._rows)
        elif not self._next.good:
            names = ", ".join(self._shards.names[:3])
            raise DataError(f"{names}: none of the rows can be read ({self.num_bad} are bad)", "mend the rows")
        elif not self.repeat:
            raise StopIteration
        else:
            self._next = _Place(epoch=place.epoch + 1, bad=self._next.bad, read=self._next.read)
            self._read = self._rows_from(self._next)

    def _rows_from(self, place: _Place) -> Iterator[Row]:
        """The good rows of a pass from ``place`` on; ``_next`` keeps up with them."""
        order = self._order(place.epoch)
        for number in range(place.shard, len(order)):
            skip = place.row if number == place.shard else 0
            for count, row in enumerate(self._shards.rows(order[number], skip), start=skip + 1):
                is_bad = isinstance(row, BadRow)
                now = self._next
                self._next = replace(now, shard=number, row=count, bad=now.bad + is_bad, read=now.read + 1)
                if isinstance(row, Row):
                    yield row
                else:
                    self._last_bad = row
                    if self._next.read >= JUDGED_FROM:
                        self._judge()
        self._judge()

    def _judge(self) -> None:
        """Refuse too many bad rows in the first pass; in later ones they are the same."""
        bad, read = self._next.bad, self._next.read
        if self._next.epoch == 0 and bad > self._max_bad_share * read:
            last = f", the last {self._last_bad.where}: {self._last_bad.reason}" if self._last_bad else ""
            cause = f"{bad} of the first {read} rows cannot be used{last}"
            raise DataError(cause, "name the field of the text, source.field in a recipe, or mend the rows")

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self._shards.names)))
        if self.seed is not None:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order
