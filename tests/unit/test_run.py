"""The run folder."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from potstill import run as runs
from potstill.errors import ConfigError, DataError


def test_names_are_numbered_and_never_taken_twice(tmp_path: Path) -> None:
    first, second = runs.create(None, "kd", tmp_path), runs.create(None, "kd", tmp_path)
    assert [first.name, second.name] == ["kd-1", "kd-2"]
    (tmp_path / "kd-7").mkdir()
    assert runs.create(None, "kd", tmp_path).name == "kd-8"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    file, link = tmp_path / "runs", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to("nowhere")
    for root, taken in ((file, file), (file / "deeper", file), (link, link)):
        with pytest.raises(ConfigError) as caught:
            runs.create(None, "kd", root)
        assert caught.value.cause.startswith(f"{taken} is not a folder")
        assert "move or rename it" in str(caught.value.fix)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ConfigError, match=r"x is there already, and is no run\n  fix: choose another name"):
        runs.create("x", "kd", tmp_path)
    assert file.read_text() == "mine"


def test_an_existing_run_is_found_by_name_or_path(tmp_path: Path) -> None:
    run = runs.create("mine", "kd", tmp_path)
    runs.write_text(run.recipe_file, "")
    assert runs.find("mine", tmp_path).path == run.path
    assert runs.find(run.path, tmp_path).path == run.path
    with pytest.raises(ConfigError, match=r"other is not a run\n  fix: runs here: mine"):
        runs.find("other", tmp_path)


def test_latest_moves_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        runs.mark_latest(runs.create(name, "kd", tmp_path))
    assert (tmp_path / "latest").resolve().name == "b"


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cost.json"
    runs.write_text(file, "old")
    monkeypatch.setattr(runs.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        runs.write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_process_that_is_gone_had_begun_is_removed_and_what_others_are_writing_is_not(tmp_path: Path) -> None:
    begun = f".cost.json.{platform.node()}"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"{begun}.{gone.pid}").touch()
    others = [
        f"{begun}.{os.getppid()}",  # alive
        f".cost.json.elsewhere.{gone.pid}",  # of another machine
        f".cost.json.old.{gone.pid}",
        f"{begun}.{gone.pid}x",
        f"{begun}.{10**12}",
        f".[c]ost.json.{platform.node()}.{gone.pid}",
    ]
    for name in others:
        (tmp_path / name).touch()
    runs.write_text(tmp_path / "cost.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "cost.json"])
    runs.write_text(tmp_path / "[c]ost.json", "whole")
    assert not (tmp_path / others[-1]).exists()


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "tr')
    assert list(runs.read_jsonl(file)) == [{"step": 1}]


@pytest.mark.parametrize("line", [b"{", b"3", b'{"a": "\xe9"}', b"[" * 100_000])
def test_a_damaged_line_is_refused_where_it_stands(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a JSON object"):
        list(runs.read_jsonl(file))


def test_removing_a_folder_does_not_follow_links(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "link").symlink_to(kept)
    runs.remove_folder(tmp_path / "link")
    assert kept.is_dir()
    assert not (tmp_path / "link").is_symlink()
