"""A streaming writer of .bin and .idx files. What has a .idx file is whole."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.indexed.layout import CHUNK, Ids, Layout, separator_of
from potstill.data.indexed.reader import named, shard_numbers
from potstill.data.indexed.staging import staging, sync
from potstill.errors import DataError

UINT16_VOCAB = 65_500  # MiniLLM's bound: below it ids are two bytes wide
MAX_RECORDS_PER_SHARD = 1_000_000
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """What was written: counts over all shards, the dtype's name, and the .bin files in order."""

    num_records: int
    num_ids: int  # separators included
    dtype: str
    files: tuple[Path, ...]


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Two bytes an id below a vocabulary of 65,500, four from there on, as in MiniLLM. Raises: DataError."""
    largest = separator_of(np.dtype("<i4"))
    if not 0 < vocab_size <= largest:
        raise DataError(f"a vocabulary of {vocab_size} has no dtype", f"give a vocab_size from 1 to {largest}")
    return np.dtype("<u2" if vocab_size < UINT16_VOCAB else "<i4")


def write_indexed(
    prefix: str | Path,
    records: Iterable[Sequence[Any]],
    vocab_size: int,
    *,
    max_records_per_shard: int = MAX_RECORDS_PER_SHARD,
) -> Written:
    """Write ``PREFIX_0.bin`` and ``.idx``, ``PREFIX_1.bin`` and on; all of them or none. Memory holds one record and
    the sizes of one shard.

    A kill or a full disk leaves nothing under these names, or for the moment of renaming .bin files without .idx ones,
    which ``IndexedTokens`` refuses.

    Args:
        prefix: ``data/train``. Nothing of that name may be there.
        records: each a sequence of parts, and each part a sequence of ids: (ids,) a prompt or a block of text,
            (prompt_ids, response_ids) a prompt and its response. The separator is put between parts.
        vocab_size: of the tokenizer, ``len(tokenizer)``: says the dtype, and bounds the ids.
    Raises: DataError for an id that is not of the vocabulary, the separator among them, a record without ids, no
        records, files that are there already, or a disk that refuses.
    """
    target = Path(prefix)
    dtype = dtype_for(vocab_size)
    if max_records_per_shard < 1:
        raise DataError(f"max_records_per_shard is {max_records_per_shard}", "give at least 1")
    with staging(target) as folder:
        _refuse_existing(target)
        encoded = (_encoded(number, record, dtype, vocab_size) for number, record in enumerate(records))
        shards = list(_write_shards(folder, target.name, encoded, dtype, max_records_per_shard))
        if not shards:
            raise DataError(f"there are no records to write to {target}", "give at least one")
        names = [bin.name for bin, _, _ in shards]
        _publish(folder, target.parent, names)
    files = tuple(target.parent / name for name in names)
    return Written(sum(n for _, n, _ in shards), sum(ids for _, _, ids in shards), dtype.name, files)


def _refuse_existing(prefix: Path) -> None:
    there = [f"{prefix.name}_{number}" for number in shard_numbers(prefix)]
    there += [prefix.name] if named(prefix, ".bin").exists() or named(prefix, ".idx").exists() else []
    if there:
        cause = f"{prefix.parent} holds {', '.join(there[:3])} already, and nothing is overwritten"
        raise DataError(cause, f"remove {prefix.name}*.bin and .idx, or write to another place")


# --- records ----------------------------------------------------------------------------------------------------------


def _encoded(number: int, record: Sequence[Any], dtype: np.dtype[Any], vocab_size: int) -> NDArray[Any]:
    """The ids of a record in the dtype, with a separator between its parts."""
    parts: list[Ids] = []
    for part in record:
        if parts:
            parts.append(np.array([separator_of(dtype)]))
        parts.append(_checked(number, part, dtype, vocab_size))
    ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if not len(ids):
        raise DataError(f"record {number} has no ids", "leave it out")
    return ids.astype(dtype)


def _checked(number: int, part: Any, dtype: np.dtype[Any], vocab_size: int) -> Ids:
    ids = np.asarray(part)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        kind = f"{ids.dtype} of {ids.ndim} dimensions"
        raise DataError(f"record {number}: a part of it is no sequence of ids but {kind}", "give records as [ids]")
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        id = int(ids[wrong.argmax()])
        mark = ", and is what separates a prompt from its response" if id == separator_of(dtype) else ""
        cause = f"record {number} holds {id}, which is not of the vocabulary of {vocab_size:,}{mark}"
        raise DataError(cause, "give the vocab_size of the tokenizer that made the ids: len(tokenizer)")
    return ids.astype(np.int64)


# --- files ------------------------------------------------------------------------------------------------------------


def _write_shards(
    folder: Path, name: str, records: Iterator[NDArray[Any]], dtype: np.dtype[Any], limit: int
) -> Iterator[tuple[Path, int, int]]:
    """Write each shard; its .bin, its records and its ids."""
    number = 0
    while (first := next(records, None)) is not None:
        bin = folder / f"{name}_{number}.bin"
        sizes = _write_bin(bin, chain([first], islice(records, limit - 1)))
        _write_idx(folder / f"{name}_{number}.idx", np.frombuffer(sizes, np.int32), dtype)
        yield bin, len(sizes), sum(sizes)
        number += 1


def _write_bin(file: Path, records: Iterable[NDArray[Any]]) -> array[int]:
    sizes = array("i")
    with open(file, "wb", buffering=BUFFER_BYTES) as handle:
        for ids in records:
            handle.write(ids.tobytes())
            sizes.append(len(ids))
        handle.flush()
        os.fsync(handle.fileno())
    return sizes


def _write_idx(file: Path, sizes: NDArray[np.int32], dtype: np.dtype[Any]) -> None:
    """Every record is a document of its own, so the document index is 0, 1, ... and ends in their number."""
    with open(file, "wb", buffering=BUFFER_BYTES) as handle:
        handle.write(Layout(dtype, len(sizes), len(sizes) + 1).header())
        handle.write(sizes.astype("<i4").tobytes())
        end = 0
        for start in range(0, len(sizes), CHUNK):
            ends = end + np.cumsum(sizes[start : start + CHUNK].astype(np.int64) * dtype.itemsize)
            handle.write(np.concatenate([[end], ends[:-1]]).astype("<i8").tobytes())
            end = int(ends[-1])
        handle.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
        handle.flush()
        os.fsync(handle.fileno())


def _publish(folder: Path, target: Path, names: list[str]) -> None:
    """Give the files their names: every .bin before any .idx, so that until the last one the set is refused."""
    for name in [*names, *(Path(name).with_suffix(".idx").name for name in names)]:
        os.replace(folder / name, target / name)
    sync(target)
