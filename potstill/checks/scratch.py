"""A folder for what is tried and not kept."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psutil import pid_exists

from potstill.run import remove_folder


@contextmanager
def scratch(what: str) -> Iterator[Path]:
    """A folder that is gone afterwards, and with it those of the same kind on this machine that were killed."""
    root, mine = Path(tempfile.gettempdir()), f"potstill-{what}.{platform.node()}."
    for left in root.glob(f"{mine}*"):
        pid = left.name.removeprefix(mine).partition(".")[0]
        if re.fullmatch(r"\d{1,9}", pid) and not pid_exists(int(pid)):
            remove_folder(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}.", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
