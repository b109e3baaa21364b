"""kill -9 at any moment, then resume: the same student, to the last bit, and each step logged once.

Every run is a child forked from one process that has imported everything and computed nothing, so that a kill costs
seconds rather than an import of torch.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, SMALL
from tests.killing import parting, prepare, result

STEPS, EVERY = 40, 5

FORK_SERVER = textwrap.dedent("""
    import json, os, signal, sys, threading, time
    import potstill, potstill.api, potstill.training.checkpoint as checkpoint
    import transformers.models.llama.modeling_llama, transformers.generation, rouge_score.rouge_scorer

    def die(): os.kill(os.getpid(), signal.SIGKILL)

    def kill_inside_write(number):
        # The number-th checkpoint dies after its student and half of its state are written, before the manifest.
        commit, count = checkpoint.Writer.commit, [0]
        def dying(self):
            count[0] += 1
            if count[0] == number:
                file = self.file("optimizer.pt")
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
                die()
            return commit(self)
        checkpoint.Writer.commit = dying

    def kill_before_rename(number):
        flush, count = checkpoint.flush_tree, [0]
        def dying(folder):
            count[0] += folder.name.endswith(".partial") and folder.name.startswith(".step")
            if count[0] == number: die()
            flush(folder)
        checkpoint.flush_tree = dying

    def kill_before_best(number):
        # After the rename: the checkpoint counts, and nothing points at it yet.
        mark, count = checkpoint.mark_best, [0]
        def dying(*arguments):
            count[0] += 1
            if count[0] == number: die()
            mark(*arguments)
        checkpoint.mark_best = dying

    def kill_after(seconds):
        threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(order["folder"])
            if order["fault"]: globals()[order["fault"][0]](order["fault"][1])
            code = 1
            try:
                if order["resume"]: potstill.resume("crash")
                else: potstill.train("kd", run="crash", **order["settings"])
                code = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(code)
        began = time.monotonic()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": status, "seconds": time.monotonic() - began}), flush=True)
""")


class ForkServer:
    def __init__(self, log: Path):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=env,
        )  # fmt: skip

    def run(self, folder: Path, *, resume: bool = False, fault: tuple[str, float] | None = None) -> tuple[int, float]:
        settings = SMALL | {"budget.steps": STEPS, "checkpoint.every": EVERY, "checkpoint.best_by": "forward_kl_nats"}
        order = {"folder": str(folder), "resume": resume, "fault": fault, "settings": settings}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["seconds"]


def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(workspace: Path) -> None:
    server = ForkServer(workspace / "server.log")
    try:
        whole = prepare(workspace, "whole")
        status, seconds = server.run(whole)
        assert status == 0, server.log.read_text()
        expected = result(whole)
        assert [line["step"] for line in expected[1] if "train/loss" in line] == list(range(1, STEPS + 1))

        moments = random.Random(0)
        faults: list[tuple[str, float]] = [("kill_after", moments.uniform(0.1, 0.95) * seconds) for _ in range(4)]
        faults += [("kill_inside_write", 3), ("kill_before_rename", 4), ("kill_before_best", STEPS // EVERY)]
        for number, fault in enumerate(faults):
            folder = prepare(workspace, f"killed-{number}")
            status, _ = server.run(folder, fault=fault)
            if status != 0:  # a timer may come too late on a machine that has become faster
                assert os.WTERMSIG(status) == signal.SIGKILL, server.log.read_text()
                if not (folder / "runs" / "crash" / "recipe.yaml").exists():
                    continue  # killed before there was a run to resume
                status, _ = server.run(folder, resume=True)
            assert status == 0, (fault, server.log.read_text())
            assert not parting(result(folder), expected), fault
            leftovers = list((folder / "runs" / "crash" / "checkpoints").glob(".*"))
            assert leftovers == [], fault
    finally:
        server.process.kill()


@pytest.mark.slow
def test_killed_at_twenty_moments(workspace: Path) -> None:
    server = ForkServer(workspace / "server.log")
    try:
        whole = prepare(workspace, "whole")
        _, seconds = server.run(whole)
        expected = result(whole)
        killed = 0
        for number in range(20):
            folder = prepare(workspace, f"killed-{number}")
            status, _ = server.run(folder, fault=("kill_after", random.Random(number).uniform(0.05, 1) * seconds))
            killed += status != 0
            while status != 0 and (folder / "runs" / "crash" / "recipe.yaml").exists():
                status, _ = server.run(folder, resume=True)
            if status == 0:
                assert not parting(result(folder), expected), number
        assert killed >= 10
    finally:
        server.process.kill()
