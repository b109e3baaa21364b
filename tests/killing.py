"""Runs that are killed where a test says, and resumed: forked from one process that has imported everything."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Fault = tuple[str, int]  # "module:function" or "module:Class.method", and the call of it after which the run is killed

SERVER = textwrap.dedent("""
    import importlib, json, os, signal, sys
    import potstill, potstill.api
    import transformers.models.llama.modeling_llama, transformers.generation, rouge_score.rouge_scorer

    def kill_after(where, number):
        module, _, path = where.partition(":")
        *within, name = path.split(".")
        owner = importlib.import_module(module)
        for part in within:
            owner = getattr(owner, part)
        function, calls = getattr(owner, name), [0]

        def dying(*arguments, **keywords):
            result = function(*arguments, **keywords)
            calls[0] += 1
            if calls[0] == number: os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, dying)

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(order["folder"])
            if order["fault"]: kill_after(*order["fault"])
            code = 1
            try:
                if order["resume"]: potstill.resume("crash")
                else: potstill.train(order["method"], run="crash", **order["settings"])
                code = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(code)
        print(json.dumps(os.waitpid(child, 0)[1]), flush=True)
""")


class Server:
    """Runs a method in a folder, as ``runs/crash``. What it printed is in ``log``."""

    def __init__(self, folder: Path):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = folder / "server.log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True, env=env,
        )  # fmt: skip

    def run(
        self,
        method: str,
        folder: Path,
        settings: dict[str, Any] | None = None,
        *,
        resume: bool = False,
        fault: Fault | None = None,
    ) -> int:
        """The status that the process ended with, as ``os.waitpid`` has it."""
        order = {"method": method, "folder": str(folder), "resume": resume, "fault": fault, "settings": settings}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def result(folder: Path) -> tuple[str, list[dict[str, float]]]:
    """The student's SHA-256, and metrics.jsonl with its timings left out."""
    run = folder / "runs" / "crash"
    sha = hashlib.sha256((run / "student" / "model.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sha, [{k: v for k, v in m.items() if not k.startswith("time/")} for m in lines]


def parting(found: tuple[str, list[dict[str, float]]], expected: tuple[str, list[dict[str, float]]]) -> str:
    """Where two results part first, in a line; empty where they do not."""
    for at, (one, other) in enumerate(zip_longest(found[1], expected[1], fillvalue={})):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                return f"line {at + 1}, step {other.get('step')}: {key} is {one.get(key)!r} and not {other.get(key)!r}"
    return "" if found[0] == expected[0] else "every figure is the same, the student is not"


def prepare(workspace: Path, name: str) -> Path:
    """A folder of a run's own, with the workspace's teacher and rows."""
    folder = workspace / name
    folder.mkdir()
    for item in ("teacher", "rows.jsonl"):
        (folder / item).symlink_to((workspace / item).resolve())
    return folder
