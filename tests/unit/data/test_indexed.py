"""Megatron's files to the byte, every way they can be broken, a kill at every step, and memory."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.data.indexed import IndexedTokens, dtype_for, write_indexed, writer
from potstill.errors import DataError

PAIRS = [([5, 6, 7], [8, 9]), ([1], [2, 3, 4]), ([10, 11], [])]


def index(dtype: int, sizes: list[int], offsets: list[int], documents: list[int], **head: Any) -> bytes:
    """A .idx file from the description of the format alone."""
    magic, version = head.get("magic", b"MMIDIDX\x00\x00"), head.get("version", 1)
    counts = head.get("counts", (len(sizes), len(documents)))
    tables = struct.pack(f"<{len(sizes)}i{len(offsets)}q{len(documents)}q", *sizes, *offsets, *documents)
    return magic + struct.pack("<QBQQ", version, dtype, *counts) + tables


def put(folder: Path, name: str, bin: bytes, idx: bytes) -> Path:
    (folder / f"{name}.bin").write_bytes(bin)
    (folder / f"{name}.idx").write_bytes(idx)
    return folder


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        IndexedTokens(*args, **options)
    assert error.value.fix
    return error.value.cause


def rows(tokens: IndexedTokens) -> list[list[int]]:
    return [ids.tolist() for ids in tokens]


# --- the format -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_the_format_to_the_byte(tmp_path: Path) -> None:
    write_indexed(tmp_path / "train", PAIRS, 300)
    ids = [5, 6, 7, 65535, 8, 9, 1, 65535, 2, 3, 4, 10, 11, 65535]
    assert (tmp_path / "train_0.bin").read_bytes() == struct.pack("<14H", *ids)
    assert (tmp_path / "train_0.idx").read_bytes() == index(8, [6, 5, 3], [0, 12, 22], [0, 1, 2, 3])
    assert sorted(os.listdir(tmp_path)) == ["train_0.bin", "train_0.idx"]


@pytest.mark.parametrize(("code", "letter", "separator"), [(8, "H", 65535), (4, "i", 2147483647), (9, "I", 4294967295)])
def test_the_separators_of_every_width_are_read(tmp_path: Path, code: int, letter: str, separator: int) -> None:
    """The document index is MiniLLM's, which never ends a document."""
    bin = struct.pack(f"<6{letter}", 3, 4, separator, 5, 6, 7)
    width = len(bin) // 6
    tokens = IndexedTokens(put(tmp_path, "valid_0", bin, index(code, [4, 2], [0, 4 * width], [0])), "valid")
    assert (tokens.separator, len(tokens)) == (separator, 2)
    assert [part.tolist() for part in tokens.pair(0)] == [[3, 4], [5]]
    assert tokens[1].tolist() == tokens[-1].tolist() == [6, 7]
    assert tokens[1].dtype == np.int64


def test_the_shards_are_one_sequence_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_indexed(tmp_path / "train", [[[n]] for n in range(23)], 300, max_records_per_shard=2)
    assert (tmp_path / "train_10.idx").exists()
    assert rows(IndexedTokens(tmp_path, "train")) == rows(IndexedTokens(tmp_path / "train")) == [[n] for n in range(23)]
    assert IndexedTokens(tmp_path, "train")[-23].tolist() == [0]
    for outside in (23, -24):
        with pytest.raises(IndexError):
            IndexedTokens(tmp_path, "train")[outside]


def test_a_single_pair_without_a_number_is_read(tmp_path: Path) -> None:
    put(tmp_path, "text.v1_document", struct.pack("<3i", 1, 2, 3), index(4, [1, 2], [0, 4], [0, 1, 2]))
    assert rows(IndexedTokens(tmp_path / "text.v1_document")) == [[1], [2, 3]]


def test_a_shard_without_records_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "train_0", b"", index(8, [], [], [0]))
    put(tmp_path, "train_1", struct.pack("<H", 7), index(8, [1], [0], [0]))
    assert rows(IndexedTokens(tmp_path, "train")) == [[7]]


