"""The models of a run: ``first`` is its student; ``first:teacher``, ``first:untouched`` and ``first:sft`` the others.

The untouched student of a run that cut it from a larger model is not kept; it is cut again, the same, when it is asked
for. A run of several stages is its last one.
"""

from __future__ import annotations

from pathlib import Path

from potstill import assembly, recipe_io
from potstill import run as runs
from potstill.errors import ConfigError, nearest
from potstill.models import pruning, width
from potstill.models.loading import load
from potstill.recipe import PrunedStudent, Recipe, Stage
from potstill.recipes import METHODS
from potstill.run import PARTS, Run, remove_folder


def model_named(name: str, *, allow_remote_code: bool = False) -> str:
    """A folder, file or hub id for what the user named: a run's model where it is one, otherwise the name itself.

    Raises: ConfigError for a part that the run does not have; ModelError where a student cannot be cut again.
    """
    of = part_named(name)
    return model_of(*of, allow_remote_code=allow_remote_code) if of else name


def part_named(name: str) -> tuple[Run, str] | None:
    """The run that a name is of, and which of its models; None where it is a model of no run, or a folder of one."""
    if Path(name).exists() and not (Path(name) / "recipe.yaml").is_file():
        return None
    given, _, part = name.rpartition(":")
    if given and (found := _run(given)):
        return found, part
    found = _run(name)
    return (found, "student") if found else None


def model_of(run: Run, part: str, *, allow_remote_code: bool = False) -> str:
    """The model folder, file or hub id of a part of a run. Raises: as ``model_named`` does."""
    if part not in PARTS:
        fix = f"{nearest(part, PARTS)}It is one of {', '.join(PARTS)}"
        raise ConfigError(f"{run.name} has no model {part!r}", fix)
    run = run.result
    if not run.recipe_file.exists():
        raise ConfigError(f"{run.name} has no {part}: its last stage is not begun", _go_on(run))
    recipe = recipe_io.load(run.recipe_file, methods=METHODS)
    stage = recipe.stage
    match part:
        case "teacher" if stage.teacher:
            return _pinned_nowhere(*assembly.teacher_of(stage))
        case "untouched":
            return _untouched(run, stage, allow_remote_code)
        case "student" | "sft":
            folder = run.student if part == "student" else run.baseline.student
            if folder.is_dir():
                return str(folder)
    raise ConfigError(f"{run.name} has no {part}", _instead(run, part, recipe))


def trained_stage(name: str | Path) -> Stage | None:
    """The stage of the run that a model is of, by the run's name or its student's folder; None of other models.

    All models of a run are asked as its student was trained: its teacher and its baseline too, which it is set against.
    """
    if of := part_named(str(name)):
        file = of[0].result.recipe_file
    else:
        folder = Path(name)
        above = folder.parent.parent if folder.parent.name == "baseline" else folder.parent
        file = above / "recipe.yaml"
        if folder.name != "student":
            return None
    return recipe_io.load(file, methods=METHODS).stage if file.is_file() else None


def _instead(run: Run, part: str, recipe: Recipe) -> str:
    """What to do where a run has no such model."""
    match part:
        case "teacher":
            return f"method {recipe.method} trains without one; name another run's teacher, or {run.name}:untouched"
        case "sft" if recipe.method == "sft":
            return f"name the run itself, {run.name}: it is fine-tuned"
        case "sft" if recipe.baseline == "none":
            return "train with baseline=equal_time_sft"
    return _go_on(run)


def _go_on(run: Run) -> str:
    return f"go on with `potstill resume {run.name}`"


def _run(name: str) -> Run | None:
    try:
        return runs.find(name)
    except ConfigError:
        return None


def _pinned_nowhere(model: str, revision: str | None) -> str:
    """The model, unless the recipe pins a revision, which a name alone does not carry."""
    if revision is not None:
        raise ConfigError(f"{model} is pinned to revision {revision}", "download that revision, and name its folder")
    return model


def _untouched(run: Run, stage: Stage, allow_remote_code: bool) -> str:
    """The student as it was before training: its source, or that cut as it was then."""
    source, revision = assembly.source_of(stage)
    if not isinstance(stage.student, PrunedStudent):
        return _pinned_nowhere(source, revision)
    folder = run.untouched
    if folder.is_dir():
        return str(folder)
    made = run.read("student")
    if "kept_layers" not in made:
        raise ConfigError(f"{run.name} has not been begun", f"go on with `potstill resume {run.name}`")
    loaded = load(source, revision=revision, allow_remote_code=allow_remote_code)
    partial = run.path / ".untouched.partial"
    remove_folder(partial)
    cut = pruning.cut_layers(loaded.model, made["kept_layers"], made.get("encoder_kept_layers"))
    if "kept_widths" in made:
        cut = width.cut_width(cut, width.Chosen.of_data(made["kept_widths"]))
    cut.to(loaded.stored_dtype).save_pretrained(partial)
    loaded.tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return str(folder)
