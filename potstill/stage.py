"""Runs a recipe of one stage: trains, measures, and trains the equal-time baseline beside it.

Everything that is finished is on disk, so running a recipe again in its folder goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill import assembly
from potstill import recipe as schema
from potstill.assembly import Student, Teaching
from potstill.bench import Bench, say, set_up
from potstill.caching import Caches
from potstill.environment import peak_memory_bytes
from potstill.errors import TeacherError
from potstill.evaluation.evaluator import measure
from potstill.evaluation.generation import greedy_figures
from potstill.inside import Terms
from potstill.measuring import evaluate
from potstill.models import adapters
from potstill.models.families import family_of, pack
from potstill.models.loading import load
from potstill.models.quiet import quiet
from potstill.objectives.chunked import whole_block
from potstill.run import MODELS, Run, remove_folder, write_text
from potstill.sources.dataset import batches
from potstill.sources.teacher_text import seconds_of
from potstill.streams import Parts, build_streams, build_terms
from potstill.training import checkpoint
from potstill.training.checkpoint import Checkpoint
from potstill.training.signals import listening
from potstill.training.step import LiveStream
from potstill.training.trainer import Job, State, fit

MUCH_OUTSIDE = 0.001  # of a teacher's probability on rows that are left out: worth a word


@dataclass(frozen=True)
class Training:
    """One student to be trained: the recipe's own, or its baseline. ``label`` is its row in the table."""

    label: str
    stage: schema.Stage
    run: Run


def run(recipe: schema.Recipe, run: Run, *, allow_remote_code: bool = False) -> None:
    """Run a recipe in its folder, from the start or from where it was stopped.

    Args:
        recipe: what to do, in one stage. Several are ``potstill.stages``' to take apart.
        run: where; its folder exists.
        allow_remote_code: let models run Python that comes with them.
    Raises: any PotstillError; Stopped after a signal, with everything saved.
    """
    with listening() as stop:
        bench = set_up(recipe, run, stop, allow_remote_code)
        for training in _trainings(bench):
            resume_from = checkpoint.newest(training.run.checkpoints, say)
            # Before anything is measured: students that cannot be made are refused, and channels that cannot meet.
            student = _student(bench, training, resume_from)
            parts = _parts(bench, training, student)
            terms = build_terms(parts)
            if parts.caches:
                parts.caches.check()
            _say_padded(bench, training, student)
            _measure_teacher(bench)
            _measure_untouched(bench, training, student, resume_from)
            _check_gate(bench, training)
            with _closing(parts.caches):
                job = _job(bench, training, parts, terms)
                state = fit(job, resume_from)
            if parts.caches:
                parts.caches.forget_replayed()
            _finish(bench, training, state, student, job.streams)
        _write_samples(bench)
        bench.runtime.barrier()


def _trainings(bench: Bench) -> Iterator[Training]:
    """The recipe's student, and then, with its training time known, the baseline's."""
    stage, run = bench.recipe.stage, bench.run
    yield Training("student_after", stage, run)
    if bench.recipe.baseline == "equal_time_sft":
        seconds = bench.runtime.share(_seconds_spent(run) if bench.runtime.is_main else None)
        yield Training("equal_time_sft", assembly.equal_time_sft(stage, seconds), run.baseline)


def _seconds_spent(run: Run) -> float:
    """What the student has cost: its training, the writing of its teacher's text, and what was kept before it ran."""
    cost = run.read("cost")
    return float(cost["training_s"] + cost["teacher_text_s"] + cost.get("teacher_cache_s", 0.0))


def _student(bench: Bench, training: Training, resume_from: Checkpoint | None) -> Student:
    student = assembly.build_student(
        training.stage,
        bench.runtime,
        bench.vocab_size,
        assembly.calibration_rows(bench.data),
        bench.allow_remote_code,
        resume_from,
        bench.recipe.seed,
        bench.teaching,
    )
    if resume_from and bench.runtime.is_main:
        say(f"going on from {resume_from.path}")
    elif bench.runtime.is_main and training.label == "student_after":
        bench.run.write("student", student.made)
        if layers := student.made.get("kept_layers"):
            made = student.made
            say(f"student: layers {layers} of {made['of_layers']} of {made['from']}")
            if encoder := made.get("encoder_kept_layers"):
                say(f"student: and of its encoder, layers {encoder} of {made['encoder_of_layers']}")
        if adapter := student.made.get("adapter"):
            say(
                f"student: an adapter of rank {adapter['rank']} beside {', '.join(adapter['target_modules'])}: "
                f"{adapter['num_parameters']:,} parameters are trained, {adapter['of_parameters']:,} are not"
            )
    bench.runtime.barrier()
    return student


