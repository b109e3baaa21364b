"""A checkpoint is complete and verified, or it is not used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from potstill.errors import CheckpointError
from potstill.training import checkpoint
from potstill.training.checkpoint import Checkpoint, Writer


def write(folder: Path, step: int) -> Checkpoint:
    writer = Writer(folder, step)
    writer.begin()
    writer.student.mkdir()
    (writer.student / "model.safetensors").write_bytes(bytes(range(256)) * step)
    writer.file("trainer.json").write_text(json.dumps({"step": step}))
    writer.file("optimizer.pt").write_bytes(b"optimizer" * step)
    return writer.commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (5, 10, 15):
        write(tmp_path, step)
    return tmp_path


def test_the_newest_that_verifies_is_used(folder: Path) -> None:
    found = checkpoint.newest(folder)
    assert found is not None
    assert (found.step, found.read_json("trainer.json")) == (15, {"step": 15})


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "checkpoints") is None


FILES = ["student/model.safetensors", "state/trainer.json", "state/optimizer.pt", "MANIFEST.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damage_is_found_and_the_one_before_is_used(folder: Path, name: str, damage: str) -> None:
    file = folder / "step-000015" / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 0x10
        file.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[damage])
    said: list[str] = []
    found = checkpoint.newest(folder, said.append)
    assert found is not None
    assert found.step == 10
    assert len(said) == 1
    assert "step-000015" in said[0]
    assert name.split("/")[-1] in said[0] or name in said[0]


def test_every_single_bit_of_a_file_is_guarded(tmp_path: Path) -> None:
    path = write(tmp_path, 1).path
    file = path / "state" / "trainer.json"
    good = file.read_bytes()
    for position in range(8 * len(good)):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        file.write_bytes(bad)
        assert checkpoint.what_is_wrong(path) is not None
    file.write_bytes(good)
    assert checkpoint.what_is_wrong(path) is None


def test_a_file_that_was_not_written_with_it_is_found(folder: Path) -> None:
    (folder / "step-000015" / "state" / "process-00000.pt").write_bytes(b"from elsewhere")
    assert "not in its manifest" in str(checkpoint.what_is_wrong(folder / "step-000015"))


def test_where_none_is_whole_the_reasons_are_told(folder: Path) -> None:
    for path in folder.glob("step-*"):
        (path / "state" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"step-000015: state/optimizer.pt is missing; step-000010(.|\n)*fix:"):
        checkpoint.newest(folder)


def test_a_named_step_is_checked_too(folder: Path) -> None:
    assert checkpoint.at(folder, 10).step == 10
    (folder / "step-000010" / "state" / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"step-000010: state/optimizer.pt has 1 bytes, not 90"):
        checkpoint.at(folder, 10)
    with pytest.raises(CheckpointError, match=r"step-000099: MANIFEST.json is missing"):
        checkpoint.at(folder, 99)


def test_what_a_crash_left_half_written_is_ignored_and_removed(folder: Path) -> None:
    half = Writer(folder, 20)
    half.begin()
    half.file("trainer.json").write_text("{}")
    found = checkpoint.newest(folder)
    assert found is not None
    assert found.step == 15
    checkpoint.prune(folder, keep_last=3, best_step=None)
    assert not half.partial.exists()


def test_pruning_keeps_the_newest_and_the_best(folder: Path) -> None:
    write(folder, 20)
    checkpoint.mark_best(folder, 5)
    checkpoint.prune(folder, keep_last=2, best_step=5)
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-000005", "step-000015", "step-000020"]
    assert (folder / "best").resolve().name == "step-000005"


def test_pruning_never_follows_a_link(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    shutil.rmtree(folder / "step-000005")
    (folder / "step-000005").symlink_to(outside)
    checkpoint.prune(folder, keep_last=1, best_step=None)
    assert (outside / "precious").read_text() == "kept"


def test_writing_a_step_again_replaces_it(folder: Path) -> None:
    writer = Writer(folder, 15)
    writer.begin()
    writer.file("trainer.json").write_text('{"again": true}')
    assert writer.commit().read_json("trainer.json") == {"again": True}
    assert checkpoint.what_is_wrong(folder / "step-000015") is None


def test_files_are_readable_by_others_as_the_umask_says(folder: Path) -> None:
    mode = (folder / "step-000015" / "student" / "model.safetensors").stat().st_mode & 0o777
    import os

    mask = os.umask(0)
    os.umask(mask)
    assert mode == 0o666 & ~mask
