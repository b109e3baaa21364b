"""Runs a recipe's stages one after the other: the student of one is the next one's student or teacher.

Each stage is an ordinary run in a folder of its own with a recipe of its own, in which the models are named. A stage
that is finished is known by a hash of what it was asked to do and one of the student that it made, and is not done
again. Nothing is carried from one stage to the next but folders, so one that is run by itself makes the same student.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from potstill import assembly, made_before, recipe_io
from potstill import recipe as schema
from potstill.bench import say, settled
from potstill.data.catalogue import DATASETS
from potstill.data.catalogue.loading import files_of
from potstill.data.datasets import Named, heldout_place, train_place
from potstill.errors import CheckpointError, ConfigError, DataError
from potstill.hashes import files_sha256
from potstill.run import STAGES, Run, replace_link, write_text
from potstill.training import runtime as runtimes

CARD = "README.md"  # of a student; written after it, and no part of the model


@dataclass(frozen=True)
class Part:
    """What is run by itself: a recipe of one stage, and its folder."""

    recipe: schema.Recipe
    run: Run


@dataclass(frozen=True)
class Planned:
    """A stage in stages.json.

    ``student_sha256`` is there when it is finished, ``taken_from`` where another run made it. ``is_result``: its
    student is the whole run's.
    """

    name: str
    method: str
    folder: str
    recipe_sha256: str
    student_sha256: str | None = None
    is_result: bool = False
    taken_from: str | None = None


def parts(recipe: schema.Recipe, run: Run, conclude: Callable[[Run], None]) -> Iterator[Part]:
    """What is left to run of a recipe, in order; of one stage, the recipe itself in the run's own folder.

    Args:
        recipe: what to do. run: where; its folder exists.
        conclude: called with each run when it is finished, with the whole one last.
    Yields: the next part, when those before it are finished; it has to be run before another is asked for.
    Raises: ConfigError, CheckpointError where what is there is not what the recipe asks for; DataError for rows of any
        stage that are not there.
    """
    if len(recipe.stages) == 1:
        yield Part(recipe, run)
        conclude(run)
        return
    check_rows(recipe)
    runtime = runtimes.start(recipe.device, recipe.dtype)
    recipe = settled(recipe, runtime)
    plan = runtime.share(_plan(recipe, run) if runtime.is_main else None)
    for at, planned in enumerate(plan):
        if planned.student_sha256 is not None:
            _say(runtime, f"stage {planned.name} is finished")
            continue
        _say(runtime, f"stage {at + 1} of {len(plan)}: {planned.name}")
        part = Part(resolved(recipe, at, run), Run(run.path / planned.folder))
        made = runtime.share(_made_before(recipe, part, planned, str(runtime.device)) if runtime.is_main else None)
        if made is None:
            part.run.path.mkdir(parents=True, exist_ok=True)
            yield part
            conclude(part.run)
        if runtime.is_main:
            part.run.write("models", made_before.models_of(part.recipe))
            plan[at] = replace(planned, student_sha256=student_sha256(part.run.student), taken_from=made)
            _write(run, plan)
        runtime.barrier()
    if runtime.is_main:
        replace_link(run.student, f"{plan[recipe.result_at].folder}/student")
    conclude(run)


def _made_before(recipe: schema.Recipe, part: Part, planned: Planned, device: str) -> str | None:
    """Take a stage over that another run has made; from which, or None where none has, or this one is begun."""
    if not recipe.reuse_stages or part.run.path.exists():
        return None
    found = made_before.find(part.run, planned.recipe_sha256, part.recipe, device)
    if found is None:
        return None
    made_before.take_over(found, part.run, part.recipe)
    say(f"stage {planned.name} is taken from {found.path}, which has done the same")
    return str(found.path)


def check_rows(recipe: schema.Recipe) -> None:
    """Refuse rows that are not there, of a late stage too, before the first is run. Raises: DataError."""
    for stage in recipe.stages:
        for place in (train_place(stage.data), heldout_place(stage.data)):
            if isinstance(place, Named):
                files_of(DATASETS[place.name], place.split)
            elif place is not None and not place.exists():
                raise DataError(f"stage {stage.name}: {place} is not there", f"set {stage.name}.data.path or .heldout")


def _say(runtime: runtimes.Runtime, text: str) -> None:
    if runtime.is_main:
        say(text)


# --- What a stage is asked to do --------------------------------------------------------------------------------------


def resolved(recipe: schema.Recipe, at: int, run: Run) -> schema.Recipe:
    """One stage as a recipe of its own, with the students of earlier ones by their folders, and their compute."""
    runs = {stage.name: _run_of(run, recipe, index) for index, stage in enumerate(recipe.stages)}
    students = {name: _as_named(one.student) for name, one in runs.items()}

    def named(previous: str, stage: schema.Stage) -> schema.Stage:
        return stage.model_copy(update=_models(recipe, previous, stage, students) | _compute(stage, runs))

    return _alone(recipe, at, named)


def _compute(stage: schema.Stage, runs: Mapping[str, Run]) -> dict[str, Any]:
    """The budget of a stage that has that of others, in floating point operations."""
    if (of := stage.budget.compute_of) is None:
        return {}
    return {"budget": schema.Budget(flops=sum(float(runs[name].read("cost")["flops"]) for name in of))}


def beforehand(recipe: schema.Recipe) -> Iterator[schema.Recipe]:
    """Each stage as a recipe of its own before any is run, to be looked at: a student of an earlier stage is stood for
    by what it is to be made from, which has its tokenizer, and its size or more."""
    made: dict[str, str] = {}
    for at, stage in enumerate(recipe.stages):
        alone = _alone(recipe, at, lambda name, stage: stage.model_copy(update=_beforehand(recipe, name, stage, made)))
        made[stage.name] = assembly.source_of(alone.stage)[0]
        yield alone


def _beforehand(recipe: schema.Recipe, previous: str, stage: schema.Stage, made: Mapping[str, str]) -> dict[str, Any]:
    """What of a stage is not known before others are run: their students, and their compute, stood for by one step."""
    budget = {"budget": schema.Budget(steps=1)} if stage.budget.compute_of else {}
    return _models(recipe, previous, stage, made) | budget


def _alone(recipe: schema.Recipe, at: int, named: Callable[[str, schema.Stage], schema.Stage]) -> schema.Recipe:
    """A recipe of one stage; that of the result has the baseline."""
    stage = recipe.stages[at]
    previous = recipe.stages[at - 1].name if at else ""
    update = {
        "method": stage.method or recipe.method,
        "run": None,
        "baseline": recipe.baseline if at == recipe.result_at else "none",
        "result": None,
        "stages": (named(previous, stage),),
    }
    return recipe.model_copy(update=update)


def _models(recipe: schema.Recipe, previous: str, stage: schema.Stage, students: Mapping[str, str]) -> dict[str, Any]:
    """The models of a stage that other stages make."""
    found: dict[str, Any] = {}
    if isinstance(stage.student, schema.PreviousStudent):
        own = {"freeze_embeddings": stage.student.freeze_embeddings, "adapter": stage.student.adapter}
        found["student"] = schema.PretrainedStudent(model=students[previous], **own)

    def settled_teacher(asked: schema.AnyTeacher) -> schema.AnyTeacher:
        if not isinstance(asked, schema.StageTeacher):
            return asked
        made_by = previous if asked.stage == schema.PREVIOUS else asked.stage
        return schema.Teacher(model=students[made_by], cache=asked.cache, **asked.held)

    if stage.teacher:
        found["teacher"] = settled_teacher(stage.teacher)
    return found | {"teachers": {name: settled_teacher(asked) for name, asked in stage.teachers.items()}}


def _run_of(run: Run, recipe: schema.Recipe, at: int) -> Run:
    return Run(run.path / STAGES / f"{at + 1}-{recipe.stages[at].name}")


def _as_named(folder: Path) -> str:
    """A folder by one name, however the run was named: from here where it is below, so that what is moved as a whole
    keeps its recipes."""
    whole, here = folder.parent.resolve() / folder.name, Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


# --- What is finished -------------------------------------------------------------------------------------------------


def _plan(recipe: schema.Recipe, run: Run) -> list[Planned]:
    """stages.json: read and compared with the recipe, or written for the first time.

    Raises: ConfigError where a finished stage was asked to do something else; CheckpointError where its student is not
        what it was.
    """
    hashes = recipe_hashes(recipe)
    plan = [
        Planned(
            name=stage.name,
            method=stage.method or recipe.method,
            folder=str(_run_of(run, recipe, at).path.relative_to(run.path)),
            recipe_sha256=hashes[stage.name],
            is_result=at == recipe.result_at,
        )
        for at, stage in enumerate(recipe.stages)
    ]
    finished = {one["name"]: Planned(**one) for one in run.read("stages") or () if one["student_sha256"]}
    for name, then in finished.items():
        _check_finished(run, then, hashes.get(name))
    for at, planned in enumerate(plan):
        if made := finished.get(planned.name):
            plan[at] = replace(planned, student_sha256=made.student_sha256, taken_from=made.taken_from)
    write_text(run.recipe_file, recipe_io.dump(recipe))
    _write(run, plan)
    return plan


def _check_finished(run: Run, then: Planned, now: str | None) -> None:
    if then.recipe_sha256 != now:
        raise ConfigError(
            f"stage {then.name} of {run.name} was trained with other settings than recipe.yaml has now",
            "put them back, or start a new run",
        )
    folder = run.path / then.folder / "student"
    if not folder.is_dir() or student_sha256(folder) != then.student_sha256:
        raise CheckpointError(
            f"{folder} is not the student that stage {then.name} made: its files have changed",
            "bring it back as it was, or start a new run",
        )


def _write(run: Run, plan: list[Planned]) -> None:
    run.write("stages", [asdict(planned) for planned in plan])


def recipe_hashes(recipe: schema.Recipe) -> dict[str, str]:
    """What each stage is asked to do, as a hash by its name: its settings, and those of the stages it stands on."""
    found: dict[str, str] = {}
    for at, stage in enumerate(recipe.stages):
        previous = recipe.stages[at - 1].name if at else None
        on = {previous} if isinstance(stage.student, schema.PreviousStudent) else set()
        taught_by = (one.stage for one in stage.all_teachers.values() if isinstance(one, schema.StageTeacher))
        on |= {previous if name == schema.PREVIOUS else name for name in taught_by}
        on |= set(stage.budget.compute_of or ())
        asked = _alone(recipe, at, lambda _, stage: stage).model_dump(mode="json", exclude={"device", "reuse_stages"})
        told = [asked, sorted(found[name] for name in on if name)]
        found[stage.name] = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return found


def student_sha256(folder: Path) -> str:
    """A hash of a model folder: the names and contents of its files, its card left out."""
    return files_sha256((file for file in folder.rglob("*") if file.is_file() and file.name != CARD), folder)
