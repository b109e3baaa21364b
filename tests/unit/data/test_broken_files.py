"""Files broken beyond use: each is refused with one line of cause and one of fix, and nothing else escapes."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.data.prepare import prepare
from potstill.errors import DataError
from potstill.recipe import Data
from tests.unit.data.conftest import good_rows

GOOD = json.dumps({"prompt": "p", "response": "r"}).encode()
TEN = b"".join(json.dumps(row).encode() + b"\n" for row in good_rows(10))


def half(bad: bytes) -> bytes:
    """Ten good lines and ten bad ones."""
    return TEN + (bad + b"\n") * 10


def table(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def parquet(columns: dict[str, list]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


WHOLE = parquet({"prompt": [f"p{n}" for n in range(3000)], "response": [os.urandom(20).hex() for _ in range(3000)]})
DAMAGED = WHOLE[:200] + b"\xff" * 2000 + WHOLE[2200:]
ALLOW = "data.max_bad_rows=0.5"

# name, content, config, in the cause, in the fix
CASES: list[tuple[str, bytes, dict, str, str]] = [
    ("not_json.jsonl", half(b"{'prompt': 'p'}"), {}, "10 of the 20 rows", ALLOW),
    ("cut_off.jsonl", half(GOOD[:-4]), {}, "not_json.jsonl:11: not JSON", ALLOW),
    ("lists.jsonl", half(b"[1]"), {}, "lists.jsonl:11: not a JSON object but a list", ALLOW),
    ("no_response.jsonl", half(b'{"prompt": "p"}'), {}, "missing field 'response'", ALLOW),
    ("empty_response.jsonl", half(b'{"prompt": "p", "response": ""}'), {}, "field 'response' is empty", ALLOW),
    ("wrong_type.jsonl", half(b'{"prompt": 3, "response": "r"}'), {}, "field 'prompt' is int, not text", ALLOW),
    ("nul.jsonl", half(GOOD.replace(b"p", b"\0")), {}, "NUL", ALLOW),
    ("escaped_nul.jsonl", half(rb'{"prompt": "\u0000", "response": "r"}'), {}, "NUL", ALLOW),
    ("surrogate.jsonl", half(rb'{"prompt": "\ud800", "response": "r"}'), {}, "lone surrogate", ALLOW),
    ("latin_1.jsonl", half(b'{"prompt": "caf\xe9", "response": "r"}'), {}, "not UTF-8", ALLOW),
    ("long.jsonl", TEN + (b"x" * 1_100_000 + b"\n") * 2, {}, "over-long", "data.max_bad_rows=0.17"),
    ("nested.jsonl", half(b'{"a": ' + b"[" * 100_000), {}, "nested too deeply", ALLOW),
    (
        "twice.jsonl",
        half(b'{"id": "x", "prompt": "p", "response": "r"}'),
        {},
        "duplicate id 'x' (first at twice.jsonl:11)",
        "data.max_bad_rows=0.45",
    ),
    ("all_bad.jsonl", b"{\n" * 5, {"max_bad_rows": 1.0}, "5 of the 5 rows", "mend the rows"),
    (
        "other_names.jsonl",
        b'{"question": "q", "answer": "a"}\n' * 5,
        {},
        "missing field 'prompt' (there are: 'question', 'answer')",
        "data.fields.prompt",
    ),
    ("not_dolly.jsonl", TEN, {"format": "dolly"}, "missing field 'instruction'", "data.format"),
    ("not_chat.jsonl", TEN, {"format": "chat"}, "data.format=chat needs a chat template", "instruct"),
    (
        "useless_fields.jsonl",
        TEN,
        {"format": "dolly", "fields": {"prompt": "x"}},
        "data.fields.prompt means nothing",
        "prompt_response",
    ),
    ("blank.jsonl", b"\n\n  \n", {}, "has no rows", "name another file of rows"),
    ("mark_only.jsonl", b"\xef\xbb\xbf", {}, "has no rows", "name another file of rows"),
    ("empty.jsonl", b"", {}, "is empty", "name another file of rows"),
    ("utf_16.jsonl", TEN.decode().encode("utf-16"), {}, "is in UTF-16", "iconv"),
    ("binary.jsonl", bytes(range(256)) * 20, {}, "cannot be used", "name another file of rows"),
    ("two_rows.jsonl", GOOD + b"\n" + GOOD, {}, "2 usable rows are too few", "data.heldout"),
    ("rows.json", b"[]", {}, "is a .json file", ".jsonl"),
    ("rows", TEN, {}, "is a file without a suffix", ".jsonl"),
    ("rows.jsonl.gz", TEN, {}, "is a .gz file", ".jsonl"),
    (
        "fields.csv",
        table([["prompt", "response"], *[["p", "r"]] * 9, *[["p"]] * 9]),
        {},
        "fields.csv:11: 1 fields where the header has 2",
        ALLOW,
    ),
    (
        "semicolons.csv",
        b"prompt;response\n" + b"p;r\n" * 9,
        {},
        "missing field 'prompt' (there are: 'prompt;response')",
        "data.fields.prompt",
    ),
    (
        "open_quote.csv",
        b'prompt,response\np,r\np,"r\n' + b"p,r\n" * 50,
        {},
        "open_quote.csv:3: a quote opened here is never closed",
        "double each quote",
    ),
    (
        "open_quote_long.csv",
        b'prompt,response\n"p,r\n' + b"p,r\n" * 300_000,
        {},
        "open_quote_long.csv:2: a quote opened",
        "double each quote",
    ),
    ("two_columns.csv", b"prompt,prompt\np,r\n", {}, "two columns called 'prompt'", "rename"),
    ("header_only.csv", b"prompt,response\n", {}, "has no rows", "name another file of rows"),
    ("blank.csv", b"\n\n", {}, "has no header", "first line"),
    ("latin_1.csv", b"prompt,response\n" + b"p,r\n" * 5 + b"caf\xe9,r\n" * 5, {}, "latin_1.csv:7: not UTF-8", ALLOW),
    ("latin_1_header.csv", b"pr\xe9,response\np,r\n", {}, "no header that can be read: not UTF-8", "first line"),
    ("cut_off.parquet", WHOLE[: len(WHOLE) // 2], {}, "is not a whole parquet file", "again"),
    ("damaged.parquet", DAMAGED, {}, "is not a whole parquet file", "again"),
    ("text.parquet", TEN, {}, "is not a whole parquet file", "again"),
    (
        "nulls.parquet",
        parquet({"prompt": ["p", None] * 9, "response": ["r"] * 18}),
        {},
        "nulls.parquet:2: field 'prompt' is null",
        ALLOW,
    ),
    ("no_rows.parquet", parquet({"prompt": [], "response": []}), {}, "has no rows", "name another file of rows"),
]


def refused(config: Data, tokenizer, quarantine: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        prepare(config, tokenizer, quarantine_file=quarantine)
    error = caught.value
    assert "\n" not in error.cause
    assert error.fix
    assert "\n" not in error.fix
    assert error.exit_code == 2
    return error


@pytest.mark.parametrize(("name", "content", "config", "cause", "fix"), CASES, ids=[case[0] for case in CASES])
def test_a_broken_file(tmp_path, tokenizer, name, content, config, cause, fix):
    file = tmp_path / name
    file.write_bytes(content)
    error = refused(Data(path=str(file), **config), tokenizer, tmp_path / "quarantine.jsonl")
    assert cause.replace("not_json.jsonl:11", f"{name}:11") in error.cause
    assert fix in error.fix


@pytest.mark.parametrize(
    ("make", "path", "cause", "fix"),
    [
        (lambda d: (d / "train.jsonl").touch(), "trian.jsonl", "there is no data file", "did you mean"),
        (lambda d: None, "train.jsonl", "there is no data file", "has no data files"),
        (lambda d: None, "nowhere/train.jsonl", "there is no data file", "nowhere does not exist either"),
        (lambda d: (d / "rows").mkdir(), "rows", "is a folder", "name a file of rows"),
        (lambda d: os.mkfifo(d / "pipe.jsonl"), "pipe.jsonl", "is not an ordinary file", "copy its rows"),
        (lambda d: (d / "link.jsonl").symlink_to("gone.jsonl"), "link.jsonl", "there is no data file", ""),
        (lambda d: (d / "loop.jsonl").symlink_to("loop.jsonl"), "loop.jsonl", "there is no data file", ""),
    ],
)
def test_a_path_that_is_no_file(tmp_path, tokenizer, make: Callable[[Path], None], path, cause, fix):
    make(tmp_path)
    error = refused(Data(path=str(tmp_path / path)), tokenizer, tmp_path / "quarantine.jsonl")
    assert cause in error.cause
    assert fix in error.fix


def test_near_names_are_offered(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "dolly_train.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert refused(Data(path="dolly_trian.jsonl"), tokenizer, tmp_path / "q").fix == "did you mean dolly_train.jsonl?"
    assert refused(Data(path="startr"), tokenizer, tmp_path / "q").fix == "did you mean starter?"


def test_a_folder_names_the_files_in_it(tmp_path, tokenizer):
    (tmp_path / "train.csv").touch()
    assert "train.csv" in refused(Data(path=str(tmp_path)), tokenizer, tmp_path / "q").fix


def test_a_missing_held_out_file_is_refused_too(tmp_path, tokenizer):
    (tmp_path / "rows.jsonl").write_bytes(TEN)
    error = refused(
        Data(path=str(tmp_path / "rows.jsonl"), heldout=str(tmp_path / "rovs.jsonl")), tokenizer, tmp_path / "q"
    )
    assert "rows.jsonl" in error.fix
