"""What all trainings and measurements of a recipe share: processes, data, teacher; and what is refused beforehand."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from potstill import assembly, recipe_io
from potstill import recipe as schema
from potstill.assembly import Teaching
from potstill.data.examples import Tokenised
from potstill.data.plain_text import PlainText, a_block
from potstill.data.prepare import Prepared, left_out, prepare
from potstill.environment import environment
from potstill.errors import ConfigError, DataError
from potstill.evaluation.generation import check_lengths
from potstill.models.decoding import check_decodable
from potstill.models.layout import is_encoder_decoder
from potstill.models.loading import config_of, output_rows
from potstill.run import Run, write_text
from potstill.sampling.vllm import import_vllm
from potstill.streams import plain_text_of, views_of
from potstill.teachers.local import Remembering
from potstill.training import runtime as runtimes
from potstill.training.compiling import positions_of, verdict
from potstill.training.runtime import Runtime
from potstill.training.signals import StopRequest
from potstill.training.trainer import check_batch

UNTRAINED_WRITER = (
    "the student writes its own text, and one that was just cut from a model cannot: start from a trained one,\n"
    "for instance `potstill train kd`, and then student=runs/kd-1/student"
)


@dataclass(frozen=True)
class Bench:
    """What all trainings of a stage share. ``plain_text`` is by stream."""

    recipe: schema.Recipe
    run: Run
    runtime: Runtime
    data: Prepared
    tokenizer: Any
    teaching: Teaching | None
    plain_text: Mapping[str, PlainText]
    stop: StopRequest
    allow_remote_code: bool

    @property
    def examiner(self) -> Remembering | None:
        return self.teaching.examiner if self.teaching else None

    @property
    def vocab_size(self) -> int | None:
        return self.teaching.vocab_size if self.teaching else None


def set_up(recipe: schema.Recipe, run: Run, stop: StopRequest, allow_remote_code: bool) -> Bench:
    """Join the other processes, read the data, load the teacher; refuse what cannot work before anything is trained."""
    runtime = runtimes.start(recipe.device, recipe.dtype)
    stage = recipe.stage
    check_batch(stage.batch, runtime.world_size)
    recipe = settled(recipe, runtime)
    tokenizer = assembly.student_tokenizer(stage, allow_remote_code)
    data = prepare(
        stage.data,
        tokenizer,
        quarantine_file=run.quarantine_file if runtime.is_main else None,
        streams=views_of(stage),
        seed=recipe.seed,
    )
    plain_text = plain_text_of(stage, tokenizer)
    teaching = assembly.load_teaching(stage, tokenizer, runtime, allow_remote_code)
    recipe = _with_compiling(recipe, run, runtime, data, teaching, allow_remote_code)
    if runtime.is_main:
        for note in (left_out(data, stage.data), UNTRAINED_WRITER if writes_untrained(stage) else None):
            if note:
                say(note)
    _check_same_data(run, data)
    if runtime.is_main:
        write_text(run.recipe_file, recipe_io.dump(recipe))
        run.write("env", environment(str(runtime.device), recipe.dtype))
        run.write("data", data.counts | ({"vocabulary": teaching.note} if teaching and teaching.note else {}))
    check_texts(stage, data, plain_text, allow_remote_code)
    _check_engines(stage, runtime, allow_remote_code)
    runtime.barrier()
    return Bench(recipe, run, runtime, data, tokenizer, teaching, plain_text, stop, allow_remote_code)


def _check_same_data(run: Run, data: Prepared) -> None:
    """Refuse to go on with other rows than a run was begun with: its figures would be of two sets.

    Raises: DataError, naming the file.
    """
    if not run.metrics_file.exists():
        return
    then, now = run.read("data").get("files", {}), data.counts["files"]
    for name in then:
        if then[name]["sha256"] != now.get(name, {}).get("sha256"):
            raise DataError(
                f"{then[name]['file']} is not what it was when {run.name} was begun: its rows have changed",
                "bring the file back as it was, or start a new run",
            )


def check_texts(
    stage: schema.Stage,
    data: Prepared,
    plain_text: Mapping[str, PlainText],
    allow_remote_code: bool,
) -> None:
    """Refuse text that a model does not see the whole of, before anything is measured or trained.

    Raises: ModelError.
    """
    source, revision = assembly.source_of(stage)
    named = [(source, revision), *(assembly.model_of(stage, one) for one in stage.all_teachers.values())]
    named = list(dict.fromkeys(named))
    configs = [config_of(name, revision=version, allow_remote_code=allow_remote_code) for name, version in named]
    longest = max(len(row.prompt_ids) for row in data.train)
    for config in configs:
        # Chained anew for each: rows that lie in files are read and let go.
        rows = chain(data.train, *data.views.values(), data.validation, data.heldout, map(a_block, plain_text.values()))
        check_lengths(config, rows, _answered(stage, data), stage.evaluation)
        for rollout in filter(None, (schema.rollout_of(stream.source) for stream in stage.streams)):
            check_decodable(config.get_text_config(), longest, rollout.max_new_tokens)


def _answered(stage: schema.Stage, data: Prepared) -> Sequence[Tokenised]:
    """The rows whose prompts a model is asked to answer when it is measured."""
    validated = data.validation if stage.checkpoint.best_by in schema.METRICS_OF_ANSWERS else ()
    return (*validated, *data.heldout[: stage.evaluation.generate_examples])


def _check_engines(stage: schema.Stage, runtime: Runtime, allow_remote_code: bool) -> None:
    """Refuse an engine that is not there, has nothing to run on, or does not know the model. Raises: ConfigError."""
    rollouts = filter(None, (schema.rollout_of(stream.source) for stream in stage.streams))
    if any(rollout.engine == "vllm" for rollout in rollouts):
        source, revision = assembly.source_of(stage)
        if is_encoder_decoder(config_of(source, revision=revision, allow_remote_code=allow_remote_code)):
            raise ConfigError(f"engine is vllm, and {source} is an encoder-decoder model", "set engine to local")
        import_vllm()
        if runtime.device.type != "cuda":
            raise ConfigError(f"engine is vllm, and this run is on {runtime.device.type}", "set engine to local")


def writes_untrained(stage: schema.Stage) -> bool:
    """Whether a student writes that has never been trained since it was cut."""
    rollouts = [rollout for stream in stage.streams if (rollout := schema.rollout_of(stream.source))]
    writes = any(rollout.policy.name != "teacher" for rollout in rollouts)
    return writes and isinstance(stage.student, schema.PrunedStudent)


def settled(recipe: schema.Recipe, runtime: Runtime) -> schema.Recipe:
    """The recipe with what was ``auto`` settled, so that it re-runs the same."""
    dtype = str(runtime.dtype).removeprefix("torch.")
    if recipe.dtype == "auto" and runtime.is_main:
        say(f"computing in {dtype} on {runtime.device.type}, the faster here of float32 and bfloat16")
    return recipe.model_copy(update={"device": runtime.device.type, "dtype": dtype})


def _with_compiling(
    recipe: schema.Recipe,
    run: Run,
    runtime: Runtime,
    data: Prepared,
    teaching: Teaching | None,
    allow_remote_code: bool,
) -> schema.Recipe:
    """The recipe with ``compile: auto`` settled: as the run was begun, or as is measured now."""
    if recipe.compile != "auto":
        return recipe
    if run.metrics_file.exists():
        then = recipe_io.load(run.recipe_file, methods={}).compile
        return recipe.model_copy(update={"compile": "always" if then == "always" else "never"})
    stage = recipe.stage
    source, revision = assembly.source_of(stage)
    vocab_size = (
        teaching.vocab_size if teaching else output_rows(source, revision=revision, allow_remote_code=allow_remote_code)
    )
    found = runtime.share(
        verdict(stage.streams, vocab_size, *positions_of(stage, data.train, runtime.world_size), runtime)
        if runtime.is_main
        else None
    )
    if found.why and runtime.is_main:
        say(found.why)
    return recipe.model_copy(update={"compile": "always" if found.pays else "never"})


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
