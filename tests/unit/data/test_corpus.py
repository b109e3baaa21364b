"""Documents on lines and in blocks, the same for any number of processes, and rows streamed to the exact one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.corpus import (
    MARKER,
    Counts,
    Streamed,
    build_corpus,
    building,
    documents,
    from_line,
    packed,
    to_line,
    write_lines,
)
from potstill.data.examples import Unusable
from potstill.data.indexed import IndexedTokens
from potstill.data.reader import BadRow
from potstill.errors import DataError

TEXTS = ["A heron stands.", "In the shallow\nwater.\n\nIt waits.", "for a small fish, " * 9, "ünï ¶ 東京"]
STORIES = [f"Story {n}. " + "The heron waits for a small fish. " * (n % 5) for n in range(200)]


def jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return file


def stories(folder: Path) -> Path:
    return jsonl(folder / "stories.jsonl", [{"text": text} for text in STORIES])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# --- lines ------------------------------------------------------------------------------------------------------------


def test_a_run_of_line_breaks_is_one_marker_as_in_minillm_and_exact_keeps_each() -> None:
    assert to_line("a\n\n\nb\nc") == "a<@x(x!>b<@x(x!>c"
    assert from_line("a<@x(x!>b") == "a\nb"
    assert to_line("a\n\nb", exact=True) == "a<@x(x!><@x(x!>b"
    assert to_line("a\r\nb\rc") == "a<@x(x!>b<@x(x!>c"
    with pytest.raises(Unusable, match="stands for a line break"):
        to_line(f"a {MARKER} b")


pieces = st.one_of(
    st.sampled_from(["\n", "<@x(x!", ">", "<", "\u2028", "\x85", "\x0b", " "]), st.text("ab<@", max_size=3)
)


@given(st.lists(pieces, max_size=12).map("".join))
def test_an_exact_line_comes_back_whole_and_a_short_one_but_for_blank_lines(document: str) -> None:
    if MARKER in document:
        return
    line = to_line(document, exact=True)
    assert "\n" not in line
    assert from_line(line) == document
    short = from_line(to_line(document))
    assert "\n\n" not in short
    assert short == "\n".join(document.split("\n")) if "\n\n" not in document else len(short) < len(document)


def test_documents_written_as_lines_are_read_as_documents(tmp_path: Path) -> None:
    file = tmp_path / "data.txt"
    assert write_lines([*TEXTS, "", " \n "], file, exact=True) == 4
    assert file.read_bytes().count(b"\n") == 4
    assert list(documents(file)) == TEXTS
    assert os.listdir(tmp_path) == ["data.txt"]


@pytest.mark.parametrize(
    ("bad", "said"), [(MARKER, "document 2 cannot be on a line"), ("\ud800", "document 2 holds half")]
)
def test_a_document_that_cannot_be_a_line_leaves_the_old_corpus(tmp_path: Path, bad: str, said: str) -> None:
    file = tmp_path / "data.txt"
    file.write_text("old\n")
    with pytest.raises(DataError, match=said):
        write_lines(["new", bad], file)
    assert contents(tmp_path) == {"data.txt": b"old\n"}


# --- documents --------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": TEXTS, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    jsonl(tmp_path / "a.jsonl", [{"body": text} for text in TEXTS])
    write_lines(TEXTS, tmp_path / "a.txt", exact=True)
    for name in ("a.parquet", "a.jsonl", "a.txt"):
        assert list(documents(tmp_path / name, "body")) == TEXTS
    assert list(documents([tmp_path / "a.txt", tmp_path / "a.jsonl"], "body")) == TEXTS * 2


def test_a_text_file_may_be_one_document(tmp_path: Path) -> None:
    for name, text in {"a.txt": "\ufeffone\n\ntwo\n", "b.txt": "three"}.items():
        (tmp_path / name).write_text(text, "utf-8")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert list(documents(files, whole_files=True)) == ["one\n\ntwo\n", "three"]
    assert list(documents(files)) == ["one", "two", "three"]
    with pytest.raises(DataError, match=r"a.txt: over-long"):
        list(documents(files, whole_files=True, max_document_bytes=10))


def test_a_line_is_cut_at_line_breaks_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\u2028still one \r\n\n  two\x85\n".encode())
    assert list(documents(tmp_path / "a.txt")) == ["one\u2028still one ", "  two\x85"]


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("a.txt", b"caf\xe9", "a.txt:2: not UTF-8: byte 0xe9 at byte 4"),
        ("a.txt", b"a\0b", "a.txt:2: field 'text' holds a NUL"),
        ("a.txt", b"x" * 1001, "a.txt:2: over-long"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:2: field 'text' is int, not text"),
        ("a.jsonl", b'{"body": "b"}', "a.jsonl:2: missing field 'text' .there are: 'body'"),
        ("a.jsonl", b'{"text": "\\ud800"}', "half a character"),
        ("a.jsonl", b'{"text"', "a.jsonl:2: not JSON"),
    ],
)
def test_a_bad_row_is_refused_where_it_stands(tmp_path: Path, name: str, line: bytes, said: str) -> None:
    good = b"good" if name == "a.txt" else b'{"text": "good"}'
    (tmp_path / name).write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    found = documents(tmp_path / name, max_document_bytes=1000)
    assert next(found) == "good"
    with pytest.raises(DataError, match=said):
        next(found)


def test_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for paths, said in [([], "no source files"), ("no.txt", "no text file"), ("no.jsonl", "no data file")]:
        with pytest.raises(DataError, match=said):
            list(documents(paths))
    with pytest.raises(DataError, match="is empty"):
        list(documents(tmp_path / "empty.txt"))
    with pytest.raises(DataError, match="is a folder"):
        list(documents(tmp_path))


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_are_the_documents_ended_and_cut(tokenizer: Any) -> None:
    """Against the whole text joined at once; no beginning-of-sequence token, which this tokenizer adds if let."""
    counts = Counts()
    blocks = list(packed(TEXTS, tokenizer, 16, counts=counts))
    whole = [
        id for text in TEXTS for id in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    assert np.concatenate(blocks).tolist() == whole[: len(whole) // 16 * 16]
    assert {(block.dtype.name, block.shape) for block in blocks} == {("int64", (16,))}
    assert (counts.documents, counts.tokens, counts.blocks) == (4, len(whole), len(whole) // 16)
    assert counts.dropped_tokens == len(whole) % 16 > 0
    assert counts.read_to_end
    assert tokenizer.bos_token_id not in whole


def test_one_worker_and_two_give_the_same_blocks_and_counts(tokenizer: Any) -> None:
    """More batches than wait at once, and bad rows among them."""
    bad = BadRow("a.jsonl:3", "not JSON", "{")
    source = [*STORIES, bad, *STORIES, "ends </s> early", *STORIES] * 2
    seen: list[tuple[Any, ...]] = []
    for workers in (1, 2):
        counts, found = Counts(), list[BadRow]()
        made = packed(source, tokenizer, 32, workers=workers, counts=counts, on_bad=found.append)
        seen.append((np.array(list(made)).tolist(), counts, found))
    assert seen[0] == seen[1]
    counts, found = seen[0][1:]
    assert (counts.documents, counts.bad_rows, counts.documents_with_eos, len(found)) == (1200, 2, 2, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_endless_source_is_not_read_to_its_end(tokenizer: Any, workers: int) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            assert read <= 64 * 3 * workers
            yield STORIES[4]

    assert len(list(packed(endless(), tokenizer, 32, num_blocks=3, workers=workers))) == 3
    left = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [command for command in left if "spawn_main" in command]


def test_a_document_with_the_end_inside_is_left_out_and_counted(tokenizer: Any) -> None:
    counts = Counts()
    blocks = list(packed(["a </s> b", *TEXTS], tokenizer, 8, counts=counts))
    assert np.array_equal(blocks, list(packed(TEXTS, tokenizer, 8)))
    assert (counts.documents_with_eos, counts.documents) == (1, 4)


def test_what_cannot_be_packed_is_refused_before_anything_is_read(tokenizer: Any) -> None:
    for options in ({"block_size": 1}, {"workers": 0}, {"num_blocks": 0}):
        with pytest.raises(DataError, match="cannot be made"):
            packed(iter(()), tokenizer, **({"block_size": 8} | options))
    with pytest.raises(DataError, match=r"a.txt:1: why"):
        list(packed([BadRow("a.txt:1", "why", "")], tokenizer, 8))


# --- a corpus on disk -------------------------------------------------------------------------------------------------


def test_a_corpus_is_its_blocks_the_first_of_them_valid_and_a_card(tokenizer: Any, tmp_path: Path) -> None:
    file, folder = stories(tmp_path), tmp_path / "corpus"
    card = build_corpus(file, tokenizer, folder, block_size=32, dev_blocks=3, num_blocks=20)
    blocks = [block.tolist() for block in packed(STORIES, tokenizer, 32, num_blocks=23)]
    read = {
        split: [ids.tolist() for ids in IndexedTokens(folder, split, vocab_size=400)] for split in ("valid", "train")
    }
    assert read == {"valid": blocks[:3], "train": blocks[3:]}
    assert card == json.loads((folder / "corpus.json").read_text())
    assert card["blocks"] == {"train": 20, "valid": 3}
    assert card["sources"] == [
        {"file": "stories.jsonl", "bytes": file.stat().st_size, "sha256": sha256(file.read_bytes()).hexdigest()}
    ]
    assert (card["block_size"], card["dtype"], card["read_to_end"], card["bad_rows"]) == (32, "uint16", False, 0)
    assert card["tokenizer"]["eos_id"] == tokenizer.eos_token_id
    names = ["corpus.json", "train_0.bin", "train_0.idx", "valid_0.bin", "valid_0.idx"]
    assert sorted(os.listdir(folder)) == names
    assert sorted(os.listdir(tmp_path)) == ["corpus", "stories.jsonl"]


def test_a_corpus_is_the_same_bytes_for_any_number_of_workers_and_after_other_use(
    tokenizer: Any, tmp_path: Path
) -> None:
    """Also where it stops early: a worker has then read on, and what it met there is not counted."""
    rows = [{"text": text} for text in STORIES]
    file = jsonl(tmp_path / "rows.jsonl", [*rows[:50], "{", *rows, *rows, "{", *rows])
    options: dict[str, Any] = {"block_size": 32, "dev_blocks": 2, "num_blocks": 40, "max_bad_rows": 0.02}
    build_corpus(file, tokenizer, tmp_path / "one", **options)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)  # leaves settings behind in the tokenizer
    card = build_corpus(file, tokenizer, tmp_path / "two", workers=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert json.loads((tmp_path / "one" / "quarantine.jsonl").read_text())["where"] == "rows.jsonl:51"
    assert (card["bad_rows"], card["blocks"], card["read_to_end"]) == (1, {"train": 40, "valid": 2}, False)


def test_the_hash_of_a_tokenizer_changes_with_what_it_makes_of_text(tokenizer: Any, tmp_path: Path) -> None:
    from copy import deepcopy

    from potstill.data.corpus.building import tokenizer_card

    other = deepcopy(tokenizer)
    other.add_tokens(["heron"])
    cards = [tokenizer_card(one) for one in (tokenizer, deepcopy(tokenizer), other)]
    assert cards[0] == cards[1]
    assert cards[0]["sha256"] != cards[2]["sha256"]


def test_a_corpus_that_cannot_be_built_leaves_nothing(tokenizer: Any, tmp_path: Path) -> None:
    good = stories(tmp_path)
    bad = jsonl(tmp_path / "bad.jsonl", [{"text": "a"}] * 90 + [{"body": "a"}] * 10)
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (
            bad,
            {"block_size": 8},
            r"10 of the 100 rows .10.0%. cannot be used, and max_bad_rows=0.01: bad.jsonl:91: missing",
        ),
        (good, {"block_size": 100_000}, "tokens of text are too few for 0 valid blocks"),
        (good, {"block_size": 64, "dev_blocks": 1000}, "too few for 1000 valid blocks"),
        (good, {"num_blocks": 0}, "0 train blocks"),
        (good, {"field": "body"}, "200 of the 200 rows"),
    ]
    for number, (file, options, said) in enumerate(cases):
        with pytest.raises(DataError, match=said):
            build_corpus(file, tokenizer, tmp_path / str(number), **options)
    assert sorted(os.listdir(tmp_path)) == ["bad.jsonl", "stories.jsonl"]
    assert build_corpus(bad, tokenizer, tmp_path / "ok", block_size=8, max_bad_rows=0.1)["bad_rows"] == 10


def test_a_corpus_is_never_written_into_a_folder_with_content(tokenizer: Any, tmp_path: Path) -> None:
    file, folder = stories(tmp_path), tmp_path / "corpus"
    folder.mkdir()
    build_corpus(file, tokenizer, folder, block_size=32)  # an empty one is as good as none
    before = contents(folder)
    with pytest.raises(DataError, match="never overwritten"):
        build_corpus(file, tokenizer, folder, block_size=64)
    assert contents(folder) == before


def test_a_killed_build_is_no_corpus_leaves_no_process_and_the_next_one_is_whole(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = stories(tmp_path), tmp_path / "corpus"
    reading, say = os.pipe()

    def endless(*_: Any, **__: Any) -> Iterator[str]:
        for number in count():
            if number == 2000:
                os.write(say, b".")
            yield STORIES[4]

    monkeypatch.setattr(building, "texts", endless)
    if not (child := os.fork()):
        try:
            build_corpus(file, tokenizer, folder, block_size=32, dev_blocks=2, workers=2)
        finally:
            os._exit(3)
    assert os.read(reading, 1) == b"."
    workers = [one for one in psutil.Process(child).children() if "spawn_main" in " ".join(one.cmdline())]
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert os.listdir(tmp_path / ".corpus.unfinished" / "corpus") != []
    with pytest.raises(DataError, match="no folder"):
        IndexedTokens(folder, "train")
    monkeypatch.undo()
    build_corpus(file, tokenizer, folder, block_size=32)
    assert sorted(os.listdir(tmp_path)) == ["corpus", "stories.jsonl"]
    assert len(IndexedTokens(folder, "train")) > 0


def test_a_build_killed_as_it_gets_its_name_has_none(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = stories(tmp_path), tmp_path / "corpus"
    monkeypatch.setattr(building.os, "rename", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if not (child := os.fork()):
        try:
            build_corpus(file, tokenizer, folder, block_size=32)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not folder.exists()


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Three files of 40, 7 and 23 good rows, bad ones at the beginning, in the middle and at the end."""
    rows = [{"n": n} for n in range(70)]
    first = jsonl(tmp_path / "a.jsonl", ["{", *rows[:20], "[]", "", *rows[20:40]])
    third = jsonl(tmp_path / "c.jsonl", [*rows[47:], "null", "3"])
    pq.write_table(pa.Table.from_pylist(rows[40:47]), tmp_path / "b.parquet")
    return [first, tmp_path / "b.parquet", third]


