"""What compiling terms saves of a whole step: ``python bench/compiling.py [--repeats 5]``.

SmolLM2-135M teaches its own first 6 layers on four sequences of 256 tokens, with the teacher asked and with its draws
read from a cache, each step compiled and not, in turns, one thread, processor seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from bench import caches, measuring, workload
from potstill.objectives.compiled import Compiled
from potstill.teachers.local import LocalTeacher, SignalSource

OBJECTIVES: dict[str, tuple[Any, str]] = {
    "asked": ("logits", "jensen_shannon"),
    "50 draws": (caches.SIGNALS["50 draws"], "forward_kl"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    models = workload.models()
    source = workload.data(models.tokenizer, workload.rows(models.tokenizer))
    print("| teacher | objective | precision | as it comes, s | compiled, s | |\n|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        teachers: dict[str, SignalSource] = {
            "asked": LocalTeacher(models.teacher),
            "50 draws": caches.cached("50 draws", models, Path(folder)),
        }
        for name, teacher in teachers.items():
            signal, objective = OBJECTIVES[name]
            stream = workload.stream(source, teacher, signal, objective)
            for dtype in (torch.float32, torch.bfloat16):
                _row(name, objective, dtype, models, stream, repeats)


def _row(name: str, objective: str, dtype: torch.dtype, models: workload.Models, stream: Any, repeats: int) -> None:
    subjects: dict[str, Callable[[], float]] = {
        "as it comes": partial(workload.step, models, stream, dtype=dtype),
        "compiled": partial(workload.step, models, replace(stream, compiled=Compiled()), dtype=dtype),
    }
    measuring.assert_equal({subject: step() for subject, step in subjects.items()}, 1e-3)
    seconds = {subject: median(found) for subject, found in measuring.in_turns(subjects, repeats).items()}
    plain, compiled = seconds.values()
    precision = str(dtype).removeprefix("torch.")
    print(
        f"| {name} | {objective} | {precision} | {plain:.2f} | {compiled:.2f} | {plain / compiled:.2f} x |", flush=True
    )


if __name__ == "__main__":
    main()
