"""Rows as read, where they stand, and files that are broken row by row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.data.reader import BadRow, Row, read_rows
from potstill.errors import DataError

GOOD = '{"prompt": "p", "response": "r"}'


def read(file: Path, **options: Any) -> list[tuple[str, Any]]:
    return [(row.where, row.values if isinstance(row, Row) else row.reason) for row in read_rows(file, **options)]


def test_jsonl_rows_stand_at_their_line_and_blank_lines_are_passed_over(rows_file):
    file = rows_file(['{"a": 1}', "", "   ", '{"a": 2}'])
    assert read(file) == [("rows.jsonl:1", {"a": 1}), ("rows.jsonl:4", {"a": 2})]


def test_the_last_line_needs_no_line_break_and_windows_ones_are_fine(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\r\n{"a": 2}')
    assert read(file) == [("rows.jsonl:1", {"a": 1}), ("rows.jsonl:2", {"a": 2})]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    jsonl, table = tmp_path / "rows.jsonl", tmp_path / "rows.csv"
    jsonl.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n")
    table.write_bytes(b"\xef\xbb\xbfprompt,response\np,r\n")
    assert [values for _, values in read(jsonl) + read(table)] == [{"prompt": "p", "response": "r"}] * 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("prompt: p", "not JSON: Expecting value at character 1"),
        (GOOD[:-1], "not JSON"),
        ("[1, 2]", "not a JSON object but a list"),
        ('"text"', "not a JSON object but text"),
        ("null", "not a JSON object but null"),
        (b'{"prompt": "a\0b"}', "NUL"),
        ('{"prompt": "caf\xe9"}'.encode("latin-1"), "not UTF-8: byte 0xe9 at byte 16"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ('{"prompt": "' + "x" * 1_000_000 + '"}', "over-long: more than 1,000,000 bytes"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_bad_line_is_named_and_the_lines_around_it_are_read(rows_file, line, reason):
    (first, bad, last) = read(rows_file([GOOD, line, GOOD]))
    assert (first[0], last[0]) == ("rows.jsonl:1", "rows.jsonl:3")
    assert bad[0] == "rows.jsonl:2"
    assert reason in bad[1]


def test_the_limit_is_on_bytes_and_includes_the_line_break(rows_file):
    file = rows_file([GOOD])
    assert isinstance(next(read_rows(file, max_row_bytes=len(GOOD) + 1)), Row)
    assert isinstance(next(read_rows(file, max_row_bytes=len(GOOD))), BadRow)


def test_of_a_bad_row_only_the_beginning_is_kept(rows_file):
    (row,) = read_rows(rows_file([b"\xff\x1b" + b"x" * 5000]))
    assert isinstance(row, BadRow)
    assert row.row.startswith("\\xff")
    assert len(row.row) < 300


def test_a_long_line_is_never_held_whole(rows_file, monkeypatch):
    """A stream that counts what it is asked for: no read may be larger than the limit."""
    import potstill.data.reader as reader

    class Counting:
        def __init__(self, handle):
            self.handle = handle

        def readline(self, size=-1):
            assert 0 < size <= 101
            return self.handle.readline(size)

    file = rows_file([GOOD, "x" * 100_000, GOOD])
    with open(file, "rb") as handle:
        lines = list(reader.physical_lines(Counting(handle), file, 100))
    assert [(number, len(line), long) for number, line, long in lines] == [
        (1, 33, False),
        (2, 101, True),
        (3, 33, False),
    ]


# --- csv --------------------------------------------------------------------------------------------------------------


def test_a_csv_row_stands_at_the_line_its_record_starts_on(tmp_path):
    file = tmp_path / "rows.csv"
    with open(file, "w", newline="") as handle:
        csv.writer(handle).writerows([["prompt", "response"], ["two\nlines", 'a "quote", a comma'], ["p", "r"]])
    assert read(file) == [
        ("rows.csv:2", {"prompt": "two\nlines", "response": 'a "quote", a comma'}),
        ("rows.csv:4", {"prompt": "p", "response": "r"}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"only one", "1 fields where the header has 2"),
        (b"a,b,c", "3 fields where the header has 2"),
        (b'"a"b,c', "not csv"),
        (b"caf\xe9,r", "not UTF-8"),
        (b"p," + b"x" * 1_000_000, "over-long"),
        (b'"p","' + b"x" * 1_000_000 + b'"', "over-long"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_bad_csv_row_does_not_put_the_next_out_of_step(tmp_path, line, reason):
    file = tmp_path / "rows.csv"
    file.write_bytes(b"prompt,response\np,r\n\n" + line + b'\n"q","s"\n')
    (first, bad, last) = read(file)
    assert first == ("rows.csv:2", {"prompt": "p", "response": "r"})
    assert bad[0] == "rows.csv:4"
    assert reason in bad[1]
    assert last == ("rows.csv:5", {"prompt": "q", "response": "s"})


def test_a_record_over_many_lines_is_held_to_the_limit_while_it_is_read(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text('prompt,response\np,"' + "line\n" * 100 + '"\n')
    assert len(read(file, max_row_bytes=1000)) == 1
    with pytest.raises(DataError, match=r"rows.csv:2: a quote opened here is never closed"):
        read(file, max_row_bytes=400)


def test_a_csv_field_may_be_long(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt,response\np,{'x' * 200_000}\n")
    ((_, values),) = read(file)
    assert len(values["response"]) == 200_000


# --- parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_rows_are_numbered_from_one_across_batches(tmp_path):
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"n": list(range(600)), "messages": [[{"role": "user", "content": "x"}]] * 600}), file)
    rows = read(file)
    assert [where for where, _ in rows] == [f"rows.parquet:{n}" for n in range(1, 601)]
    assert rows[599][1] == {"n": 599, "messages": [{"role": "user", "content": "x"}]}


def test_parquet_text_that_is_not_utf8_is_one_bad_row(tmp_path):
    file = tmp_path / "rows.parquet"
    broken = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), file)
    assert [values for _, values in read(file)] == [{"prompt": "good"}, "not UTF-8", {"prompt": "fine"}]


def test_an_over_long_parquet_row_is_one_bad_row(tmp_path):
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["p", "x" * 1_000_001, "q"]}), file)
    assert [type(row) for row in read_rows(file)] == [Row, BadRow, Row]


def test_the_three_kinds_of_file_give_the_same_rows(tmp_path):
    rows = [{"prompt": f"p{n}\nü", "response": f'r "{n}", {n}'} for n in range(5)]
    jsonl, table, parquet = (tmp_path / f"rows{suffix}" for suffix in (".jsonl", ".CSV", ".parquet"))
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(table, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["prompt", "response"], *(list(row.values()) for row in rows)])
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    assert [[values for _, values in read(file)] for file in (jsonl, table, parquet)] == [rows] * 3
