"""A file that answers are added to line by line: one command at a time, and what a crash cut is taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from potstill.errors import ConfigError


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """One command at a time writes answers: two would ask for each twice.

    Raises: ConfigError for the second, and where nothing can be written.
    """
    lock = out.with_name(f".{out.name}.lock")
    try:
        if not out.parent.exists():
            out.parent.mkdir(parents=True)
        lock.touch()
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror or error}", "choose a folder that can be written to"
        ) from None
    try:
        with FileLock(lock, blocking=False):
            yield
    except Timeout:
        raise ConfigError(f"another command is writing {out}", "wait for it, or choose another file") from None


def end_last_line(out: Path) -> None:
    """Take away a last line that a crash cut; end one that a person left without a line break."""
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    last = content[len(whole) :]
    if not last:
        return
    with open(out, "r+b") as handle:
        try:
            json.loads(last)
            handle.seek(0, 2)
            handle.write(b"\n")
        except ValueError:
            handle.truncate(len(whole))
