"""B7: what a teacher's cache costs to write and to read, and how many bytes it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench import caches, measuring, workload
from bench.measuring import Effort
from bench.results import Result
from bench.workload import Models
from potstill.data.collate import collate
from potstill.objectives.chunked import select
from potstill.teachers.local import LocalTeacher
from potstill.types import Batch, StudentOutput

OVERHEAD = 1 / 1.1  # of the teacher's forward, its head included
BYTES = {"states": 2 * 576 + 8, "top 64": 260.0, "50 draws": 44.0}  # a response token
OF_A_STEP = 1 / 0.002
READS = 50


def measure(effort: Effort) -> list[Result]:
    """Producing and reading one batch, and the bytes of several."""
    models = workload.models()
    texts = workload.rows(models.tokenizer, 4 if effort.quick else 16)
    batches = [collate(texts[at : at + 4], 0) for at in range(0, len(texts), 4)]
    with TemporaryDirectory() as folder:
        return [
            *_produced(models, batches[0], Path(folder), effort.repeats),
            *_kept(models, batches, Path(folder), effort.repeats),
        ]


def _produced(models: Models, batch: Batch, folder: Path, repeats: int) -> list[Result]:
    forward, new = "teacher's forward", count()
    subjects: dict[str, Callable[[], object]] = {forward: partial(forward_with_head, models, batch)}
    for name in BYTES:
        subjects[name] = partial(_write, models, name, batch, folder, new)
    for subject in subjects.values():
        subject()  # what is done once is done
    seconds = measuring.in_turns(subjects, repeats)
    return [
        Result("B7", f"asked and written, {name}", "s", seconds[name], forward, seconds[forward], "limit", OVERHEAD)
        for name in BYTES
    ]


def _write(models: Models, name: str, batch: Batch, folder: Path, new: Iterator[int]) -> None:
    caches.cached(name, models, folder / f"new-{next(new)}").signal(batch)


@torch.no_grad()
def forward_with_head(models: Models, batch: Batch) -> None:
    """The teacher's logits of all response tokens, a chunk at a time, with nothing done to them."""
    live = LocalTeacher(models.teacher).signal(batch)
    positions = select(StudentOutput(live.hidden, live.head), None, batch, batch.response_mask)
    for at in positions.slices():
        live.head(positions.hidden[at])


def _kept(models: Models, batches: list[Batch], folder: Path, repeats: int) -> list[Result]:
    found = []
    num_tokens = sum(batch.num_response_tokens for batch in batches)
    source = workload.data(models.tokenizer, workload.rows(models.tokenizer))
    for name, limit in BYTES.items():
        teacher = caches.cached(name, models, folder / name)
        for batch in batches:
            teacher.signal(batch)
        size = sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file())
        found.append(
            Result("B7", name, "bytes a token", (size / num_tokens,), "what is allowed", (limit,), "limit", 1.0)
        )
        stream = workload.stream(source, teacher, caches.SIGNALS[name])
        workload.step(models, stream)  # its rows are there from now on
        step = measuring.in_turns({"step": partial(workload.step, models, stream)}, 1)["step"]
        reads = tuple(_reading(teacher.signal, batches[0]) for _ in range(repeats))
        found.append(Result("B7", f"reading a batch, {name}", "s", reads, "a cached step", step, "limit", OF_A_STEP))
    return found


def _reading(read: Callable[[Batch], object], batch: Batch) -> float:
    """Processor seconds of reading a batch, a mean of many."""
    begun = time.process_time()
    for _ in range(READS):
        read(batch)
    return (time.process_time() - begun) / READS
