"""Tokenised rows in an Arrow IPC file: written row by row, read through a memory map."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.data.examples import Tokenised
from potstill.data.lazy import LazyRows
from potstill.errors import DataError

BATCH_ROWS = 256  # of every record batch but the last: where a row is follows from its number


def write_arrow(file: Path, rows: Iterable[Tokenised], *, groups: bool = False) -> int:
    """Write rows to a file, and have it on the disk; how many there were. Memory holds ``BATCH_ROWS`` of them.

    The same rows give the same bytes. ``groups``: with the rows' groups. Raises: OSError where the disk refuses.
    """
    import pyarrow as pa  # here, because it takes longer to load than most files take to read

    ids = pa.list_(pa.int32())
    text = pa.string()
    types = {"prompt_ids": ids, "response_ids": ids, "id": text, "prompt": text, "response": text}
    schema = pa.schema(types | {"truncated": pa.bool_()} | ({"group": text} if groups else {}))
    count = 0
    with open(file, "wb") as handle:
        with pa.ipc.new_file(handle, schema) as writer:
            rest = iter(rows)
            while batch := list(islice(rest, BATCH_ROWS)):
                writer.write_batch(pa.record_batch(_columns(batch)[: len(schema)], schema=schema))
                count += len(batch)
        handle.flush()
        os.fsync(handle.fileno())
    return count


def _columns(rows: Sequence[Tokenised]) -> list[list[Any]]:
    return [
        [row.prompt_ids for row in rows],
        [row.response_ids for row in rows],
        [row.example_id for row in rows],
        [row.prompt for row in rows],
        [row.response for row in rows],
        [row.truncated for row in rows],
        [row.group for row in rows],
    ]


class ArrowRows(LazyRows):
    """The rows of a file that ``write_arrow`` wrote, read as they are asked for.

    A copy sent to another process opens the file again.

    Raises: DataError for a file that is none of these, or has another number of rows than ``num_rows``.
    """

    def __init__(self, file: Path, num_rows: int):
        import pyarrow as pa

        self._file, self._num_rows = file, num_rows
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(file)))
            num_batches = self._reader.num_record_batches
            last = self._reader.get_batch(num_batches - 1).num_rows if num_batches else 0
        except (pa.ArrowException, OSError) as error:
            raise _broken(file, str(error).splitlines()[0][:200]) from error
        if (found := max(num_batches - 1, 0) * BATCH_ROWS + last) != num_rows:
            raise _broken(file, f"it has {found:,} rows, and its card says {num_rows:,}")

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowRows, (self._file, self._num_rows)

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[Tokenised]:
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            yield from (_row(batch, at) for at in range(batch.num_rows))

    def row(self, index: int) -> Tokenised:
        return _row(self._reader.get_batch(index // BATCH_ROWS), index % BATCH_ROWS)


def _row(batch: Any, at: int) -> Tokenised:
    prompt_ids, response_ids, id, prompt, response, truncated, *group = (column[at] for column in batch.columns)
    return Tokenised(
        example_id=id.as_py(),
        prompt_ids=tuple(prompt_ids.values.to_numpy().tolist()),
        response_ids=tuple(response_ids.values.to_numpy().tolist()),
        prompt=prompt.as_py(),
        response=response.as_py(),
        truncated=truncated.as_py(),
        group=group[0].as_py() if group else None,
    )


def _broken(file: Path, why: str) -> DataError:
    return DataError(f"{file} is not the file of rows that was prepared: {why}", "prepare the rows again")
