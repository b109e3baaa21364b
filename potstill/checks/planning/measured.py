"""What is measured of a stage: it is set up as a run sets it up, and everything that a run does often is done once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from potstill import assembly
from potstill import recipe as schema
from potstill.assembly import Student
from potstill.bench import Bench, say, set_up
from potstill.caching import Caches, is_kept, keeping
from potstill.checks.dry.sizes import count
from potstill.checks.planning import memory
from potstill.checks.planning.pace import Pace, batch_sizes, joined, pace_of
from potstill.checks.planning.probe import Probed, less_writing, mixed, parts_of, probe, then, updates_of
from potstill.models import adapters
from potstill.models.devices import device_named
from potstill.models.families import Family
from potstill.models.loading import load
from potstill.models.quiet import quiet
from potstill.run import Run
from potstill.sources.teacher_text import seconds_of
from potstill.streams import Parts, build_streams, build_terms
from potstill.training import checkpoint
from potstill.training.signals import StopRequest
from potstill.training.trainer import Job, fit

PROMPTS = 16  # of those that a teacher writes to before training, at the least


@dataclass(frozen=True)
class Measured:
    """What was seen of a stage. Seconds are by what was done once; bytes by what takes them, in memory and on disk."""

    bench: Bench
    joined: bool
    parameters: Mapping[str, int]
    training: Probed
    baseline: Probed | None
    teacher: Pace | None
    student: Pace
    seconds: Mapping[str, float]
    weights: Mapping[str, int]
    loss_head: int
    interpreter: int
    peaks: memory.Peaks
    checkpoint_bytes: int
    student_bytes: int


class Clock:
    """Seconds by what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begun


def measure(recipe: schema.Recipe, run: Run, stop: StopRequest, allow_remote_code: bool) -> Measured:
    """Set a stage up and do everything once that its run will do often.

    Args:
        recipe: of one stage. run: a folder that is not kept; the student is in its ``student/`` afterwards, as it will
            be exported.
    Raises: as training does.
    """
    clock, peaks = Clock(), memory.Peaks(device_named(recipe.device))
    interpreter = peaks.now()
    with clock.of("set_up"), peaks.of("setting_up"):
        bench = set_up(recipe, run, stop, allow_remote_code)
        with clock.of("student"):
            student = _student(bench)
        parts = _parts(bench, student)
        terms = build_terms(parts)
    with peaks.of("measuring"):
        say("timing what is measured of each model")
        teacher = _teachers_pace(bench)
        own = pace_of(bench, student.family, _answered_sizes(bench), samples=_samples(bench))
    with peaks.of("training"):
        say("timing some steps")
        probed = _probed(bench, parts, terms, clock, peaks)
    with peaks.of("saving"):
        say("writing a checkpoint")
        checkpoint_bytes = _save(bench, parts, clock)
        with clock.of("export"):
            _export(bench, student, run)
    with peaks.of("training"):
        baseline = _baseline(parts, peaks) if recipe.baseline == "equal_time_sft" else None
    families = bench.teaching.families if bench.teaching else []
    return Measured(
        bench=bench,
        joined=joined(student.family),
        parameters=_parameters(bench, student, probed),
        training=probed,
        baseline=baseline,
        teacher=teacher,
        student=own,
        seconds=clock.seconds,
        weights=memory.weights(student.family, families),
        loss_head=_loss_head(bench, student),
        interpreter=interpreter,
        peaks=peaks,
        checkpoint_bytes=checkpoint_bytes,
        student_bytes=size_of(run.student),
    )


def _student(bench: Bench) -> Student:
    return assembly.build_student(
        bench.recipe.stage,
        bench.runtime,
        bench.vocab_size,
        assembly.calibration_rows(bench.data),
        bench.allow_remote_code,
        seed=bench.recipe.seed,
        teaching=bench.teaching,
    )


def _parts(bench: Bench, student: Student) -> Parts:
    stage, widths = bench.recipe.stage, student.made.get("kept_widths") or {}
    from_teacher = stage.teacher is not None and assembly.source_of(stage)[0] == assembly.teacher_of(stage)[0]
    return Parts(
        stage=stage,
        data=bench.data,
        plain_text=bench.plain_text,
        teaching=bench.teaching,
        student=student.family,
        tokenizer=bench.tokenizer,
        runtime=bench.runtime,
        folder=bench.run.path,
        seed=bench.recipe.seed,
        kept_channels=widths.get("hidden") if from_teacher else None,
        compiles=bench.recipe.compile == "always",
    )


# --- Measuring models -------------------------------------------------------------------------------------------------


def _teachers_pace(bench: Bench) -> Pace | None:
    if bench.teaching is None:
        return None
    return pace_of(bench, bench.teaching.teacher.family, _heldout_sizes(bench), samples=_samples(bench))


def _samples(bench: Bench) -> bool:
    """Whether models are measured on their own samples."""
    return "samples" not in bench.recipe.stage.evaluation.leave_out


def _heldout_sizes(bench: Bench) -> set[int]:
    """Of the batches of held-out prompts that are answered."""
    settings = bench.recipe.stage.evaluation
    answered = min(settings.generate_examples, settings.max_examples, len(bench.data.heldout))
    return set(batch_sizes(answered, settings.batch_size))


