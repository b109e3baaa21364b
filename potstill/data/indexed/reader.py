"""A memory-mapped reader: the records of all shards as one sequence, opened in the same memory however large."""

from __future__ import annotations

import mmap
import operator
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.indexed.layout import AGAIN, Ids, Layout, check_tables, read_layout, separator_of
from potstill.errors import DataError


@dataclass(frozen=True)
class _Shard:
    """A .bin file and its .idx file, both mapped."""

    bin: Path
    layout: Layout
    sizes: NDArray[Any]
    offsets: NDArray[Any]
    ids: NDArray[Any]
    map: mmap.mmap | None  # of the .bin; None where it is empty

    def record(self, place: int) -> Ids:
        start = int(self.offsets[place]) // self.layout.dtype.itemsize
        return self.ids[start : start + int(self.sizes[place])].astype(np.int64)


class IndexedTokens:
    """Records of token ids. ``tokens[i]`` is int64 of shape (ids,), as written: a separator is still in it.

    Files are checked when they are opened, tables and sizes; ids when they are read. A copy sent to another process
    opens the files again and carries no ids.

    Args:
        path: the folder of the shards, or without ``split`` their common beginning: ``data/train`` for
            data/train_0.bin and on, or for data/train.bin alone.
        split: ``train`` for train_0.bin and .idx, train_1.bin and on.
        vocab_size: of the tokenizer; a record with an id outside it is refused. None does not ask.
        separator: what stands between a prompt and its response, where that is not the largest id of the dtype.
    Raises: DataError naming the file and what is wrong with it.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        vocab_size: int | None = None,
        separator: int | None = None,
    ):
        self._arguments = (str(path), split, vocab_size, separator)
        self._shards = [_open(prefix) for prefix in find_shards(path, split)]
        self._ends = list(accumulate(shard.layout.num_records for shard in self._shards))
        self.dtype = _one_dtype(self._shards)
        self.vocab_size = vocab_size
        self.separator = separator_of(self.dtype) if separator is None else separator
        self._check_separator()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, self._arguments

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[Ids]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Ids:
        shard, place = self._find(index)
        ids = shard.record(place)
        self._check_ids(ids, shard, place)
        return ids

    def parts(self, index: int) -> tuple[Ids, ...]:
        """The record cut at its separators, which are left out; one part where there is none."""
        ids = self[index]
        cuts = np.flatnonzero(ids == self.separator)
        starts, ends = [0, *(cuts + 1)], [*cuts, len(ids)]
        return tuple(ids[start:end] for start, end in zip(starts, ends, strict=True))

    def pair(self, index: int) -> tuple[Ids, Ids]:
        """The ids of a prompt and of its response. Raises: DataError where the record is not such a pair."""
        parts = self.parts(index)
        if len(parts) != 2:
            shard, place = self._find(index)
            found = f"{len(parts) - 1} separators {self.separator}" if len(parts) > 1 else f"no {self.separator}"
            cause = f"{shard.bin}: record {place} is no prompt and response: it holds {found}, not one"
            raise DataError(cause, "read prompts alone or blocks of text with tokens[i], others with tokens.parts(i)")
        return parts[0], parts[1]

    def expect_random_reads(self) -> None:
        """Tell the system not to read ahead: a cold record of 2 KB then takes a fifth of the time on a fast disk."""
        for shard in self._shards:
            if shard.map is not None and hasattr(mmap, "MADV_RANDOM"):
                shard.map.madvise(mmap.MADV_RANDOM)

    def _find(self, index: int) -> tuple[_Shard, int]:
        number = operator.index(index)
        wanted = number + len(self) if number < 0 else number
        if not 0 <= wanted < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        at = bisect_right(self._ends, wanted)
        return self._shards[at], wanted - (self._ends[at - 1] if at else 0)

    def _check_separator(self) -> None:
        """Refuse a vocabulary in which the separator is a token too: nothing in the file could tell them apart."""
        if self.vocab_size is not None and self.separator < self.vocab_size:
            cause = f"{self._shards[0].bin}: {self.separator} separates prompt and response there, and is also a token"
            raise DataError(
                f"{cause} of this vocabulary of {self.vocab_size:,}",
                "this is the data of another tokenizer, or was cut to 16 bits: process it again for this one",
            )

    def _check_ids(self, ids: Ids, shard: _Shard, place: int) -> None:
        # The separator is the largest id of all: with one above it, it is itself a token of the vocabulary.
        limit = self.separator if self.vocab_size is None else self.vocab_size
        wrong = (ids < 0) | ((ids >= limit) & (ids != self.separator))
        if wrong.any():
            at = int(wrong.argmax())
            holds = f"record {place} holds {int(ids[at])} at place {at}"
            cause = f"{shard.bin}: {holds}, and token ids are 0 to {limit - 1} with the separator {self.separator}"
            raise DataError(cause, f"is it the data of another tokenizer? If not, {AGAIN}")


def _reopened(path: str, split: str | None, vocab_size: int | None, separator: int | None) -> IndexedTokens:
    return IndexedTokens(path, split, vocab_size=vocab_size, separator=separator)


# --- files ------------------------------------------------------------------------------------------------------------


def find_shards(path: str | Path, split: str | None = None) -> list[Path]:
    """The files without .bin and .idx, in order. Raises: DataError where one is missing or is without the other."""
    prefix = Path(path) / split if split else Path(path)
    numbers = shard_numbers(prefix)
    alone = [file for file in (named(prefix, ".bin"), named(prefix, ".idx")) if file.exists()]
    if alone and numbers:
        raise DataError(f"there are {alone[0]} and {prefix}_{numbers[0]}: two sets of one name", "move one of them")
    if not alone and not numbers:
        raise _nothing_there(Path(path), split)
    if numbers != list(range(len(numbers))):
        lacking = next(number for number in range(numbers[-1]) if number not in numbers)
        cause = f"there is no shard {prefix}_{lacking}.bin and .idx, but there is one numbered {numbers[-1]}"
        raise DataError(cause, "copy the missing shard, or number those there are from 0 without a gap")
    return [prefix] if alone else [prefix.with_name(f"{prefix.name}_{number}") for number in numbers]


def shard_numbers(prefix: Path) -> list[int]:
    """The numbers of the shards of which there is a .bin or a .idx."""
    if not prefix.parent.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(prefix.name)}_(0|[1-9]\d*)\.(?:bin|idx)")
    return sorted({int(match[1]) for file in prefix.parent.iterdir() if (match := pattern.fullmatch(file.name))})


def named(prefix: Path, suffix: str) -> Path:
    """``train_0`` as train_0.bin; a point in the name stays."""
    return prefix.with_name(prefix.name + suffix)


def _nothing_there(path: Path, split: str | None) -> DataError:
    folder = path if split or path.is_dir() else path.parent
    if not folder.is_dir():
        return DataError(f"there is no folder {folder}", "name the folder of the .bin and .idx files")
    here = sorted({match[1] for file in folder.glob("*.idx") if (match := re.fullmatch(r"(.+)_\d+\.idx", file.name))})
    fix = f"the splits there: {', '.join(here)}" if here else "name the folder of the .bin and .idx files"
    wanted = f"{split}_0.idx" if split else "split named" if path.is_dir() else f"{path.name}.idx or {path.name}_0.idx"
    return DataError(f"{folder}: there is no {wanted}", fix)


def _open(prefix: Path) -> _Shard:
    bin, idx = named(prefix, ".bin"), named(prefix, ".idx")
    if not idx.is_file():
        raise DataError(f"{bin} has no {idx.name} beside it: it was never finished", AGAIN)
    if not bin.is_file():
        raise DataError(f"{idx} has no {bin.name} beside it", AGAIN)
    try:
        layout = read_layout(idx)
        bin_bytes = bin.stat().st_size
        check_tables(idx, layout, bin_bytes)
        return _mapped(bin, idx, layout, bin_bytes)
    except OSError as error:
        cause = f"{error.filename or idx} cannot be read: {error.strerror or error}"
        raise DataError(cause, "check the disk and the file's permissions") from error


def _mapped(bin: Path, idx: Path, layout: Layout, bin_bytes: int) -> _Shard:
    tables = np.frombuffer(_map(idx), "u1")  # one map for its tables: each map holds a file open
    sizes = tables[layout.sizes_at : layout.offsets_at].view("<i4")
    offsets = tables[layout.offsets_at : layout.documents_at].view("<i8")
    if not bin_bytes:  # a file of no bytes cannot be mapped
        return _Shard(bin, layout, sizes, offsets, np.empty(0, layout.dtype), None)
    mapped = _map(bin)
    return _Shard(bin, layout, sizes, offsets, np.frombuffer(mapped, layout.dtype), mapped)


def _map(file: Path) -> mmap.mmap:
    with open(file, "rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _one_dtype(shards: list[_Shard]) -> np.dtype[Any]:
    first = shards[0]
    for shard in shards:
        if shard.layout.dtype != first.layout.dtype:
            kinds = f"{shard.bin} holds {shard.layout.dtype} and {first.bin} {first.layout.dtype}"
            raise DataError(f"{kinds}: they are not of one data set", "process all shards with one tokenizer")
    return first.layout.dtype
