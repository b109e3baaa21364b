"""The demo's plan, and then the demo: what was said and what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.test_embedded import needs_package

pytestmark = [pytest.mark.slow, needs_package]


def settings() -> list[str]:
    """What the Makefile's demo trains."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "potstill train" in line)
    return line.split("train", 1)[1].split()


def potstill(folder: Path, *words: str) -> Any:
    """What the command prints for programs; with as many threads as the demo has."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "potstill", *words, "--format", "json"]
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.timeout(1500)
def test_the_demo_takes_what_its_plan_said(tmp_path: Path) -> None:
    plan = potstill(tmp_path, "plan", *settings())
    begun = time.perf_counter()
    potstill(tmp_path, "train", *settings(), "run=demo")
    seconds = time.perf_counter() - begun
    cost = json.loads((tmp_path / "runs/demo/cost.json").read_text(encoding="utf-8"))
    (stage,) = plan["stages"]
    assert (stage["steps"], stage["response_tokens"]) == (cost["steps"], cost["response_tokens"])
    # Rows are laid end to end where that pays, which the lengths decide that meet; of one length it is exact.
    assert stage["flops"] == pytest.approx(cost["flops"], rel=0.01)
    assert plan["total_seconds"] == pytest.approx(seconds, rel=0.3)
    assert plan["memory_bytes"] == pytest.approx(cost["peak_memory_bytes"], rel=0.2)
