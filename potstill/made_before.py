"""A stage that another run has made already: found by what it was asked to do, and taken over.

Two stages are the same where their recipes are, those of the stages they stand on included (``recipe_hashes``), and the
rows and models that they name are byte for byte what they were, with the same versions on the same kind of device.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from potstill import assembly, recipe_io
from potstill import recipe as schema
from potstill.data.datasets import place_shown
from potstill.data.gathering import digest_of
from potstill.environment import environment
from potstill.errors import DataError
from potstill.hashes import file_sha256, files_sha256
from potstill.models.fingerprint import fingerprint_of
from potstill.run import STAGES, Run, remove_folder, write_text

ALIKE = ("potstill", "torch", "transformers", "device", "dtype", "processes")  # of env.json
LEFT_BEHIND = ("checkpoints", ".lock", "report.html")


def models_of(recipe: schema.Recipe) -> dict[str, str]:
    """A hash of each model that a stage reads, and of each file beside its rows, by its part."""
    stage = recipe.stage
    named = {"student": assembly.source_of(stage)[0]}
    for name, teacher in stage.all_teachers.items():
        named["teacher" if name is None else f"teachers.{name}"] = assembly.model_of(stage, teacher)[0]
    return {part: fingerprint_of(name) for part, name in named.items()} | dict(_files_beside(stage))


def _files_beside(stage: schema.Stage) -> Iterator[tuple[str, str]]:
    """What a stage reads beside models and rows: annotations, plain text, chosen channels; of a folder, its files."""
    named = {"annotations": stage.data.annotations}
    for stream in stage.streams:
        if isinstance(stream.source, schema.DatasetSource):
            named[f"text of {stream.name}"] = stream.source.path
        for term in stream.terms:
            channels = getattr(term.objective, "channels", None)
            named[f"channels of {stream.name}/{term.label}"] = getattr(channels, "file", None)
    for part, name in named.items():
        if name is not None and (place := Path(name)).exists():
            yield part, _of_a_folder(place) if place.is_dir() else file_sha256(place)


def _of_a_folder(folder: Path) -> str:
    return files_sha256((file for file in folder.rglob("*") if file.is_file()), folder)


def find(run: Run, recipe_sha256: str, recipe: schema.Recipe, device: str) -> Run | None:
    """The finished stage of another run beside this one that is the same; None where there is none.

    Args:
        run: the stage to be made, in ``<runs>/<run>/stages/<stage>``.
        recipe_sha256: what it is asked to do. recipe: the same, with models named, for what stands behind the names.
        device: where it would be made.
    """
    made = (Run(folder) for folder in _finished(run.path.parent.parent, recipe_sha256))
    return next((one for one in made if _is_same(one, recipe, device)), None)


def _finished(whole: Path, recipe_sha256: str) -> Iterator[Path]:
    """Stages of other runs that were asked to do this and have done it, the newest run first; each by its own name."""
    runs = [run for run in whole.parent.iterdir() if not run.is_symlink() and run.resolve() != whole.resolve()]
    others = [file for run in runs if (file := run / "stages.json").is_file()]
    for file in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
        for planned in Run(file.parent).read("stages") or ():
            if planned.get("recipe_sha256") == recipe_sha256 and planned.get("student_sha256"):
                yield file.parent / planned["folder"]


def _is_same(made: Run, recipe: schema.Recipe, device: str) -> bool:
    """Whether rows, models and versions are what they were."""
    then, now = made.read("env"), environment(device, recipe.dtype)
    versions = all(then.get(name) == now.get(name) for name in ALIKE)
    return versions and made.read("models") == models_of(recipe) and all(map(_is_there, _files(made)))


def _files(made: Run) -> Iterator[dict[str, Any]]:
    yield from (made.read("data").get("files") or {}).values()


def _is_there(told: dict[str, Any]) -> bool:
    """Whether a file of rows, or the split that a name stands for, is what it was."""
    try:
        return digest_of(place_shown(str(told.get("file")))) == told.get("sha256")
    except (OSError, DataError):
        return False


def take_over(made: Run, run: Run, recipe: schema.Recipe) -> None:
    """Bring a finished stage into this run, whole or not at all, with this run's names for its models."""
    assert run.path.parent.name == STAGES
    partial = run.path.with_name(f".{run.path.name}.partial")
    remove_folder(partial)
    leave = shutil.ignore_patterns(*LEFT_BEHIND)
    shutil.copytree(made.path, partial, ignore=leave, copy_function=_shared, symlinks=True)
    write_text(Run(partial).recipe_file, recipe_io.dump(recipe))
    partial.rename(run.path)


def _shared(source: str, target: str) -> None:
    """A copy of what a person might edit; of weights a second name, where the disk allows."""
    if source.endswith(".safetensors"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