Open = Callable[..., Streamed]
ORDERS = [{}, {"seed": 1, "buffer_rows": 9}, {"seed": 2, "buffer_rows": 1000}, {"seed": 3, "buffer_rows": 1}]


def taken(stream: Streamed, count: int | None = None) -> list[tuple[str, int]]:
    return [(row.where, row.values["n"]) for row in islice(stream, count)]


def test_in_order_the_rows_are_those_of_the_files(sources: list[Path]) -> None:
    stream = Streamed(sources)
    assert [n for _, n in taken(stream)] == list(range(70))
    assert (stream.num_bad, stream.position) == (4, 70)
    assert taken(stream) == []
    again = Streamed(sources, repeat=True)
    assert [n for _, n in taken(again, 141)] == [*range(70), *range(70), 0]
    assert again.num_bad == 4 + 4 + 1


@pytest.mark.parametrize("order", ORDERS[1:])
def test_shuffled_each_pass_has_every_row_once_in_an_order_of_its_own(
    sources: list[Path], order: dict[str, Any]
) -> None:
    stream = Streamed(sources, repeat=True, **order)
    passes = [[n for _, n in taken(stream, 70)] for _ in range(6)]
    assert all(sorted(one) == list(range(70)) for one in passes)
    assert len({tuple(one) for one in passes}) >= 3  # of three files alone there are six orders
    assert list(range(70)) not in passes or order["buffer_rows"] == 1
    again = Streamed(sources, repeat=True, **order)
    assert [[n for _, n in taken(again, 70)] for _ in range(6)] == passes


