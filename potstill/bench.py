"""What all trainings and measurements of a recipe share: processes, data, teacher; and what is refused beforehand."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill import assembly, recipe_io
from potstill import recipe as schema
from potstill.assembly import Teaching
from potstill.data.examples import Tokenised
from potstill.data.prepare import Prepared, prepare
from potstill.environment import environment
from potstill.errors import ConfigError
from potstill.models.decoding import check_decodable
from potstill.models.loading import config_of
from potstill.run import Run, write_text
from potstill.sampling.vllm import import_vllm
from potstill.streams import plain_text_of
from potstill.teachers.local import Remembering
from potstill.training import runtime as runtimes
from potstill.training.runtime import Runtime
from potstill.training.signals import StopRequest
from potstill.training.trainer import check_batch


@dataclass(frozen=True)
class Bench:
    """What all trainings of a stage share. ``plain_text`` is by stream."""

    recipe: schema.Recipe
    run: Run
    runtime: Runtime
    data: Prepared
    tokenizer: Any
    teaching: Teaching | None
    plain_text: Mapping[str, Sequence[Tokenised]]
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
    recipe = _settled(recipe, runtime)
    tokenizer = assembly.student_tokenizer(stage, allow_remote_code)
    data = prepare(stage.data, tokenizer, quarantine_file=run.quarantine_file if runtime.is_main else None)
    plain_text = plain_text_of(stage, tokenizer)
    teaching = assembly.load_teaching(stage, tokenizer, runtime, allow_remote_code)
    if runtime.is_main and _writes_untrained(stage):
        say("the student writes its own text, and one that was just cut from a model cannot: start from a trained one,")
        say("for instance `potstill train kd`, and then student=runs/kd-1/student")
    if runtime.is_main:
        write_text(run.recipe_file, recipe_io.dump(recipe))
        run.write("env", environment(str(runtime.device), recipe.dtype))
        run.write("data", data.counts | ({"vocabulary": teaching.note} if teaching and teaching.note else {}))
    _check_rollouts(stage, data, teaching, runtime, allow_remote_code)
    runtime.barrier()
    return Bench(recipe, run, runtime, data, tokenizer, teaching, plain_text, stop, allow_remote_code)


def _check_rollouts(
    stage: schema.Stage, data: Prepared, teaching: Teaching | None, runtime: Runtime, allow_remote_code: bool
) -> None:
    """Refuse rollouts that would not fit a model or an engine, before anything is measured or trained.

    Raises: ModelError; ConfigError.
    """
    source, revision = assembly.source_of(stage)
    configs = [config_of(source, revision=revision, allow_remote_code=allow_remote_code)]
    configs += [teaching.teacher.family.model.config] if teaching else []
    longest = max(len(row.prompt_ids) for row in data.train)
    for rollout in filter(None, (schema.rollout_of(stream.source) for stream in stage.streams)):
        for config in configs:
            check_decodable(config.get_text_config(), longest + rollout.max_new_tokens)
        if rollout.engine == "vllm":
            import_vllm()
            if runtime.device.type != "cuda":
                raise ConfigError(f"engine is vllm, and this run is on {runtime.device.type}", "set engine to local")


def _writes_untrained(stage: schema.Stage) -> bool:
    """Whether a student writes that has never been trained since it was cut."""
    rollouts = [rollout for stream in stage.streams if (rollout := schema.rollout_of(stream.source))]
    writes = any(rollout.policy.name != "teacher" for rollout in rollouts)
    return writes and isinstance(stage.student, schema.PrunedStudent)


def _settled(recipe: schema.Recipe, runtime: Runtime) -> schema.Recipe:
    """The recipe with what was ``auto`` settled, so that it re-runs the same."""
    dtype = str(runtime.dtype).removeprefix("torch.")
    if recipe.dtype == "auto" and runtime.is_main:
        say(f"computing in {dtype} on {runtime.device.type}, the faster here of float32 and bfloat16")
    return recipe.model_copy(update={"device": runtime.device.type, "dtype": dtype})


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
