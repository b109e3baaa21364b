"""Checkpoints that are complete and verified, or ignored.

Everything is written to a hidden folder, hashed into MANIFEST.json, flushed to disk and renamed in one step, so a crash
at any instant leaves either the whole checkpoint or none. Reading one back checks every byte against the manifest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from potstill.errors import CheckpointError
from potstill.hashes import file_sha256
from potstill.run import remove_folder, replace_link

MANIFEST = "MANIFEST.json"
BEST = "best"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    @property
    def student(self) -> Path:
        return self.path / "student"

    def read_json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / "state" / name).read_text(encoding="utf-8"))

    def read_tensors(self, name: str) -> dict[str, Any]:
        """Optimizer or random state: tensors and numbers only, nothing that could run code."""
        return torch.load(self.path / "state" / name, weights_only=True)


class Writer:
    """Writes one checkpoint. Every process calls ``file`` for its own files, the main one ``begin`` and ``commit``."""

    def __init__(self, folder: Path, step: int):
        self.final = folder / step_name(step)
        self.partial = folder / f".{step_name(step)}.partial"

    def begin(self) -> None:
        remove_folder(self.partial)
        (self.partial / "state").mkdir(parents=True)

    @property
    def student(self) -> Path:
        return self.partial / "student"

    def file(self, name: str) -> Path:
        return self.partial / "state" / name

    def commit(self) -> Checkpoint:
        """Hash, flush and rename. From here on the checkpoint counts."""
        files = sorted(file for file in self.partial.rglob("*") if file.is_file())
        entries = {
            str(f.relative_to(self.partial)): {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files
        }
        (self.partial / MANIFEST).write_text(
            json.dumps({"version": 1, "files": entries}, indent=2) + "\n", encoding="utf-8"
        )
        make_readable(self.partial)
        flush_tree(self.partial)
        remove_folder(self.final)
        os.rename(self.partial, self.final)
        _flush(self.final.parent)
        return Checkpoint(self.final)


@contextmanager
def cleaning_up(writer: Writer) -> Iterator[None]:
    """A write that fails, on a full disk most often, leaves nothing behind and says what to do.

    Raises: CheckpointError.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        remove_folder(writer.partial)
        free = shutil.disk_usage(writer.final.parent).free / 2**20
        raise CheckpointError(
            f"{writer.final} could not be written: {str(error).splitlines()[0]} ({free:,.0f} MiB free there)",
            "make room, then go on with `potstill resume`: the checkpoint before it stands",
        ) from error


def at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, checked.

    Raises: CheckpointError where it is absent or not what was written.
    """
    path = folder / step_name(step)
    if reason := what_is_wrong(path):
        raise CheckpointError(
            f"{path}: {reason}", "restore it from a copy, or remove the run's folder and train it again"
        )
    return Checkpoint(path)


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def newest(folder: Path, say: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where none was ever written.

    Args:
        folder: ``checkpoints/`` of a run.
        say: told of each checkpoint that is passed over, and why.
    Raises: CheckpointError where there are checkpoints and none verifies.
    """
    reasons = []
    for path in _newest_first(folder):
        if reason := what_is_wrong(path):
            reasons.append(f"{path.name}: {reason}")
            say(f"skipping checkpoint {path.name}: {reason}")
            continue
        return Checkpoint(path)
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {'; '.join(reasons)}",
            f"restore one from a copy, or remove {folder} to start the run again from its first step",
        )
    return None


def what_is_wrong(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None where every byte is what was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    present = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} - {MANIFEST}
    if missing := sorted(entries.keys() - present):
        return f"{missing[0]} is missing"
    if extra := sorted(present - entries.keys()):
        return f"{extra[0]} is not in its manifest"
    for name, (size, sha256) in entries.items():
        file = path / name
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if file_sha256(file) != sha256:
            return f"{name} is damaged (its SHA-256 differs from the manifest's)"
    return None


def mark_best(folder: Path, step: int) -> None:
    """Point ``best`` at a step's checkpoint. For people: the run itself goes by the step in its state."""
    replace_link(folder / BEST, step_name(step))


def prune(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best one, and what crashes left half-written."""
    for path in list(_newest_first(folder))[keep_last:]:
        if Checkpoint(path).step != best_step:
            remove_folder(path)
    for leftover in (*folder.glob(".step-*.partial"), *folder.glob(f".{BEST}.*")):
        remove_folder(leftover)


def _newest_first(folder: Path) -> Iterator[Path]:
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name) and p.is_dir()]
    return iter(sorted(found, key=lambda p: Checkpoint(p).step, reverse=True))


def make_readable(folder: Path) -> None:
    """Give files the mode the user's umask asks for: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def flush_tree(folder: Path) -> None:
    """Wait until every file and folder below is on disk."""
    for path in (folder, *folder.rglob("*")):
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
