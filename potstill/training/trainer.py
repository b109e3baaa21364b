"""The loop: steps until the budget is spent, with metrics, validation and checkpoints on the way.

It knows no method's name: what is drawn, asked and computed is the streams' business.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill import recipe
from potstill.errors import CheckpointError, ConfigError
from potstill.features.matching import Match
from potstill.models import adapters
from potstill.models.families import Family
from potstill.run import Run
from potstill.teachers.local import LocalTeacher
from potstill.training import checkpoint, optim
from potstill.training.checkpoint import Checkpoint
from potstill.training.compute import Meter
from potstill.training.dropping import dropped
from potstill.training.metrics import MetricsLog, Progress
from potstill.training.recompute import recomputing
from potstill.training.runtime import Runtime
from potstill.training.signals import StopRequest
from potstill.training.step import LiveStream, StepResult, train_step
from potstill.training.terms import LiveTerm


@dataclass
class State:
    """How far training is: everything a checkpoint holds beside tensors."""

    step: int = 0
    examples: int = 0
    response_tokens: int = 0
    tokens: int = 0
    teacher_tokens: int = 0  # of the batches that the teacher was asked about
    seconds: float = 0.0  # of steps alone; validation and saving do not count
    flops: float = 0.0  # of all models in steps, over all processes
    best_step: int | None = None
    best_value: float | None = None
    best_error: float = 0.0  # of best_value
    metrics_length: int = 0
    world_size: int = 1
    schedules: dict[str, Any] = field(default_factory=dict)  # the state of each term's, by the term's key
    settings: dict[str, Any] = field(default_factory=dict)  # the stage as it was, to refuse another one's checkpoint


@dataclass(frozen=True)
class Job:
    """All that one training needs.

    ``validate`` returns figures by metric name; ``examples_per_epoch`` turns epochs into examples; ``teachers`` are
    those whose work is counted. ``rest`` is called after each validation: whoever has nothing more to do may go.
    """

    stage: recipe.Stage
    run: Run
    runtime: Runtime
    student: Family
    teachers: Sequence[LocalTeacher]
    tokenizer: Any
    streams: Sequence[LiveStream]
    validate: Callable[[], dict[str, float]]
    examples_per_epoch: int
    seed: int
    stop: StopRequest
    label: str
    rest: Callable[[], None] = lambda: None


def fit(job: Job, resume_from: Checkpoint | None = None) -> State:
    """Train until the budget is spent, and return how it went. The best student is the one of ``best_step``.

    Raises: Stopped at the end of the step in which the user asked for it, with a checkpoint written;
        NumericsError for figures that are not finite; CheckpointError for a checkpoint of other settings.
    """
    stage, runtime = job.stage, job.runtime
    check_batch(stage.batch, runtime.world_size)
    wrapped = runtime.wrap(job.student)
    optimizer = optim.build(nn.ModuleList([job.student, *_maps(job).values()]), stage.optimizer)
    state = _restore(job, optimizer, resume_from)
    log = MetricsLog(job.run.metrics_file if runtime.is_main else None, state.metrics_length)
    with (
        log,
        Progress(job.label, quiet=not runtime.is_main) as progress,
        job.stop.at_end_of_step(),
        training(job.student, dropout=stage.dropout),
        recomputing(job.student, wanted=stage.gradient_checkpointing, dropout=stage.dropout),
    ):
        if state.step == 0:
            _validate(job, state, log, progress)  # the untouched student: where the curves start
        while spent(job, state) < 1:
            begun = time.perf_counter()
            at = _mid_step(job, state)
            rate = optim.set_learning_rate(optimizer, stage.optimizer, at)
            scheduled = {name: value for term in _terms(job) for name, value in term.settings(at).items()}
            with Meter().reading(_at_work(job)) as meter:
                result = train_step(
                    job.student,
                    wrapped,
                    optimizer,
                    job.streams,
                    stage.batch,
                    stage.optimizer.max_grad_norm,
                    runtime,
                    at,
                    dropped([stream.spec for stream in job.streams], job.seed, state.step),
                )
            # One clock for all processes, because a budget may be in seconds.
            seconds = runtime.share(time.perf_counter() - begun)
            (flops,) = runtime.sum([meter.flops])
            _advance(state, result, stage.batch.size, seconds, flops)
            values = {term.metric: result.values[term.key] for term in _terms(job) if term.key in result.values}
            values |= {f"select/{key}_share": share for key, share in result.selected.items()}
            log.write(_metrics_line(state, result, values | scheduled | _source_figures(job), rate, seconds))
            progress.update(state.step, spent(job, state), result.loss, result.tokens / seconds, state.seconds)

            due = spent(job, state) >= 1 or state.step % stage.checkpoint.every == 0
            exit_code = job.stop.agreed(runtime)
            if due:
                _validate(job, state, log, progress)
                job.rest()
            if due or exit_code:
                _save(job, optimizer, state, log)
            if exit_code:
                raise job.stop.stopped(f"after step {state.step}", exit_code)
    return state


def _at_work(job: Job) -> list[Family]:
    """The student, and the teachers that are in memory."""
    return [job.student, *(teacher.family for teacher in job.teachers if teacher.is_loaded)]


def spent(job: Job, state: State) -> float:
    """The share of the budget that is spent, from 0; 1 and above is the end."""
    budget = job.stage.budget
    if budget.steps is not None:
        return state.step / budget.steps
    if budget.epochs is not None:
        return state.examples / (budget.epochs * job.examples_per_epoch)
    if budget.tokens is not None:
        return state.response_tokens / budget.tokens
    if budget.seconds is not None:
        return state.seconds / budget.seconds
    assert budget.flops is not None  # compute_of became flops when the stage's turn came
    return state.flops / budget.flops


def check_batch(batching: recipe.Batching, world_size: int) -> None:
    """Refuse a global batch that does not divide over the processes."""
    if batching.size % world_size:
        raise ConfigError(
            f"batch.size is {batching.size}, which {world_size} processes cannot share equally",
            f"set batch.size to a multiple of {world_size}",
        )


def _mid_step(job: Job, state: State) -> float:
    """The share of the budget spent in the middle of the next step, taken to be as long as the ones before it."""
    if state.step:
        return spent(job, state) * (state.step + 0.5) / state.step
    return spent(job, replace(state, step=1, examples=job.stage.batch.size)) / 2


def _advance(state: State, result: StepResult, batch_size: int, seconds: float, flops: float) -> None:
    state.step += 1
    state.examples += batch_size
    state.response_tokens += result.response_tokens
    state.tokens += result.tokens
    state.teacher_tokens += result.teacher_tokens
    state.seconds += seconds
    state.flops += flops


def _terms(job: Job) -> Iterator[LiveTerm]:
    return (term for stream in job.streams for term in stream.terms)


def _maps(job: Job) -> dict[str, Match]:
    """What brings the models' channels together, by the term's key: trained and kept with the student, not of it."""
    return {term.key: term.match for term in _terms(job) if term.match is not None}


def _source_figures(job: Job) -> dict[str, float]:
    """What the sources tell of the step; seconds stand with the other times."""
    told = ((stream.spec.name, *figure) for stream in job.streams for figure in stream.source.figures().items())
    return {f"{'time' if key.endswith('_s') else 'source'}/{name}_{key}": value for name, key, value in told}


def _metrics_line(
    state: State, result: StepResult, figures: dict[str, float], rate: float, seconds: float
) -> dict[str, Any]:
    return {
        "step": state.step,
        "train/loss": result.loss,
        **figures,
        "optim/learning_rate": rate,
        "optim/grad_norm": result.grad_norm,
        "data/examples": state.examples,
        "data/response_tokens": state.response_tokens,
        "time/step_s": round(seconds, 4),
        "time/tokens_per_s": round(result.tokens / seconds, 1),
    }


def _validate(job: Job, state: State, log: MetricsLog, progress: Progress) -> None:
    """Measure the student on validation rows, tell the sources, and note whether it is the best so far."""
    figures = job.runtime.share(job.validate() if job.runtime.is_main else None)
    for stream in job.streams:
        stream.source.observe(figures)
    log.write({"step": state.step} | {f"validation/{key}": value for key, value in figures.items()} | _so_far(state))
    name = job.stage.checkpoint.best_by
    value = figures[name]
    progress.note(f"{job.label}: step {state.step}  validation {name} {value:.4g}")
    if state.step:
        choose(state, name, value, figures.get(f"{name}_stderr", 0.0) if name in recipe.METRICS_OF_ANSWERS else 0.0)


def _so_far(state: State) -> dict[str, float]:
    """What the training of this student has cost, for curves along something else than steps."""
    return {
        "data/teacher_tokens": state.teacher_tokens,
        "time/training_s": round(state.seconds, 4),
        "compute/flops": state.flops,
    }


def choose(state: State, name: str, value: float, error: float) -> None:
    """Note whether this step's student is the one to keep: the best, or the newest within a standard error of the best.

    Of few answers Rouge-L and accuracy are noisy, and the larger of two that differ by chance is as often the less
    trained student's.

    Args:
        state: whose step was validated.
        name: of the metric. value: of this student. error: its standard error; 0 where no noise is allowed for.
    Source: the one-standard-error rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.
    """
    sign = 1 if name in recipe.METRICS_TO_MAXIMISE else -1
    if state.best_value is None or sign * value > sign * state.best_value:
        state.best_step, state.best_value, state.best_error = state.step, value, error
    elif state.best_error and sign * value >= sign * state.best_value - state.best_error:
        state.best_step = state.step


def _save(job: Job, optimizer: torch.optim.Optimizer, state: State, log: MetricsLog) -> None:
    """Write a checkpoint: the main process its student and optimizer, every process its own random and source state."""
    runtime, folder = job.runtime, job.run.checkpoints
    state.metrics_length = log.flush()
    state.schedules = {term.key: term.state_dict() for term in _terms(job)}
    writer = checkpoint.Writer(folder, state.step)
    with checkpoint.cleaning_up(writer):
        if runtime.is_main:
            writer.begin()
        runtime.barrier()
        torch.save(_process_state(job), writer.file(f"process-{runtime.rank:05d}.pt"))
        if runtime.is_main:
            _save_student(job, writer.student)
            torch.save(optimizer.state_dict(), writer.file("optimizer.pt"))
            if maps := _maps(job):
                torch.save({key: match.state_dict() for key, match in maps.items()}, writer.file("maps.pt"))
            writer.file("trainer.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        runtime.barrier()
        if runtime.is_main:
            writer.commit()
    if runtime.is_main:
        if state.best_step is not None:
            checkpoint.mark_best(folder, state.best_step)
        checkpoint.prune(folder, job.stage.checkpoint.keep_last, state.best_step)
    runtime.barrier()


def _save_student(job: Job, folder: Path) -> None:
    """The whole model with its tokenizer; where an adapter alone is trained, that alone."""
    if adapters.is_adapted(job.student.model):
        adapters.save(job.student.model, folder)
        return
    job.student.model.save_pretrained(folder)
    job.tokenizer.save_pretrained(folder)


def _process_state(job: Job) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if job.runtime.device.type == "cuda" else None
    sources = {stream.spec.name: stream.source.state_dict() for stream in job.streams}
    read = {stream.spec.name: stream.read_before() for stream in job.streams}
    caches = {stream.spec.name: stream.cache.state_dict() for stream in job.streams if stream.cache}
    return {"cpu_rng": torch.get_rng_state(), "cuda_rng": cuda, "sources": sources, "read": read, "caches": caches}


def _restore(job: Job, optimizer: torch.optim.Optimizer, resume_from: Checkpoint | None) -> State:
    """The state to go on from. The student itself was loaded from the checkpoint by whoever built it."""
    fresh = State(world_size=job.runtime.world_size, settings=job.stage.model_dump(mode="json"))
    if resume_from is None:
        torch.manual_seed(job.seed + job.runtime.rank)  # of dropout; the order of the data has a seed of its own
        return fresh
    state = State(**resume_from.read_json("trainer.json"))
    _check_settings(resume_from, state, fresh)
    maps = resume_from.read_tensors("maps.pt") if _maps(job) else {}
    for key, match in _maps(job).items():
        match.load_state_dict(maps[key])
    optimizer.load_state_dict(resume_from.read_tensors("optimizer.pt"))
    process = resume_from.read_tensors(f"process-{job.runtime.rank:05d}.pt")
    torch.set_rng_state(process["cpu_rng"])
    if process["cuda_rng"] is not None and job.runtime.device.type == "cuda":
        torch.cuda.set_rng_state(process["cuda_rng"])
    for stream in job.streams:
        stream.source.load_state_dict(process["sources"][stream.spec.name])
        if stream.cache:
            stream.cache.load_state_dict(process["caches"][stream.spec.name])
        with job.runtime.autocast():
            stream.read_again(process["read"][stream.spec.name])
    for term in _terms(job):
        term.load_state_dict(state.schedules[term.key])
    return state


def _check_settings(resume_from: Checkpoint, then: State, now: State) -> None:
    differing = sorted(_differing_keys(then.settings, now.settings))
    if then.world_size != now.world_size:
        differing.append(f"processes ({then.world_size} then, {now.world_size} now)")
    if differing:
        raise CheckpointError(
            f"{resume_from.path} belongs to other settings: {', '.join(differing)} differ",
            "resume with the recipe and the number of processes the run was started with, or start a new run",
        )


def _differing_keys(then: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then.keys() | now.keys():
            yield from _differing_keys(then.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif then != now:
        yield path


@contextmanager
def training(student: Family, *, dropout: bool = True) -> Iterator[None]:
    """Dropout on while the student is trained, unless the stage wants it off."""
    student.train(dropout)
    try:
        yield
    finally:
        student.eval()