def test_a_row_moves_no_further_than_the_buffer(sources: list[Path]) -> None:
    """In one file, where no order of files moves it."""
    order = [n for _, n in taken(Streamed(sources[:1], seed=5, buffer_rows=8))]
    assert [sorted(order[start : start + 8]) for start in range(0, 40, 8)] == [
        list(range(start, start + 8)) for start in range(0, 40, 8)
    ]
    assert len({tuple(n - start for n in order[start : start + 8]) for start in range(0, 40, 8)}) > 1
    passes = [n for _, n in taken(Streamed(sources[:1], seed=5, buffer_rows=8, repeat=True), 80)]
    assert passes[:40] == order != passes[40:]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("repeat", [False, True])
def test_stopped_anywhere_it_goes_on_at_the_exact_row(sources: list[Path], order: dict[str, Any], repeat: bool) -> None:
    """By state and by position, within a buffer, at its end, at the end of a file and of a pass."""
    whole = Streamed(sources, repeat=repeat, **order)
    expected = taken(whole, 150 if repeat else None)
    total = len(expected)
    assert total == (150 if repeat else 70)
    for stop in [0, 1, 8, 9, 10, 39, 40, 41, 46, 47, 69, 70, *([71, 79, 139, 140, 141] if repeat else [])]:
        before = Streamed(sources, repeat=repeat, **order)
        assert taken(before, stop) == expected[:stop]
        state = json.loads(json.dumps(before.state_dict()))
        after = Streamed(sources, repeat=repeat, **order)
        taken(after, 5)
        after.load_state_dict(state)
        assert after.state_dict() == state
        assert taken(after, total - stop if repeat else None) == expected[stop:]
        assert (after.position, after.num_bad) == (total, whole.num_bad)
        assert taken(Streamed(sources, stop, repeat=repeat, **order), total - stop) == expected[stop:]