def test_the_dtype_is_minillms(tmp_path: Path) -> None:
    assert [dtype_for(size).name for size in (1, 65_499, 65_500, 151_936)] == ["uint16", "uint16", "int32", "int32"]
    for size in (0, 2**31):
        with pytest.raises(DataError, match="vocabulary of"):
            dtype_for(size)


@pytest.mark.parametrize(
    ("record", "found"), [([[1, 2]], "no 65535"), ([[1], [2], [3], [4], [5], [6]], "5 separators 65535")]
)
def test_what_is_not_a_pair_is_refused_by_its_record(tmp_path: Path, record: list[list[int]], found: str) -> None:
    write_indexed(tmp_path / "train", [([1], [2]), record], 300)
    tokens = IndexedTokens(tmp_path, "train")
    assert [part.tolist() for part in tokens.parts(1)] == record
    with pytest.raises(DataError, match=rf"train_0.bin: record 1 is no prompt and response: it holds {found}"):
        tokens.pair(1)


# --- the separator and the vocabulary ---------------------------------------------------------------------------------


def test_a_vocabulary_that_has_the_separator_as_a_token_is_refused(tmp_path: Path) -> None:
    write_indexed(tmp_path / "train", PAIRS, 300)
    assert len(IndexedTokens(tmp_path, "train", vocab_size=65_535)) == 3
    cause = refusal(tmp_path, "train", vocab_size=65_536)
    assert "train_0.bin: 65535 separates prompt and response there, and is also a token" in cause


def test_the_small_separator_in_a_wide_file_is_read_until_a_larger_id_shows_it_to_be_a_token(tmp_path: Path) -> None:
    bin = struct.pack("<6i", 3, 65535, 4, 3, 65535, 70_000)
    put(tmp_path, "train_0", bin, index(4, [3, 3], [0, 12], [0]))
    assert IndexedTokens(tmp_path, "train", vocab_size=151_936)[1].tolist() == [3, 65535, 70_000]
    assert "is also a token" in refusal(tmp_path, "train", vocab_size=151_936, separator=65_535)
    tokens = IndexedTokens(tmp_path, "train", separator=65_535)
    assert [part.tolist() for part in tokens.pair(0)] == [[3], [4]]
    with pytest.raises(DataError, match="record 1 holds 70000 at place 2"):
        tokens[1]


def test_ids_that_are_not_of_the_vocabulary_are_refused_when_they_are_read(tmp_path: Path) -> None:
    put(tmp_path, "train_0", struct.pack("<4i", 3, 300, 5, -1), index(4, [2, 2], [0, 8], [0]))
    tokens = IndexedTokens(tmp_path, "train", vocab_size=300)
    with pytest.raises(DataError, match=r"train_0.bin: record 0 holds 300 at place 1, and token ids are 0 to 299"):
        tokens[0]
    with pytest.raises(DataError, match="record 1 holds -1 at place 1"):
        IndexedTokens(tmp_path, "train")[1]


# --- broken files -----------------------------------------------------------------------------------------------------

GOOD = (8, [2, 1], [0, 4], [0, 1, 2])


