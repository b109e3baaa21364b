"""Builds a recipe's teacher caches in one pass, before any run, rows of like length together.

A run builds its cache as it comes to its rows. Building it beforehand pays where several runs are to read it, or where
it is made on another machine. What is there is not asked again, so a build that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from potstill import assembly, streams
from potstill import recipe as schema
from potstill.bench import say, settled
from potstill.caching import Caches, keeping
from potstill.data.examples import Tokenised
from potstill.data.prepare import prepare
from potstill.errors import CacheError, ConfigError
from potstill.sources.dataset import batches
from potstill.teachers.cache.cached import CachedTeacher
from potstill.teachers.digests import digest_of
from potstill.training import runtime as runtimes

BATCH = 16  # rows at a time
Watch = Callable[[str, int], Callable[[int], None]]  # given a stream's name and its rows, told of each batch's


@dataclass(frozen=True)
class Built:
    """What became of a stream's rows: ``asked`` were asked now, ``there`` before, by all processes."""

    stream: str
    folder: str
    rows: int
    asked: int
    there: int
    seconds: float


def build(recipe: schema.Recipe, *, watch: Watch, allow_remote_code: bool = False) -> list[Built]:
    """Ask a recipe's teachers about all of its rows, and keep what they say.

    Args:
        recipe: of one stage or several; teachers that a stage makes are not there yet, and are left out.
        watch: shows how far it is.
        allow_remote_code: let models run Python that comes with them.
    Raises: ConfigError where nothing of it can be kept; CacheError for a folder of another key, or a full disk; and as
        ``train`` for models and rows.
    """
    runtime = runtimes.start(recipe.device, recipe.dtype)
    recipe = settled(recipe, runtime)
    built: list[Built] = []
    reasons: list[str] = []
    for stage in recipe.stages:
        why_not = {spec.name: _not_buildable(stage, spec) for spec in stage.streams}
        reasons += [f"stream {name} of stage {stage.name}: {why}" for name, why in why_not.items() if why]
        if kept := [spec for spec in stage.streams if why_not[spec.name] is None]:
            built += _build_stage(recipe, keeping(stage), kept, runtime, watch, allow_remote_code)
    if not built:
        raise ConfigError(f"nothing can be kept beforehand: {'; '.join(reasons)}", "train it, or name another recipe")
    for reason in reasons if runtime.is_main else ():
        say(f"left out is {reason}")
    return built


def _not_buildable(stage: schema.Stage, spec: schema.Stream) -> str | None:
    """Why what is said to a stream cannot be kept before a run; None where it can."""
    if spec.not_cacheable:
        return spec.not_cacheable
    teacher = stage.all_teachers[spec.teacher]
    is_made = isinstance(teacher, schema.BaseTeacher) and isinstance(stage.student, schema.PreviousStudent)
    if is_made or isinstance(teacher, schema.StageTeacher):
        return "an earlier stage makes its teacher"
    if isinstance(spec.source, schema.RolloutSource):
        return "its teacher writes the text when a run begins"
    return None


def _build_stage(
    recipe: schema.Recipe,
    stage: schema.Stage,
    kept: Sequence[schema.Stream],
    runtime: runtimes.Runtime,
    watch: Watch,
    allow_remote_code: bool,
) -> list[Built]:
    tokenizer = assembly.student_tokenizer(stage, allow_remote_code)
    data = prepare(stage.data, tokenizer, streams=streams.views_of(stage), seed=recipe.seed)
    text = streams.plain_text_of(stage, tokenizer)
    teaching = assembly.load_teaching(stage, tokenizer, runtime, allow_remote_code)
    assert teaching is not None  # a stream that asks nobody is not cacheable
    caches = Caches(stage, teaching, runtime, None, recipe.seed)
    found = []
    try:
        for spec in kept:
            rows = text[spec.name] if spec.name in text else data.views.get(spec.name, data.train)
            assert isinstance(rows, Sequence)  # what is streamed is not cacheable
            live = streams.in_form(spec, teaching, recipe.seed)
            assert live is not None  # its signal is one of those that can be kept
            teacher = caches.behind(spec, live, rows)
            assert isinstance(teacher, CachedTeacher)
            asked, seconds = _ask(spec.name, teacher, rows, runtime, tokenizer.eos_token_id, watch)
            folder = str(teacher.store.folder)
            found.append(Built(spec.name, folder, len(rows), asked, len(rows) - asked, round(seconds, 3)))
    finally:
        caches.close()
    return found


def _ask(
    name: str, teacher: CachedTeacher, rows: Sequence[Tokenised], runtime: runtimes.Runtime, pad_id: int, watch: Watch
) -> tuple[int, float]:
    """Ask about the rows that are not there, each process about its own; how many, and seconds on average.

    Raises: CacheError where the disk refuses: there is nothing else to go on with.
    """
    missing = {digest: at for at in range(len(rows)) if (digest := digest_of(rows[at])) not in teacher.store}
    places = sorted(missing.values(), key=lambda at: len(rows[at].prompt_ids) + len(rows[at].response_ids))
    own = places[runtime.rank :: runtime.world_size]
    tell = watch(name, len(own)) if runtime.is_main else lambda _: None
    with runtime.autocast():
        for start in range(0, len(own), BATCH):
            some = [rows[at] for at in own[start : start + BATCH]]
            for batch in batches(some, BATCH, pad_id):
                teacher.signal(batch.to(runtime.device))
            if not teacher.keeps_all:
                raise CacheError(
                    f"{teacher.store.folder} is full after {start} of {len(own)} rows, which are kept",
                    "free some space, and give the same command again: it goes on from there",
                )
            tell(len(some))
    counts = runtime.sum([float(len(own)), teacher.count.seconds])
    return int(counts[0]), counts[1] / runtime.world_size