def test_going_on_reads_no_file_that_was_done(sources: list[Path]) -> None:
    stream = Streamed(sources)
    expected = taken(stream, 50) and stream.state_dict()
    rest = taken(stream)
    size = sources[0].stat().st_size
    sources[0].write_text("{" * size)  # as long as before, and not a row in it
    again = Streamed(sources)
    again.load_state_dict(expected)
    assert taken(again) == rest


def test_a_state_of_another_stream_is_refused(sources: list[Path], tmp_path: Path) -> None:
    stream = Streamed(sources, 5, seed=1, buffer_rows=9)
    state = stream.state_dict()
    for other in (
        Streamed(sources, seed=2, buffer_rows=9),
        Streamed(sources, seed=1, buffer_rows=8),
        Streamed(sources),
    ):
        with pytest.raises(DataError, match=r"the state is of another stream: (seed was 1|buffer_rows was 9)"):
            other.load_state_dict(state)
    with open(sources[2], "a") as handle:
        handle.write('{"n": 70}\n')
    with pytest.raises(DataError, match="files was"):
        stream.load_state_dict(state)
    for broken in ({}, {**state, "place": {}}, {**state, "taken": "x"}):
        with pytest.raises(DataError, match="not one of a stream"):
            stream.load_state_dict(broken)
    ahead = {**state, "of": stream.state_dict()["of"], "taken": 10}
    with pytest.raises(DataError, match="behind the last row"):
        stream.load_state_dict(ahead)