@pytest.mark.parametrize(
    ("idx", "said"),
    [
        (b"", "it is empty"),
        (index(*GOOD, magic=b"MMIDIDY\0\0"), "not an index of tokens"),
        (index(*GOOD)[:5], "not an index of tokens"),
        (b"TNTIDX\0\0" + bytes(60), "the older kind that is not memory-mapped"),
        (index(*GOOD)[:20], "it is cut off: 20 bytes are less than its head, 34"),
        (index(*GOOD)[:-1], "it is cut off: 2 records and 3 documents take 82 bytes, and the file has 81"),
        (index(*GOOD) + b"\0", "it is too long"),
        (index(*GOOD, counts=(2**63, 3)), "it is cut off"),
        (index(*GOOD, version=2), "it is of version 2"),
        (index(0, *GOOD[1:]), "there is no dtype code 0"),
        (index(10, *GOOD[1:]), "there is no dtype code 10"),
        (index(6, *GOOD[1:]), "code 6 is of floating-point numbers"),
        (
            index(4, [2, 1], [0, 8], [0]),
            "record 0 is outside the data: it is 8 bytes at byte 0, and train_0.bin has 6 bytes",
        ),
        (index(8, [2, -1], [0, 4], [0]), "record 1 has a negative size"),
        (index(8, [2, 1], [0, -4], [0]), "record 1 is outside the data"),
        (index(8, [2, 1], [0, 2**62], [0]), "record 1 is outside the data"),
        (index(8, [1, 1], [0, 4], [0]), "sizes and offsets do not agree: record 1 begins at byte 4"),
        (index(8, [2, 1], [0, 3], [0]), "sizes and offsets do not agree: record 1 begins at byte 3"),
        (index(8, [1, 1], [0, 2], [0]), "its sizes add up to 4 bytes, and train_0.bin has 6"),
        (index(8, [], [], [0]), "its sizes add up to 0 bytes"),
        (index(8, [2, 1], [0, 4], [0, 2, 1]), "document index does not count upwards"),
        (index(8, [2, 1], [0, 4], [0, 3]), "document index does not count upwards from 0 to 2"),
        (index(8, [2, 1], [0, 4], [-1]), "document index does not count upwards"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_every_broken_index_is_refused_by_file_and_reason(tmp_path: Path, idx: bytes, said: str) -> None:
    bin = struct.pack("<3H", 5, 6, 7)
    assert rows(IndexedTokens(put(tmp_path, "train_0", bin, index(*GOOD)), "train")) == [[5, 6], [7]]
    cause = refusal(put(tmp_path, "train_0", bin, idx), "train")
    assert cause.startswith(f"{tmp_path / 'train_0.idx'}: ")
    assert said in cause


def test_a_wrong_record_far_into_the_index_is_named_by_its_number(tmp_path: Path) -> None:
    """Beyond the entries that are checked at once."""
    count, wrong = 150_000, 140_001
    offsets = list(range(0, 2 * count, 2))
    put(tmp_path, "train_0", bytes(2 * count), index(8, [1] * count, offsets, [0]))
    assert len(IndexedTokens(tmp_path, "train")) == count
    offsets[wrong] -= 2
    put(tmp_path, "train_0", bytes(2 * count), index(8, [1] * count, offsets, [0]))
    assert f"record {wrong} begins at byte {2 * wrong - 2:,}" in refusal(tmp_path, "train")


def test_a_bin_of_another_index_is_refused(tmp_path: Path) -> None:
    write_indexed(tmp_path / "a", PAIRS, 300)
    write_indexed(tmp_path / "b", [*PAIRS, ([1], [2])], 300)
    os.replace(tmp_path / "b_0.bin", tmp_path / "a_0.bin")
    assert "its sizes add up to 28 bytes, and a_0.bin has 34" in refusal(tmp_path, "a")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["train_1.bin", "train_1.idx"], "there is no shard {}/train_1.bin and .idx, but there is one numbered 2"),
        (["train_0.bin", "train_0.idx"], "there is no shard {}/train_0.bin"),
        (["train_1.idx"], "{}/train_1.bin has no train_1.idx beside it: it was never finished"),
        (["train_2.bin"], "{}/train_2.idx has no train_2.bin beside it"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, lost: list[str], said: str) -> None:
    write_indexed(tmp_path / "train", PAIRS, 300, max_records_per_shard=1)
    for name in lost:
        (tmp_path / name).unlink()
    assert said.format(tmp_path) in refusal(tmp_path, "train")


def test_shards_of_two_dtypes_and_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train_0", struct.pack("<H", 1), index(8, [1], [0], [0]))
    put(tmp_path, "train_1", struct.pack("<i", 1), index(4, [1], [0], [0]))
    assert "train_1.bin holds int32" in refusal(tmp_path, "train")
    put(tmp_path, "train", struct.pack("<H", 1), index(8, [1], [0], [0]))
    assert "two sets of one name" in refusal(tmp_path, "train")


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nowhere", "train")
    assert "there is no train_0.idx" in refusal(tmp_path, "train")
    write_indexed(tmp_path / "valid", PAIRS, 300)
    for arguments in [(tmp_path, "train"), (tmp_path,)]:
        with pytest.raises(DataError) as error:
            IndexedTokens(*arguments)
        assert error.value.fix == "the splits there: valid"


# --- the writer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "vocab", "said"),
    [
        ([[1, 300]], 300, "record 1 holds 300, which is not of the vocabulary of 300"),
        ([[1], [-1]], 300, "record 1 holds -1"),
        ([[1, 65535], [2]], 300, "record 1 holds 65535, .* is what separates a prompt from its response"),
        ([[1], [2147483647]], 70_000, "record 1 holds 2147483647, .* is what separates"),
        ([[1.0]], 300, "record 1: a part of it is no sequence of ids but float64"),
        ([[True]], 300, "no sequence of ids but bool"),
        ([[[1, 2]]], 300, "of 2 dimensions"),
        ([1, 2], 300, "of 0 dimensions"),
        ([[]], 300, "record 1 has no ids"),
        ([], 300, "record 1 has no ids"),
    ],
)
def test_a_record_that_cannot_be_written_is_named_and_nothing_is_left(
    tmp_path: Path, record: Any, vocab: int, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        write_indexed(tmp_path / "train", [[[1]], record, [[1]]], vocab, max_records_per_shard=1)
    assert os.listdir(tmp_path) == []


def test_no_records_are_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records"):
        write_indexed(tmp_path / "train", [], 300)
    with pytest.raises(DataError, match="max_records_per_shard is 0"):
        write_indexed(tmp_path / "train", PAIRS, 300, max_records_per_shard=0)
    (tmp_path / "train_3.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match="holds train_3 already"):
        write_indexed(tmp_path / "train", PAIRS, 300)
    assert os.listdir(tmp_path) == ["train_3.bin"]


def test_a_shard_of_many_records_has_offsets_without_a_gap(tmp_path: Path) -> None:
    """More than the writer turns into offsets at once."""
    write_indexed(tmp_path / "train", ([[n % 300]] for n in range(70_000)), 300)
    tokens = IndexedTokens(tmp_path, "train")
    assert [tokens[n].tolist() for n in (65_535, 65_536, 69_999)] == [[65_535 % 300], [65_536 % 300], [69_999 % 300]]


def test_two_writers_of_one_set_do_not_mix(tmp_path: Path) -> None:
    def records() -> Iterator[Any]:
        yield [[1]]
        with pytest.raises(DataError, match="another process is writing"):
            write_indexed(tmp_path / "train", PAIRS, 300)
        yield [[2]]

    write_indexed(tmp_path / "train", records(), 300)
    assert rows(IndexedTokens(tmp_path, "train")) == [[1], [2]]


def in_a_child(work: Callable[[], None]) -> int:
    """The exit status of a fork that does the work."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
    finally:
        os._exit(3)  # nothing of pytest is to run here


def test_a_writer_killed_at_any_record_leaves_nothing_with_a_name_and_the_next_one_writes(tmp_path: Path) -> None:
    for killed_at in range(4):

        def records(stop: int = killed_at) -> Iterator[Any]:
            for number in range(4):
                if number == stop:
                    os.kill(os.getpid(), 9)
                yield [[number]]

        status = in_a_child(lambda made=records: write_indexed(tmp_path / "train", made(), 9, max_records_per_shard=2))
        assert status == -9
        assert os.listdir(tmp_path) == [".train.unfinished"]
        assert "there is no train_0.idx" in refusal(tmp_path, "train")
    write_indexed(tmp_path / "train", PAIRS, 300)
    assert sorted(os.listdir(tmp_path)) == ["train_0.bin", "train_0.idx"]


def test_a_writer_killed_while_it_renames_leaves_a_set_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards are six names: killed before each of them, and after the last, when all is there."""
    real = os.replace
    for allowed in range(7):
        done: list[int] = []

        def replace(source: Any, target: Any, limit: int = allowed, done: list[int] = done) -> None:
            if len(done) == limit:
                os.kill(os.getpid(), 9)
            done.append(1)
            real(source, target)

        folder = tmp_path / str(allowed)
        monkeypatch.setattr(writer.os, "replace", replace)
        status = in_a_child(lambda to=folder: write_indexed(to / "train", PAIRS, 300, max_records_per_shard=1))
        monkeypatch.setattr(writer.os, "replace", real)
        if allowed == 6:
            assert (status, len(IndexedTokens(folder, "train"))) == (3, 3)
        else:
            assert status == -9
            assert "never finished" in refusal(folder, "train") if allowed else refusal(folder, "train")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match="train cannot be written") as error:
            write_indexed(tmp_path / "train", ([np.arange(10_000)] for _ in range(400)), 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in str(error.value.fix)
    assert os.listdir(tmp_path) == []


# --- memory -----------------------------------------------------------------------------------------------------------

MEMORY = """
import re, sys
from pathlib import Path
from potstill.data.indexed import IndexedTokens
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
tokens = IndexedTokens(sys.argv[1], "train")
opened = peak()
ids = [tokens[index].tolist() for index in map(int, sys.argv[2:])]
print(len(tokens), opened - before, peak() - before, ids)
"""


def memory(folder: Path, *read: int) -> tuple[int, int, int, Any]:
    """Records, and the growth in bytes of the peak of resident memory after opening, and after reading."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux says the peak of a process's memory")
    command = [sys.executable, "-c", MEMORY, str(folder), *map(str, read)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count, opened, used, ids = out.split(maxsplit=3)
    return int(count), int(opened), int(used), eval(ids)


def test_a_corpus_of_many_gigabytes_opens_in_a_few_megabytes(tmp_path: Path) -> None:
    """12 GB of which the disk holds almost nothing: records of 8 ids between records of 16 million."""
    pairs, few, many = 400, 8, 16_000_000 - 8
    sizes = np.tile([few, many], pairs)
    offsets = 2 * np.concatenate([[0], np.cumsum(sizes)[:-1]])
    with open(tmp_path / "train_0.bin", "wb") as handle:
        os.truncate(handle.fileno(), 2 * int(sizes.sum()))
        handle.seek(int(offsets[-2]))
        handle.write(struct.pack("<8H", *range(8)))
    (tmp_path / "train_0.idx").write_bytes(index(8, sizes.tolist(), offsets.tolist(), [0]))
    assert (tmp_path / "train_0.bin").stat().st_size == 12_800_000_000
    count, opened, used, (first, last) = memory(tmp_path, 0, 2 * pairs - 2)
    assert (count, first, last) == (2 * pairs, [0] * 8, list(range(8)))
    assert max(opened, used) < 8_000_000


def test_an_index_of_millions_of_records_is_checked_without_being_held(tmp_path: Path) -> None:
    """60 MB of index. Only what is asked for is mapped in, and what was checked was read."""
    count = 3_000_000
    with open(tmp_path / "train_0.bin", "wb") as handle:
        os.truncate(handle.fileno(), 2 * 512 * count)
    head = index(8, [], [], [], counts=(count, count + 1))
    tables = [np.full(count, 512, "<i4"), np.arange(count, dtype="<i8") * 1024, np.arange(count + 1, dtype="<i8")]
    (tmp_path / "train_0.idx").write_bytes(head + b"".join(table.tobytes() for table in tables))
    found, opened, used, _ = memory(tmp_path, 0, count - 1)
    assert found == count
    assert max(opened, used) < 12_000_000


def test_a_copy_for_another_process_carries_no_ids(tmp_path: Path) -> None:
    write_indexed(tmp_path / "train", [[np.arange(10_000)]] * 10, 10_000)
    tokens = IndexedTokens(tmp_path, "train", vocab_size=10_000)
    sent = pickle.dumps(tokens)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert (rows(copy), copy.vocab_size) == (rows(tokens), 10_000)
