"""Rows of a .jsonl, .csv or .parquet file, one at a time, each with where it stands.

A row that cannot be read is a ``BadRow``; a file that cannot be read is a ``DataError``. Files are streamed: memory
holds one row (parquet: one batch of rows), however long the file or its lines are.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from potstill.errors import DataError

SUFFIXES = (".jsonl", ".csv", ".parquet")
MAX_ROW_BYTES = 1_000_000  # no prompt and response that fit a context window come near this
EXCERPT_CHARS = 200  # how much of a bad row is kept
PARQUET_BATCH = 256  # rows held at once
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Row:
    """A row as read. ``where`` is ``file.jsonl:12``: the line it starts on, or the 1-based row number in parquet."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where, why, and its beginning."""

    where: str
    reason: str
    row: str


Line: TypeAlias = tuple[int, bytes, bool]  # 1-based number, the line or its beginning, whether it is over the limit


def read_rows(file: Path, *, names: tuple[str, ...] = (), max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row | BadRow]:
    """The rows of a file in their order; blank lines are passed over.

    Args:
        file: .jsonl, .csv with a header, or .parquet.
        names: what may stand in place of a file name; offered where the file is missing.
        max_row_bytes: a longer line or row is a bad one.
    Raises: DataError for a file that is missing, empty, of another kind, or broken as a whole.
    """
    check_file(file, names)
    reader = {".jsonl": read_jsonl_rows, ".csv": _read_csv, ".parquet": _read_parquet}[file.suffix.lower()]
    return reader(file, max_row_bytes)


def check_file(file: Path, names: tuple[str, ...] = ()) -> None:
    """Refuse what is not a readable kind of file, saying what there is instead."""
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if p.suffix.lower() in SUFFIXES)[:5]
        fix = f"name one file in it: {', '.join(inside)}" if inside else "name a file of rows; there is none in it"
        raise DataError(f"{file} is a folder, not a file", fix)
    if not file.exists():
        raise DataError(f"there is no data file {file}", _near(file, names))
    if file.suffix.lower() not in SUFFIXES:
        kind = f"a {file.suffix} file" if file.suffix else "a file without a suffix"
        raise DataError(f"{file} is {kind}", "convert it: .jsonl (one JSON object a line), .csv and .parquet are read")
    if not file.is_file():
        raise DataError(f"{file} is not an ordinary file", "copy its rows into a .jsonl file")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty", "put rows in it, or name another file of rows")


def _near(file: Path, names: tuple[str, ...]) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either; name a file that does"
    here = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    near = get_close_matches(file.name, [*names, *here], n=3, cutoff=0.5)
    found = [name if name in names else str(folder / name) for name in near or here[:3]]
    return f"did you mean {' or '.join(found)}?" if found else f"name another file of rows; {folder} has no data files"


# --- lines ------------------------------------------------------------------------------------------------------------


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with open(file, "rb") as handle:
            yield handle
    except OSError as error:
        cause = f"{file} cannot be read: {error.strerror or error}"
        raise DataError(cause, "check the disk and the file's permissions") from error


def physical_lines(handle: BinaryIO, file: Path, limit: int) -> Iterator[Line]:
    """Physical lines. Of a line over ``limit`` bytes only the beginning is held; the rest is read past."""
    number = 0
    while line := handle.readline(limit + 1):
        number += 1
        if number == 1 and line.startswith(UTF16):
            raise DataError(f"{file} is in UTF-16", f"convert it: iconv -f UTF-16 -t UTF-8 {file} > NEW")
        end = line
        while not end.endswith(b"\n") and (end := handle.readline(limit + 1)):
            pass
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, len(line) > limit


def excerpt(line: bytes) -> str:
    return line[:EXCERPT_CHARS].decode("utf-8", "backslashreplace").rstrip("\r\n")


def over_long(limit: int) -> str:
    return f"over-long: more than {limit:,} bytes"


# --- jsonl ------------------------------------------------------------------------------------------------------------


