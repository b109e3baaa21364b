"""Models that cannot be had, of any stage, found before the first is run; from their configs alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from potstill import recipe as schema
from potstill.assembly import source_of
from potstill.errors import ModelError
from potstill.models import layout
from potstill.models.loading import config_of


def check_models(recipe: schema.Recipe, allow_remote_code: bool) -> None:
    """Refuse a model that is not there, of a late stage too, before the first is run.

    Raises: ModelError, naming its key.
    """
    for stage in recipe.stages:
        within = f"{stage.name}." if len(recipe.stages) > 1 else ""
        for key, name, revision in _named_models(stage):
            try:
                config_of(name, revision=revision, allow_remote_code=allow_remote_code)
            except ModelError as error:
                raise ModelError(f"{within}{key} is {error.cause}", error.fix) from None


def check_depths(recipe: schema.Recipe, allow_remote_code: bool) -> None:
    """Refuse a student of more layers than what it is cut from will have, of a late stage too.

    Raises: ModelError, naming the stage's key.
    """
    depths: dict[str, int | None] = {}
    for at, stage in enumerate(recipe.stages):
        previous = recipe.stages[at - 1].name
        depth = _depth_before(stage, previous, depths, allow_remote_code)
        if isinstance(stage.student, schema.PrunedStudent):
            keep = stage.student.keep_layers
            most = keep if isinstance(keep, int) else max(keep) + 1
            if depth is not None and most > depth:
                within = f"{stage.name}." if len(recipe.stages) > 1 else ""
                raise ModelError(
                    f"{within}student.keep_layers is {keep}, and what is cut there has {depth} layers",
                    f"keep at most {depth}: by that key, or by what {recipe.method} has for it",
                )
            depth = keep if isinstance(keep, int) else len(keep)
        depths[stage.name] = depth


def _depth_before(
    stage: schema.Stage, previous: str, depths: Mapping[str, int | None], allow_remote_code: bool
) -> int | None:
    """How many layers the model has that a stage's student is made from; None where no config says so in one word."""
    if isinstance(stage.student, schema.PreviousStudent):
        return depths[previous]
    if getattr(stage.student, "model", None) is None and isinstance(stage.teacher, schema.StageTeacher):
        return depths[previous if stage.teacher.stage == schema.PREVIOUS else stage.teacher.stage]
    name, revision = source_of(stage)
    config = config_of(name, revision=revision, allow_remote_code=allow_remote_code)
    return None if layout.is_encoder_decoder(config) else int(config.get_text_config().num_hidden_layers)


def _named_models(stage: schema.Stage) -> Iterator[tuple[str, str, str | None]]:
    """The models that a stage has by name, with their keys and revisions."""
    for name, teacher in stage.all_teachers.items():
        if isinstance(teacher, schema.Teacher):
            yield f"teachers.{name}" if name else "teacher", teacher.model, teacher.revision
    student = stage.student
    if not isinstance(student, schema.PreviousStudent) and student.model is not None:
        yield "student", student.model, getattr(student, "revision", None)
