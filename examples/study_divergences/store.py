"""What is on disk: every file appears whole or not at all, and a result of another study is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a result lies: one file for each teacher, training seed and method."""

    out: Path
    teacher: int
    seed: int
    name: str

    @property
    def path(self) -> Path:
        return self.out / "results" / f"teacher-{self.teacher}" / f"seed-{self.seed}" / f"{self.name}.json"


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A path to write to, file or folder, which becomes ``path`` once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    yield draft
    os.replace(draft, path)


def write_json(path: Path, content: Any) -> None:
    with published(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return sha256(path.read_bytes()).hexdigest()


def read_result(place: Place, expected: dict[str, str]) -> dict[str, Any] | None:
    """The result of a finished run, None where there is none.

    Args:
        place: of the result.
        expected: what it must have been made with: ``teacher_hash``, ``student_hash`` and ``settings``.
    Raises: SystemExit where it was made with something else: it must not stand beside the others.
    """
    if not place.path.exists():
        return None
    found: dict[str, Any] = json.loads(place.path.read_text())
    for key, value in expected.items():
        if found[key] != value:
            raise SystemExit(
                f"{place.path} was made with another {key} ({found[key][:12]}, now {value[:12]}), so it cannot be "
                "compared with the rest; give another --out, or delete it to measure it again"
            )
    return found