def read_jsonl_rows(file: Path, limit: int) -> Iterator[Row | BadRow]:
    with opened(file) as handle:
        for number, line, too_long in physical_lines(handle, file, limit):
            where = f"{file.name}:{number}"
            if too_long:
                yield BadRow(where, over_long(limit), excerpt(line))
            elif line.strip():
                values = _json_object(line)
                yield BadRow(where, values, excerpt(line)) if isinstance(values, str) else Row(where, values)


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or why there is none."""
    if b"\0" in line:
        return "holds a NUL character"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
    except (RecursionError, ValueError):  # ValueError: a number of more digits than Python converts
        return "not JSON that can be read: nested too deeply, or a number with too many digits"
    return value if isinstance(value, dict) else f"not a JSON object but {kind_of(value)}"


def kind_of(value: Any) -> str:
    """What a value is, in a word: text, int, list, null."""
    words = {str: "text", type(None): "null", dict: "an object", list: "a list", bool: "true or false"}
    return words.get(type(value), type(value).__name__)


# --- csv --------------------------------------------------------------------------------------------------------------


def _read_csv(file: Path, limit: int) -> Iterator[Row | BadRow]:
    csv.field_size_limit(max(2 * limit, csv.field_size_limit()))  # out of the way: ours is reached first
    with opened(file) as handle:
        records = _csv_records(physical_lines(handle, file, limit), file, limit)
        header = _header(next(records, (1, b"", "there is none")), file)
        for number, line, record in records:
            where = f"{file.name}:{number}"
            if isinstance(record, str):
                yield BadRow(where, record, excerpt(line))
            elif len(record) != len(header):
                yield BadRow(where, f"{len(record)} fields where the header has {len(header)}", excerpt(line))
            else:
                yield Row(where, dict(zip(header, record, strict=True)))


def _csv_records(lines: Iterator[Line], file: Path, limit: int) -> Iterator[tuple[int, bytes, list[str] | str]]:
    """Number of the first line, that line, and the record's fields or why there are none."""
    for number, line, too_long in lines:
        if too_long:
            yield number, line, over_long(limit)
        elif line.strip():
            # A reader of its own for each record: a broken one cannot put the next out of step.
            yield number, line, _csv_fields(chain([line], _continuation(lines, f"{file}:{number}", limit)))


def _csv_fields(lines: Iterator[bytes]) -> list[str] | str:
    try:
        fields = next(csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True))
        "".join(fields).encode("utf-8")
    except csv.Error as error:
        return f"not csv: {error}"
    except UnicodeEncodeError:  # a byte that was not UTF-8 came through as a lone surrogate
        return "not UTF-8"
    return fields


def _continuation(lines: Iterator[Line], where: str, limit: int) -> Iterator[bytes]:
    """Further lines of a record with a line break inside quotes.

    A quote that stays open swallows good rows uncounted, so it stops the file.
    """
    size = 0
    for _, line, too_long in lines:
        size += len(line)
        if too_long or size > limit:
            break
        yield line
    raise DataError(f"{where}: a quote opened here is never closed", "close it, or double each quote inside a field")


def _header(first: tuple[int, bytes, list[str] | str], file: Path) -> list[str]:
    _, _, names = first
    if isinstance(names, str):
        raise DataError(f"{file} has no header that can be read: {names}", "make its first line name the columns")
    _refuse_twice(names, file)
    return names


def _refuse_twice(names: Sequence[str], file: Path) -> None:
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise DataError(f"{file} has two columns called {twice!r}", "rename one of them")


# --- parquet ----------------------------------------------------------------------------------------------------------


def _read_parquet(file: Path, limit: int) -> Iterator[Row | BadRow]:
    import pyarrow as pa  # here, because it takes longer to load than most files take to read
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            _refuse_twice(table.schema_arrow.names, file)
            for batch in table.iter_batches(batch_size=PARQUET_BATCH):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch.slice(index, 1), f"{file.name}:{number}", limit)
    except UnicodeDecodeError:  # in a row it is seen to there
        raise DataError(f"{file} has a column whose name is not UTF-8", "rename it, and write the file again") from None
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{file} is not a whole parquet file: {cause}", "copy or write it again") from error


def _parquet_row(batch: Any, where: str, limit: int) -> Row | BadRow:
    if batch.nbytes > limit:
        return BadRow(where, over_long(limit), "")
    try:
        return Row(where, batch.to_pylist()[0])
    except UnicodeDecodeError:
        return BadRow(where, "not UTF-8", "")
    except (ValueError, OverflowError) as error:  # a date past all calendars, two fields of one name in a column
        return BadRow(where, f"not what Python can hold: {' '.join(str(error).split())[:120]}", "")
