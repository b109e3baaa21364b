"""A place to write in beside the place that is meant, so that what has its own name is always whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from potstill.errors import DataError

LOCK = "lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, on the same disk; it is gone afterwards, whatever happened.

    After a kill it stays, under a hidden name that nothing reads, and the next writer of ``target`` empties it.

    Raises: DataError where another process is writing ``target``, or the disk refuses.
    """
    folder = target.with_name(f".{target.name}.unfinished")
    taken = DataError(f"another process is writing {target}", "wait for it to end, or write to another place")
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise taken from None
        if not (folder / LOCK).exists():  # the one before removed it between our opening and our locking
            lock.release()
            raise taken
        try:
            _empty(folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _empty(folder: Path) -> None:
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != LOCK:
            item.unlink()


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What the disk refuses, as a DataError."""
    try:
        yield
    except OSError as error:
        fix = "free some space, or write to another disk" if error.errno in FULL else "check the disk and permissions"
        raise DataError(f"{target} cannot be written: {error.strerror or error}", fix) from error


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
