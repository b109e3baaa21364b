"""What tells whether files are the same: SHA-256 of their contents."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import file_digest, sha256
from pathlib import Path


def file_sha256(file: Path) -> str:
    """Of what is in a file, in hexadecimal."""
    with open(file, "rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def files_sha256(files: Iterable[Path], folder: Path) -> str:
    """Of several files of a folder: of their names in it and what is in them, whatever their order here."""
    told = sorted((file.relative_to(folder).as_posix(), file_sha256(file)) for file in files)
    return sha256("".join(f"{name}\0{contents}\0" for name, contents in told).encode()).hexdigest()