@contextmanager
def _closing(caches: Caches | None) -> Iterator[None]:
    """Finish what is written to caches, however training ends."""
    try:
        yield
    finally:
        if caches:
            caches.close()


def _parts(bench: Bench, training: Training, student: Student) -> Parts:
    caches = None
    if bench.teaching and training.stage.teacher:
        for teacher in bench.teaching.all:
            teacher.share_head(student.family.head)
        caches = Caches(training.stage, bench.teaching, bench.runtime, training.run.path, bench.recipe.seed)
    return Parts(
        caches=caches,
        stage=training.stage,
        data=bench.data,
        plain_text=bench.plain_text,
        teaching=bench.teaching,
        student=student.family,
        tokenizer=bench.tokenizer,
        runtime=bench.runtime,
        folder=training.run.path,
        seed=bench.recipe.seed,
        kept_channels=_kept_channels(bench.run, training.stage),
        compiles=bench.recipe.compile == "always",
    )


def _job(bench: Bench, training: Training, parts: Parts, terms: Sequence[Terms]) -> Job:
    stage, student = training.stage, parts.student
    pad_id = bench.tokenizer.eos_token_id
    validation = list(batches(bench.data.validation, stage.evaluation.batch_size, pad_id))

    def validate() -> dict[str, float]:
        with bench.runtime.autocast():
            figures = measure(student, bench.examiner, validation)
            if stage.checkpoint.best_by in schema.METRICS_OF_ANSWERS:
                answered, asked = bench.data.validation, stage.evaluation
                figures |= greedy_figures(student, bench.tokenizer, answered, asked, stage.data.target)
        return figures

    if bench.recipe.compile == "always" and bench.runtime.is_main:
        say("compiling terms, which takes some seconds")
    streams = build_streams(parts, terms)
    if bench.runtime.is_main:
        for stream in streams:
            _say_kept(stream)
            _say_left(stream, wanted=bench.recipe.compile == "always")
        for why in parts.caches.left_out.values() if parts.caches else ():
            say(why)
    return Job(
        stage=stage,
        run=training.run,
        runtime=bench.runtime,
        student=student,
        teachers=bench.teaching.all if bench.teaching else [],
        tokenizer=bench.tokenizer,
        streams=streams,
        validate=validate,
        examples_per_epoch=len(bench.data.train),
        seed=bench.recipe.seed,
        stop=bench.stop,
        label={"student_after": bench.recipe.method, "equal_time_sft": "equal-time sft"}[training.label],
        rest=_Rest(bench.teaching, streams) if bench.teaching else lambda: None,
    )


class _Rest:
    """Lets teachers go that have said all they were asked: to every stream, and at a whole validation."""

    def __init__(self, teaching: Teaching, streams: Sequence[LiveStream]):
        self._teaching, self._streams = teaching, streams
        self._asked_before = -1  # at validations

    def __call__(self) -> None:
        examiner = self._teaching.examiner
        validated, self._asked_before = examiner.num_asked == self._asked_before, examiner.num_asked
        for teacher in self._teaching.all:
            own = [stream for stream in self._streams if self._teaching.of(stream.spec) is teacher]
            examines = teacher is self._teaching.teacher and not validated
            if any(stream.cache for stream in own) and all(stream.is_taught for stream in own) and not examines:
                teacher.unload()


def _say_padded(bench: Bench, training: Training, student: Student) -> None:
    """Which models read padded rows although rows are always to be laid end to end, and why."""
    if training.stage.packing != "always" or training.label != "student_after" or not bench.runtime.is_main:
        return
    families = {"the student": student.family} | (
        {"the teacher": bench.teaching.teacher.family} if bench.teaching else {}
    )
    for who, family in families.items():
        if family.why_padded:
            say(f"packing is always, and {who} reads padded rows: {family.why_padded}")


