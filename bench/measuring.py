"""How everything here is measured: processor seconds in turns, memory in a process of its own, on which machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "numpy")
LEFT_OUT = 3  # the exit status of a subject that cannot be measured here
WIDEST = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # what products gain from, the widest first


@dataclass(frozen=True)
class Effort:
    """How long to measure: ``repeats`` of each subject; ``quick`` for shapes that only show that it runs."""

    repeats: int = 3
    quick: bool = False


class LeftOut(Exception):
    """A benchmark, or one of its subjects, that cannot be measured here, and why."""


def in_turns(
    subjects: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, tuple[float, ...]]:
    """Seconds, of the processor unless by another clock, of each subject at each repeat. All have their turn before any
    has its next."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            begun = clock()
            subject()
            found[name].append(clock() - begun)
    return {name: tuple(seconds) for name, seconds in found.items()}


def assert_equal(losses: Mapping[str, float], tolerance: float = 1e-4) -> None:
    """Refuse to time subjects that compute different things. Raises: RuntimeError."""
    first, *others = losses.values()
    if any(abs(loss / first - 1) > tolerance for loss in others):
        raise RuntimeError(f"these should be equal, and are not: {dict(losses)}")


def extra_mib(module: str, subject: str, **settings: Any) -> float:
    """MiB at the peak of a subject, over what its inputs take, in a process of its own.

    ``prepared(subject, **settings)`` of the module makes the inputs and returns what is to be measured. Linux only.
    """
    command = [sys.executable, "-m", "bench.alone", module, subject, json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == LEFT_OUT:
        raise LeftOut(done.stdout.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"{subject} of {module}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    """Name, processor, memory, and the versions of what computes."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    processor = values.get("model name") or platform.processor() or platform.machine()
    widest = next((name for name in WIDEST if name in values.get("flags", "").split()), "")
    cores = os.cpu_count() or 1
    name = f"{processor.replace('(R)', '').replace('(TM)', '')} {widest} {cores} cores"
    return {
        "name": " ".join(name.split()),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