def _answered_sizes(bench: Bench) -> set[int]:
    """Of all batches of prompts that a student answers."""
    stage, sizes = bench.recipe.stage, _heldout_sizes(bench)
    if stage.checkpoint.best_by in schema.METRICS_OF_ANSWERS:
        sizes |= set(batch_sizes(len(bench.data.validation), stage.evaluation.batch_size))
    return sizes


# --- Training ---------------------------------------------------------------------------------------------------------


def _probed(bench: Bench, parts: Parts, terms: Any, clock: Clock, peaks: memory.Peaks) -> Probed:
    """The steps of a stage: those on rows that are there and those on rows that are written, where it has both."""
    families = [parts.student, *(bench.teaching.families if bench.teaching else [])]
    found, several = [], parts_of(parts.stage)
    for share, stage in several:
        with clock.of("teacher_text"):
            few = stage.model_copy(update={"budget": schema.Budget(steps=ceil(PROMPTS / stage.batch.size))})
            streams = build_streams(replace(parts, stage=few), terms)
        clock.seconds.setdefault("compiling", sum(stream.compiling_s for stream in streams))
        probed = probe(replace(parts, stage=stage), streams, families, peaks.so_far)
        if any(is_kept(stage, stream) for stream in stage.streams):
            probed = then(probed, _reading(replace(parts, stage=stage), terms, families, peaks), _epoch(bench, stage))
        found.append((share, less_writing(probed, updates_of(parts.stage))))
    folders = (parts.folder / "teacher_text").glob("*")
    clock.seconds["teacher_text"] = sum(seconds_of(folder) for folder in folders)
    return mixed(found)


def _reading(parts: Parts, terms: Any, families: Sequence[Family], peaks: memory.Peaks) -> Probed:
    """The steps of a stage once its teachers' words are kept: taken twice, and the second time read."""
    assert parts.teaching is not None
    stage = keeping(parts.stage, folder=None)
    caches = Caches(stage, parts.teaching, parts.runtime, parts.folder, parts.seed, root=parts.folder / "caches")
    try:
        streams = build_streams(replace(parts, stage=stage, caches=caches), terms)
        return [probe(replace(parts, stage=stage), streams, families, peaks.so_far) for _ in range(2)][-1]
    finally:
        caches.close()


def _epoch(bench: Bench, stage: schema.Stage) -> int:
    """Steps in which all rows are come to for the first time."""
    return ceil(len(bench.data.train) / stage.batch.size)


def _baseline(parts: Parts, peaks: memory.Peaks) -> Probed:
    """The steps of the student that is fine-tuned on the rows alone."""
    stage = assembly.equal_time_sft(parts.stage, seconds=1.0)
    alone = replace(parts, stage=stage, teaching=None)
    return probe(alone, build_streams(alone), [parts.student], peaks.so_far)


def _save(bench: Bench, parts: Parts, clock: Clock) -> int:
    """Write a checkpoint as a run does, at the end of a step; its bytes on disk."""
    _, stage = parts_of(parts.stage)[0]
    once = {"budget": schema.Budget(steps=1), "checkpoint": stage.checkpoint.model_copy(update={"every": 1})}
    few = replace(parts, stage=stage.model_copy(update=once))
    job = Job(
        stage=few.stage,
        run=Run(bench.run.path / "probe"),
        runtime=bench.runtime,
        student=parts.student,
        teachers=[],
        tokenizer=bench.tokenizer,
        streams=build_streams(few),
        validate=lambda: {stage.checkpoint.best_by: 1.0, "perplexity": 1.0},
        examples_per_epoch=len(bench.data.train),
        seed=bench.recipe.seed,
        stop=bench.stop,
        label="plan",
    )
    job.run.path.mkdir()
    begun = time.perf_counter()
    state = fit(job)
    clock.seconds["checkpoint"] = time.perf_counter() - begun - state.seconds
    return size_of(checkpoint.at(job.run.checkpoints, 1).path)


def _export(bench: Bench, student: Student, run: Run) -> None:
    """Write the student as it is exported, and load it as it is then measured."""
    quiet()
    model, dtype = student.family.model, student.stored_dtype
    if adapters.is_adapted(model):
        plain = adapters.merged(model, dtype)
    else:
        saved = checkpoint.at(run.path / "probe" / "checkpoints", 1).student
        plain = load(str(saved), dtype=dtype, allow_remote_code=bench.allow_remote_code).model
    plain.save_pretrained(run.student)
    bench.tokenizer.save_pretrained(run.student)
    load(str(run.student), dtype=bench.runtime.student_dtype, device=bench.runtime.device)


# --- Sizes ------------------------------------------------------------------------------------------------------------


def _parameters(bench: Bench, student: Student, probed: Probed) -> dict[str, int]:
    found = {"student": adapters.num_parameters(student.family.model), "trained": probed.trained}
    if bench.teaching is None:
        return found
    further = {f"teacher {name}": other.family for name, other in bench.teaching.others.items()}
    teachers = {"teacher": bench.teaching.teacher.family} | further
    return {role: count(family.model) for role, family in teachers.items()} | found


def _loss_head(bench: Bench, student: Student) -> int:
    """What the loss has of logits at once."""
    batch = bench.recipe.stage.batch
    rows = min(batch.size, 8) if batch.micro_size == "auto" else batch.micro_size
    longest = max(len(row.response_ids) for row in bench.data.train)
    taught = any(stream.signal.name != "none" for stream in bench.recipe.stage.streams)
    return memory.loss_head(
        student.family, with_teacher=taught, positions=rows * longest, computed_in=bench.runtime.dtype
    )


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