def test_a_stream_without_good_rows_ends_instead_of_turning_for_ever(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", ["{", "["])
    with pytest.raises(DataError, match=r"a.jsonl: none of the rows can be read .2 are bad."):
        next(Streamed(file, repeat=True))
    for position in (-1, 3):
        with pytest.raises(DataError, match="position"):
            Streamed(jsonl(tmp_path / "b.jsonl", [{"n": 1}]), position)


def test_a_file_that_breaks_off_is_not_taken_for_its_end(sources: list[Path]) -> None:
    sources[1].write_bytes(sources[1].read_bytes()[:-20])
    stream = Streamed(sources, repeat=True)
    assert len(taken(stream, 40)) == 40
    for _ in range(3):
        with pytest.raises(DataError, match=r"b.parquet is not a whole parquet file"):
            next(stream)
    assert stream.position == 40


def test_a_long_stream_is_read_in_the_memory_of_its_buffer(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    with open(file, "w") as handle:
        handle.writelines(json.dumps({"n": n, "text": "x" * 2000}) + "\n" for n in range(20_000))
    stream = Streamed(file, seed=1, buffer_rows=100)
    next(stream)
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    assert sum(1 for _ in stream) == 19_999
    assert psutil.Process().memory_info().rss - before < 15_000_000 < file.stat().st_size
    assert time.monotonic() - started < 60
