"""The command line in processes that are forked from one which has imported everything: a start takes no seconds.

They are real processes, and speak to each other by gloo as torchrun's do, which ``test_ddp.py`` tries.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

IMPORTED = ["torch", "transformers", "potstill.cli", "potstill.api", "potstill.sources.rollout", "tests.processes"]
# Read when torch and the hub are imported.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def run(arguments: list[str], folder: Path, processes: int = 1, timeout: float = 200) -> subprocess.CompletedProcess:
    """``potstill`` with these arguments in a folder, by one process or by several that share the work.

    Returns: the exit code of the first that failed, or 0; what all of them wrote.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with _variables(ENVIRONMENT):
        forkserver.ensure_running()
    with TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
        started = []
        for rank in range(processes):
            ranked = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            asked = (arguments, folder, ranked, out, err)
            started.append(context.Process(target=_enter, args=asked))
            started[-1].start()
        try:
            _join(started, timeout)
        finally:
            for process in started:
                process.kill()
        code = next((process.exitcode for process in started if process.exitcode), 0)
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _join(started: list[multiprocessing.process.BaseProcess], timeout: float) -> None:
    """Wait for all; where one has failed, the others wait for it in vain and are stopped, as torchrun stops them."""
    for process in started:
        process.join(timeout)
        if process.exitcode is None:
            pytest.fail(f"not done within {timeout} s")
        if process.exitcode:
            return


def _enter(arguments: list[str], folder: Path, place: dict[str, str], out: Path, err: Path) -> None:
    os.environ.update(place)
    os.chdir(folder)
    sys.argv = ["potstill", *arguments]
    for number, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
    from potstill.cli import main

    try:
        main()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _variables(wanted: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
