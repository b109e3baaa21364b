"""A cache folder: rows come back, a kill at any byte harms no row before it, and a run sees what it saw."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.errors import CacheError
from potstill.teachers.cache import parts
from potstill.teachers.cache import store as stores
from potstill.teachers.cache.folders import damage, find, remove, told, unused
from potstill.teachers.cache.parts import RECORD, Part, Writer
from potstill.teachers.cache.store import Store, check_key
from potstill.teachers.digests import digest

KEY = {"weights": "ab", "dtype": "float32"}


def row(at: int) -> tuple[bytes, bytes]:
    """The digest and the bytes of a row; no two are alike, and some are empty."""
    return digest([at], [at, at + 1]), bytes([at % 251]) * (at % 7 * 10)


def filled(folder: Path, count: int, writer: str = "one", **options: Any) -> Store:
    store = Store(folder, KEY, writer, **options)
    for at in range(count):
        name, data = row(at)
        store.add(name, data, positions=at % 7, seconds=0.5)
    return store


def has(store: Store, at: int) -> bool:
    name, data = row(at)
    found = store.read(name)
    assert found is None or bytes(found) == data
    return found is not None


def test_rows_come_back_at_once_after_a_reopening_and_from_many_parts(tmp_path: Path) -> None:
    store = filled(tmp_path, 100, max_bytes=500)
    assert all(has(store, at) for at in range(100))
    assert not has(store, 100)
    store.close()
    assert len(list(tmp_path.glob("*.index"))) > 5
    again = Store(tmp_path, KEY, "two")
    assert len(again) == 100
    assert all(has(again, at) for at in range(100))


def test_rows_are_found_when_they_are_sorted_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MERGE", 8)
    store = filled(tmp_path, 50)
    assert len(store._new) < 8
    assert all(has(store, at) for at in range(50))


def test_a_part_has_so_many_rows_at_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_ROWS", 10)
    store = filled(tmp_path, 35)
    store.close()
    assert [len(Part(index).records) for index in sorted(tmp_path.glob("*.index"))] == [10, 10, 10, 5]
    assert all(has(store, at) for at in range(35))


def test_two_digests_that_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path, KEY, "one")
    first, second = b"\1" * 8 + b"\2" * 8, b"\1" * 8 + b"\3" * 8
    for name, data in ((first, b"first"), (second, b"second")):
        store.add(name, data, positions=1, seconds=0)
    for opened in (store, Store(tmp_path, KEY, "two")):
        assert bytes(opened.read(first) or b"") == b"first"
        assert bytes(opened.read(second) or b"") == b"second"
        assert opened.read(b"\1" * 8 + b"\4" * 8) is None


@pytest.mark.parametrize("suffix", ["rows", "index"])
def test_cut_at_any_byte_the_rows_before_are_there_and_those_behind_are_not(tmp_path: Path, suffix: str) -> None:
    filled(tmp_path / "whole", 12)
    name = next((tmp_path / "whole").glob(f"*.{suffix}")).name
    ends = [int(record["offset"] + record["size"]) for record in Part(tmp_path / "whole" / name).records]
    size = (tmp_path / "whole" / name).stat().st_size
    for cut in range(0, size, 3):
        folder = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        os.truncate(folder / name, cut)
        store = Store(folder, KEY, "two")
        whole = (
            cut // RECORD.itemsize if suffix == "index" else next((n for n, end in enumerate(ends) if end > cut), 12)
        )
        assert [has(store, at) for at in range(12)] == [at < whole for at in range(12)]
        for at in range(whole, 12):  # and what is missing is written again
            store.add(row(at)[0], row(at)[1], positions=1, seconds=0)
        assert all(has(store, at) for at in range(12))
        shutil.rmtree(folder)


def test_a_row_that_is_not_what_was_written_is_none(tmp_path: Path) -> None:
    filled(tmp_path, 12).close()
    file = next(tmp_path.glob("*.rows"))
    data = bytearray(file.read_bytes())
    data[25] ^= 1  # in the row of 20 bytes that begins at 10
    file.write_bytes(data)
    store = Store(tmp_path, KEY, "two")
    assert [at for at in range(12) if not has(store, at)] == [2]
    assert len(list(damage(tmp_path))) == 2  # that row, and the part's SHA-256
    assert "rows are not what was written" in list(damage(tmp_path))[1]


def test_what_a_disk_refuses_leaves_all_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 5)
    whole = os.pwrite

    def half(descriptor: int, data: Any, at: int) -> int:
        if len(data) == 50:  # what is left of the row
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(descriptor, data[:10], at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="No space"):
            store.add(row(6)[0], row(6)[1], positions=1, seconds=0)
    assert not store.can_write
    store.add(row(7)[0], row(7)[1], positions=1, seconds=0)  # nothing more is tried
    assert [has(store, at) for at in range(8)] == [True] * 5 + [False] * 3
    store.close()
    assert list(damage(tmp_path)) == []
    assert next(tmp_path.glob("*.rows")).stat().st_size == sum(len(row(at)[1]) for at in range(5))
    assert len(Store(tmp_path, KEY, "two")) == 5


@pytest.mark.parametrize("full", [True, False])
def test_a_part_that_cannot_be_finished_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """On a disk with room for rows and none for what is written of them at the end; ``full``: when the part is."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parts, "write_text", refuse)
    store = filled(tmp_path, 3)
    if full:
        monkeypatch.setattr(stores, "MAX_ROWS", 4)
        with pytest.raises(OSError, match="No space"):
            store.add(row(3)[0], row(3)[1], positions=1, seconds=0)
        assert not store.can_write
        store.add(row(4)[0], row(4)[1], positions=1, seconds=0)
    with open(tmp_path / "other", "w") as other:  # which has the descriptor of a file that is closed, where one is
        store.close()
        other.write("whole")
    assert (tmp_path / "other").read_text() == "whole"
    count = 4 if full else 3
    for opened in (store, Store(tmp_path, KEY, "two")):
        assert [has(opened, at) for at in range(5)] == [at < count for at in range(5)]
    assert list(damage(tmp_path)) == []
    assert told(tmp_path).unfinished_parts == 1


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: whole(descriptor, data[:7], at))
    filled(tmp_path, 12).close()
    assert list(damage(tmp_path)) == []
    assert all(has(Store(tmp_path, KEY, "two"), at) for at in range(12))