def _say_read(streams: Sequence[LiveStream]) -> None:
    """What caches have saved."""
    for stream in (stream for stream in streams if stream.cache):
        assert stream.cache is not None
        count = stream.cache.count
        told = f"{count.read:,} rows were read and {count.asked:,} asked, in {count.seconds:,.1f} s"
        say(f"of what the teacher says to {stream.spec.name} {told}")


def _say_left(stream: LiveStream, *, wanted: bool) -> None:
    """Which terms were to be compiled and are not."""
    if wanted and stream.compiled is None:
        why = "they change from step to step, or look at more than one position's logits"
        say(f"terms of the stream {stream.spec.name} are left to autograd: {why}")
    elif stream.compiled and stream.compiled.left:
        say(
            f"terms of the stream {stream.spec.name} are left to autograd: {stream.compiled.left[0]}\n"
            "where it is a compiler that is missing, install g++ or clang++; compile=never does not look for one"
        )


def _say_nothing_compiled(streams: Sequence[LiveStream], block: int) -> None:
    """Which streams had functions and no use for them."""
    for stream in streams:
        if stream.compiled and not stream.compiled.left and not stream.compiled.num_taken:
            needed = f"{block} response tokens in a micro-batch, all of which every term counts"
            say(f"nothing of the stream {stream.spec.name} was compiled: it takes {needed}")


def _say_kept(stream: LiveStream) -> None:
    """Where a teacher's answers are kept, and how many are there."""
    if cache := stream.cache:
        have = f"{len(cache.store):,} rows of it are there" if len(cache.store) else "none are there yet"
        say(f"what the teacher says to {stream.spec.name} is kept in {cache.store.folder} as {cache.form.name}; {have}")


def _kept_channels(run: Run, stage: schema.Stage) -> list[int] | None:
    """The teacher's channels that the student was cut with; None of one that is as wide, or is not cut from it."""
    cut_from_teacher = stage.teacher is not None and assembly.source_of(stage)[0] == assembly.teacher_of(stage)[0]
    widths: dict[str, list[int]] = run.read("student").get("kept_widths") or {}
    return widths.get("hidden") if cut_from_teacher else None


def _finish(bench: Bench, training: Training, state: State, student: Student, streams: Sequence[LiveStream]) -> None:
    """Export the best student, measure what was exported, and write down the cost."""
    if bench.runtime.is_main:
        assert state.best_step is not None  # training ends with a validation
        best = checkpoint.at(training.run.checkpoints, state.best_step)
        checkpoint.mark_best(training.run.checkpoints, state.best_step)
        _export(bench, best, training.run, student)
        prefix = "" if training.label == "student_after" else "baseline_"
        _add_cost(bench.run, prefix, state, streams)
        _say_read(streams)
        _say_nothing_compiled(streams, whole_block(student.family.vocab_size, bench.runtime.device))
        if not bench.run.eval_file(training.label).exists():
            loaded = load(str(training.run.student), dtype=bench.runtime.student_dtype, device=bench.runtime.device)
            exported = family_of(loaded.model, bench.vocab_size)
            pack(exported, training.stage.packing)
            evaluate(bench, training.label, exported, loaded.size_on_disk)
    bench.runtime.barrier()


def _export(bench: Bench, best: Checkpoint, run: Run, student: Student) -> None:
    """Write the best checkpoint's student to ``student/``, in the precision of the model it came from.

    Of an adapter the merged model; the adapter goes to ``adapter/``, and a base that has no name to ``untouched/``.
    """
    dtype, adapted = student.stored_dtype, student.family.model
    if not adapters.is_adapted(adapted):
        loaded = load(str(best.student), dtype=dtype, allow_remote_code=bench.allow_remote_code)
        _place(loaded.model, loaded.tokenizer, run.student)
        return
    adapters.restore(adapted, best.student)
    nameless = adapted.adapter_base.name is None
    if nameless:
        _place(adapters.merged(adapted, dtype, with_adapter=False), bench.tokenizer, run.untouched)
    with _placing(run.adapter) as partial:
        adapters.save(adapted, partial, base_name=str(run.untouched.resolve()) if nameless else None)
    _place(adapters.merged(adapted, dtype), bench.tokenizer, run.student)


