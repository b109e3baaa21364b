"""The bytes of a .idx file: where each record of the .bin file beside it lies.

9 bytes of magic, u64 version, u8 dtype code, u64 number of records, u64 length of the document index; then i32 sizes
in ids, i64 offsets in bytes, i64 document index. All little-endian, nothing aligned. The .bin file is the ids back to
back.

Source: Megatron-LM's memory-mapped indexed dataset; code 9 is MiniLLM's addition.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError

Ids: TypeAlias = NDArray[np.int64]

MAGIC = b"MMIDIDX\0\0"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4"}
FLOATS = (6, 7)
AGAIN = "copy it again from where it came, or process the data again"
CHUNK = 65_536  # entries checked at once: an index of any length is read in the same memory


@dataclass(frozen=True)
class Layout:
    """What the head of a .idx file says, and so where its three tables begin and how long the file is, in bytes."""

    dtype: np.dtype[Any]
    num_records: int
    num_documents: int

    sizes_at = HEADER.size

    @property
    def offsets_at(self) -> int:
        return self.sizes_at + 4 * self.num_records

    @property
    def documents_at(self) -> int:
        return self.offsets_at + 8 * self.num_records

    @property
    def num_bytes(self) -> int:
        return self.documents_at + 8 * self.num_documents

    def header(self) -> bytes:
        code = next(code for code, name in DTYPES.items() if np.dtype(name) == self.dtype)
        return HEADER.pack(MAGIC, VERSION, code, self.num_records, self.num_documents)


def separator_of(dtype: np.dtype[Any]) -> int:
    """The id between a prompt and its response: the largest that the dtype holds, 65535 or 2147483647."""
    return int(np.iinfo(dtype).max)


def read_layout(idx: Path) -> Layout:
    """The head of a .idx file, which is as long as its head says. Raises: DataError."""
    size = idx.stat().st_size
    with open(idx, "rb") as handle:
        head = handle.read(HEADER.size)
    if not head.startswith(MAGIC):
        raise _not_an_index(idx, head)
    if len(head) < HEADER.size:
        raise DataError(f"{idx}: it is cut off: {size} bytes are less than its head, {HEADER.size}", AGAIN)
    _, version, code, num_records, num_documents = HEADER.unpack(head)
    if version != VERSION:
        raise DataError(f"{idx}: it is of version {version}, and version {VERSION} is read", AGAIN)
    layout = Layout(_dtype(idx, code), num_records, num_documents)
    if size != layout.num_bytes:
        said = f"{num_records:,} records and {num_documents:,} documents take {layout.num_bytes:,} bytes"
        wrong = "it is cut off" if size < layout.num_bytes else "it is too long"
        raise DataError(f"{idx}: {wrong}: {said}, and the file has {size:,}", AGAIN)
    return layout


def _not_an_index(idx: Path, head: bytes) -> DataError:
    if not head:
        return DataError(f"{idx}: it is empty", AGAIN)
    if head.startswith(b"TNTIDX"):
        return DataError(f"{idx}: it is of the older kind that is not memory-mapped", "write it with impl=mmap")
    found = f"it begins with {head[: len(MAGIC)]!r}, an index with {MAGIC!r}"
    return DataError(f"{idx}: it is not an index of tokens: {found}", AGAIN)


def _dtype(idx: Path, code: int) -> np.dtype[Any]:
    if code in FLOATS:
        raise DataError(f"{idx}: dtype code {code} is of floating-point numbers, not of token ids", AGAIN)
    if code not in DTYPES:
        raise DataError(f"{idx}: there is no dtype code {code}; there are {', '.join(map(str, DTYPES))}", AGAIN)
    return np.dtype(DTYPES[code])


def check_tables(idx: Path, layout: Layout, bin_bytes: int) -> None:
    """Every record lies inside the .bin, one after the other, and together they are all of it.

    An index of another .bin would give ids that look like any others, so nothing less is accepted.

    Raises: DataError naming the first record that is wrong.
    """
    end = first = 0
    sizes = _entries(idx, "<i4", layout.sizes_at, layout.num_records)
    offsets = _entries(idx, "<i8", layout.offsets_at, layout.num_records)
    for size, offset in zip(sizes, offsets, strict=True):
        end = _check_records(idx, first, size.astype(np.int64) * layout.dtype.itemsize, offset, end, bin_bytes)
        first += len(size)
    if end != bin_bytes:
        cause = f"its sizes add up to {end:,} bytes, and {idx.with_suffix('.bin').name} has {bin_bytes:,}"
        raise DataError(f"{idx}: {cause}", AGAIN)
    last = 0
    for documents in _entries(idx, "<i8", layout.documents_at, layout.num_documents):
        steps = np.diff(documents, prepend=last)
        if (steps < 0).any() or documents[-1] > layout.num_records:
            cause = f"its document index does not count upwards from 0 to {layout.num_records} records"
            raise DataError(f"{idx}: {cause}", AGAIN)
        last = int(documents[-1])


def _check_records(idx: Path, first: int, lengths: Ids, offsets: Ids, start: int, bin_bytes: int) -> int:
    """Check a run of records that begins at byte ``start`` of the .bin; where it ends. All in bytes."""
    if (negative := lengths < 0).any():
        raise DataError(f"{idx}: record {first + int(negative.argmax())} has a negative size", AGAIN)
    if (outside := (offsets < 0) | (offsets > bin_bytes - lengths)).any():
        place = int(outside.argmax())
        where = f"{int(lengths[place]):,} bytes at byte {int(offsets[place]):,}"
        has = f"{idx.with_suffix('.bin').name} has {bin_bytes:,} bytes"
        raise DataError(f"{idx}: record {first + place} is outside the data: it is {where}, and {has}", AGAIN)
    ends = start + np.cumsum(lengths)
    expected = np.concatenate([[start], ends[:-1]])
    if (moved := offsets != expected).any():
        place = int(moved.argmax())
        where = f"begins at byte {int(offsets[place]):,}, and the one before ends at byte {int(expected[place]):,}"
        raise DataError(f"{idx}: sizes and offsets do not agree: record {first + place} {where}", AGAIN)
    return int(ends[-1])


def _entries(idx: Path, dtype: str, at: int, count: int) -> Iterator[Ids]:
    """A table of the index in chunks, read and not mapped, so that checking it leaves nothing in memory."""
    width = np.dtype(dtype).itemsize
    for start in range(0, count, CHUNK):
        yield np.fromfile(idx, dtype, min(CHUNK, count - start), offset=at + start * width)