def test_a_run_that_goes_on_sees_what_it_saw(tmp_path: Path) -> None:
    """Rows that were written after its checkpoint, by itself before it was killed or by another run, are not seen."""
    filled(tmp_path, 3, "earlier").close()
    store = Store(tmp_path, KEY, "killed")
    for at in (3, 4):
        store.add(row(at)[0], row(at)[1], positions=1, seconds=0)
    state = store.state_dict()
    store.add(row(5)[0], row(5)[1], positions=1, seconds=0)
    other = Store(tmp_path, KEY, "other")
    other.add(row(6)[0], row(6)[1], positions=1, seconds=0)
    resumed = Store(tmp_path, KEY, "resumed")
    assert all(has(resumed, at) for at in range(7))
    resumed.load_state_dict(state)
    assert [has(resumed, at) for at in range(7)] == [True] * 5 + [False] * 2
    resumed.add(row(5)[0], row(5)[1], positions=1, seconds=0)
    assert has(resumed, 5)
    assert has(Store(tmp_path, KEY, "later"), 6)


def test_what_a_checkpoint_speaks_of_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, synced = filled(tmp_path, 3), []
    whole = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), whole(descriptor)))
    store.state_dict()
    assert {file.stat().st_ino for kind in ("rows", "index") for file in tmp_path.glob(f"*.{kind}")} == set(synced)


def test_a_checkpoint_does_not_end_for_a_caches_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 3)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        assert sum(store.state_dict()["visible"].values()) == 3
    store.close()
    assert len(Store(tmp_path, KEY, "two")) == 3


def test_processes_see_each_others_rows_from_the_next_step_on(tmp_path: Path) -> None:
    ranks = [Store(tmp_path, KEY, "run", rank=rank, world_size=2) for rank in range(2)]
    stranger = Store(tmp_path, KEY, "stranger")
    for store in ranks:
        store.next_step()
    ranks[0].add(row(1)[0], row(1)[1], positions=1, seconds=0)
    stranger.add(row(2)[0], row(2)[1], positions=1, seconds=0)
    assert not has(ranks[1], 1)
    ranks[0].next_step()  # which is a step ahead now
    ranks[0].add(row(3)[0], row(3)[1], positions=1, seconds=0)
    ranks[1].next_step()
    assert has(ranks[1], 1)
    assert not has(ranks[1], 3)
    assert not has(ranks[1], 2)  # another run's, whenever it is written
    state = ranks[1].state_dict()  # at the end of the step, when all have finished it
    assert has(ranks[1], 3)
    again = Store(tmp_path, KEY, "again", rank=1, world_size=2)
    again.load_state_dict(state)
    assert [has(again, at) for at in (1, 2, 3)] == [True, False, True]