def _place(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model folder, whole or not at all."""
    quiet()
    with _placing(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


@contextmanager
def _placing(folder: Path) -> Iterator[Path]:
    """A hidden folder to be written, which takes the place of ``folder`` once it is on disk."""
    partial = folder.with_name(f".{folder.name}.partial")
    remove_folder(partial)
    yield partial
    checkpoint.make_readable(partial)
    checkpoint.flush_tree(partial)
    remove_folder(folder)
    partial.rename(folder)


def _measure_teacher(bench: Bench) -> None:
    if bench.teaching and bench.runtime.is_main and not bench.run.eval_file("teacher").exists():
        evaluate(bench, "teacher", bench.teaching.teacher.family, bench.teaching.size_on_disk)
        outside = bench.run.read("eval/teacher").get("mass_outside", 0.0)
        if outside > MUCH_OUTSIDE:
            say(f"the teacher gives {outside:.1%} of its probability to {bench.teaching.note}")
    bench.runtime.barrier()


def _measure_untouched(bench: Bench, training: Training, student: Student, resume_from: Checkpoint | None) -> None:
    left_out = "untouched" in bench.recipe.stage.evaluation.leave_out
    wanted = training.label == "student_after" and not resume_from and bench.runtime.is_main and not left_out
    if wanted and not bench.run.eval_file("student_before").exists():
        evaluate(bench, "student_before", student.family, student.size_on_disk)
    bench.runtime.barrier()


def _check_gate(bench: Bench, training: Training) -> None:
    """Stop where the stage's gate is shut: its teacher is no better than the student is untaught, on held-out rows.

    Raises: TeacherError.
    """
    if not training.stage.gate or training.label != "student_after":
        return
    metric = training.stage.checkpoint.best_by
    metric = metric if metric in schema.METRICS_WITHOUT_TEACHER else "perplexity"  # the others compare with the teacher
    found = bench.runtime.share(
        [bench.run.read(f"eval/{model}").get(metric) for model in ("teacher", "student_before")]
        if bench.runtime.is_main
        else None
    )
    teacher, untouched = found
    sign = 1 if metric in schema.METRICS_TO_MAXIMISE else -1
    if sign * teacher <= sign * untouched:
        raise TeacherError(
            f"the gate of stage {training.stage.name} is shut: {metric} of its teacher is {teacher:.4g} on held-out "
            f"rows, and of the student untaught {untouched:.4g}",
            f"train the teacher longer, or on more rows; compare by another figure ({training.stage.name}.checkpoint."
            f"best_by=perplexity needs no answers); or go on all the same with {training.stage.name}.gate=false",
        )


def _add_cost(run: Run, prefix: str, state: State, streams: Sequence[LiveStream]) -> None:
    own: dict[str, Any] = {
        "training_s": state.seconds,
        "flops": state.flops,
        "teacher_text_s": sum(seconds_of(folder) for folder in (run.path / "teacher_text").glob("*")),
        "steps": state.step,
        "best_step": state.best_step,
        "tokens": state.tokens,
        "teacher_tokens": state.teacher_tokens,
        "response_tokens": state.response_tokens,
    }
    if compiled := [stream for stream in streams if stream.compiled]:
        own["compiling_s"] = sum(stream.compiling_s for stream in compiled)
        own["compiled_blocks"] = sum(stream.compiled.num_taken for stream in compiled if stream.compiled)
    if counts := [stream.cache.count for stream in streams if stream.cache]:
        own["teacher_cache_s"] = sum(count.others_seconds for count in counts)
        own["teacher_cache"] = {stream.spec.name: asdict(stream.cache.count) for stream in streams if stream.cache}
    cost = run.read("cost")
    run.write("cost", cost | {prefix + k: v for k, v in own.items()} | {"peak_memory_bytes": peak_memory_bytes()})


def _write_samples(bench: Bench) -> None:
    """samples.jsonl: what each model answered to the same prompts."""
    if not bench.runtime.is_main:
        return
    measured = {label: rows for label in MODELS if (rows := bench.run.rows(label))}
    lines = []
    settings = bench.recipe.stage.evaluation
    answered = bench.data.heldout[: min(settings.max_examples, settings.generate_examples)]
    for index, row in enumerate(answered):
        outputs = {label: rows[index]["predictions"] for label, rows in measured.items()}
        lines.append({"id": row.example_id, "prompt": row.prompt, "reference": row.response, "outputs": outputs})
    write_text(bench.run.samples_file, "".join(json.dumps(line) + "\n" for line in lines))