def test_what_was_there_before_is_charged_once(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    store = Store(tmp_path, KEY, "two")
    store.add(row(9)[0], row(9)[1], positions=1, seconds=7.0)
    assert [store.charge(row(at)[0]) for at in (0, 1, 0, 9, 11)] == [0.5, 0.5, 0, 0, 0]
    again = Store(tmp_path, KEY, "three")
    again.load_state_dict(store.state_dict())
    assert [again.charge(row(at)[0]) for at in (0, 2)] == [0, 0.5]


def test_what_a_run_has_asked_itself_is_not_charged_after_it_was_killed(tmp_path: Path) -> None:
    """Asking is in its seconds already, and what it writes has another name each time that it goes on."""
    filled(tmp_path, 2, "earlier").close()
    state: dict[str, Any] = {}
    for at, name in enumerate(("begun", "resumed", "again"), start=2):
        store = Store(tmp_path, KEY, name)
        if state:
            store.load_state_dict(state)
        store.add(row(at)[0], row(at)[1], positions=1, seconds=7.0)
        state = store.state_dict()
    last = Store(tmp_path, KEY, "last")
    last.load_state_dict(state)
    assert [last.charge(row(at)[0]) for at in range(5)] == [0.5, 0.5, 0, 0, 0]


def test_another_key_is_refused_by_what_differs(tmp_path: Path) -> None:
    filled(tmp_path, 1).close()
    with pytest.raises(CacheError, match=r"dtype is 'bfloat16', and 'float32' there; k is 5, and None there") as caught:
        Store(tmp_path, KEY | {"dtype": "bfloat16", "k": 5}, "two")
    assert "teacher.cache.folder" in (caught.value.fix or "")
    check_key(tmp_path, KEY)


def test_a_place_that_cannot_be_written_is_told_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file/cache cannot be written: Not a directory") as caught:
        Store(tmp_path / "file" / "cache", KEY, "one")
    assert "teacher.cache.folder" in (caught.value.fix or "")


def test_a_folder_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is asked, and that it cannot be kept is an error of the disk, told once."""
    filled(tmp_path, 3).close()

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("potstill.teachers.cache.store.FileLock", refused)
    monkeypatch.setattr("potstill.teachers.cache.parts.os.open", refused)
    store = Store(tmp_path, KEY, "two")
    assert [has(store, at) for at in range(4)] == [True, True, True, False]
    with pytest.raises(CacheError, match="is the cache of something else"):
        Store(tmp_path, KEY | {"k": 5}, "three")
    with pytest.raises(OSError, match="Read-only"):
        store.add(*row(3), positions=1, seconds=0.0)
    assert not store.can_write


def test_rows_without_a_card_are_not_taken_for_anybodys(tmp_path: Path) -> None:
    filled(tmp_path, 1).close()
    (tmp_path / "cache.json").unlink()
    with pytest.raises(CacheError, match=r"has rows and no cache\.json"):
        Store(tmp_path, KEY, "two")
    (tmp_path / "cache.json").write_text("[1")
    with pytest.raises(CacheError, match="is no cache"):
        Store(tmp_path, KEY, "two")


def test_a_part_in_which_nothing_was_written_leaves_nothing(tmp_path: Path) -> None:
    Writer(tmp_path / "part").close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_tells_what_is_in_it_and_goes(tmp_path: Path) -> None:
    store = filled(tmp_path / "a", 10)
    store.close()
    filled(tmp_path / "b", 2, "unfinished")
    (tmp_path / "else").mkdir()
    assert find([tmp_path]) == [tmp_path / "a", tmp_path / "b"]
    assert find([tmp_path / "b"]) == [tmp_path / "b"]
    found = told(tmp_path / "a")
    positions, size = sum(at % 7 for at in range(10)), sum(len(row(at)[1]) for at in range(10))
    assert (found.rows, found.response_tokens, found.bytes) == (10, positions, size + 10 * RECORD.itemsize)
    assert (found.parts, found.unfinished_parts, found.seconds) == (1, 0, 5.0)
    assert told(tmp_path / "b").unfinished_parts == 1
    os.utime(tmp_path / "a" / "cache.json", (0, 0))
    assert unused(find([tmp_path]), 1.0) == [tmp_path / "a"]
    Store(tmp_path / "a", KEY, "two")  # which uses it
    assert unused(find([tmp_path]), 1.0) == []
    assert remove(tmp_path / "a") == found.bytes
    assert find([tmp_path]) == [tmp_path / "b"]
    with pytest.raises(CacheError, match="is no cache"):
        remove(tmp_path / "else")
    assert (tmp_path / "else").is_dir()


def test_rows_that_are_gone_from_a_finished_part_are_counted(tmp_path: Path) -> None:
    filled(tmp_path, 10).close()
    rows = next(tmp_path.glob("*.rows"))
    os.truncate(rows, rows.stat().st_size // 2)
    gone = 10 - len(Part(rows.with_suffix("")).records)
    assert 0 < gone < 10
    assert any(f"{gone} of 10 rows are gone" in line for line in damage(tmp_path))


@pytest.mark.parametrize("suffix", ["rows", "index"])
def test_a_missing_file_of_a_finished_part_is_told(tmp_path: Path, suffix: str) -> None:
    filled(tmp_path, 3).close()
    next(tmp_path.glob(f"*.{suffix}")).unlink()
    assert any(f".{suffix} is missing" in line for line in damage(tmp_path))


def test_a_million_rows_are_looked_up_without_reading_them_all(tmp_path: Path) -> None:
    """What is held of a row is 24 bytes and its record."""
    count = 200_000
    records = np.zeros(count, RECORD)
    records["digest"] = np.random.default_rng(0).integers(0, 2**63, (count, 2))
    Store(tmp_path, KEY, "one")
    (tmp_path / "x-00000-00000.rows").write_bytes(b"")
    records.tofile(tmp_path / "x-00000-00000.index")
    store = Store(tmp_path, KEY, "two")
    assert store._sorted.nbytes == 24 * count
    begun = time.process_time()
    for at in range(2000):
        digest([at], [2]) in store  # noqa: B015
    assert time.process_time() - begun < 0.25  # one that copies what it searches takes 0.47 s
    assert all(records["digest"][at].tobytes() in store for at in range(0, count, 997))
    assert digest([1], [2]) not in store
