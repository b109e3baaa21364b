"""Densely guided: each student learns from the teacher and from all assistants above it, not from the nearest alone.

    stage assistant       teacher                                  -> assistant      the method itself
    stage assistant-2     assistant, teacher                       -> assistant-2    1/2 of its loss to each
    stage student         assistant-2, assistant, teacher          -> student        1/3 of its loss to each; the result
    stage direct          teacher                                  -> student        as many steps as the stage student
    stage direct_longer   teacher                                  -> student        as much compute as the whole chain

At each step each of a stage's n teachers is left out with the probability ``drop``, one at least being kept; the
others' shares stay 1/n. A student is cut from the nearest assistant, which is also whom its held-out figures and its
gate compare with: both as in ``teacher_assistant``, so that the two differ in nothing but who teaches. The stages
``assistant`` and ``direct`` are the very ones of ``teacher_assistant`` and are taken over from a run of it. A step of a
student asks n teachers, so equally many steps are more compute than there; direct_longer has as much of it.

Paper: Son et al. 2021, arXiv:2009.08825, against the errors that a chain hands down. There the student has the labels'
cross-entropy as well; here it has what the method has.

Defaults: ``teacher_assistant``'s. drop is ours: the paper leaves teachers out at random, and we have not its rate.
Ours too is that the others' shares are not raised for one that is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from potstill.recipe import AnyTeacher, DatasetSource, Recipe, Stage, StageTeacher, Stream, Teacher
from potstill.recipes.common import Learner, stage_of
from potstill.recipes.teacher_assistant import HALF, LEARNER, RESULT, Direct, direct_routes, names_of


def dgkd(
    *,
    stage_method: str = "kd",
    stage_settings: Mapping[str, Any] = {},
    teacher: str = Teacher().model,
    assistants: Annotated[tuple[Learner, ...], Field(min_length=1)] = (HALF,),
    learner: Learner = LEARNER,
    drop: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.25,
    direct: Direct = "both",
    gate: bool = True,
) -> Recipe:
    """Distil through assistants, each student taught by all models above it.

    Args:
        stage_method: of every stage: a built-in one whose text is the data's, kd for instance.
        stage_settings: parameters and settings of that method.
        teacher: of every stage; of the first the only one.
        assistants: from the largest to the smallest, each a number of layers of the model above it, or any student.
        learner: the student that is wanted, likewise.
        drop: the chance of a teacher to be left out of a step, where there are several.
        direct: what the whole is compared with: equally many steps, equally much compute.
        gate: whether an assistant has to be better than the next student is untaught.
    """
    stage = _stage_on_data(stage_method, stage_settings)
    names = names_of(assistants)
    chain = [
        stage.model_copy(update={"name": name, "student": student, **_taught(stage, teacher, names[:at], drop, gate)})
        for at, (name, student) in enumerate(zip(names, (*assistants, learner), strict=True))
    ]
    beside = direct_routes(stage, names, teacher, learner, direct)
    return Recipe(method="dgkd", result=RESULT, stages=(*chain, *beside))


def _taught(stage: Stage, teacher: str, above: Sequence[str], drop: float, gate: bool) -> dict[str, object]:
    """What of a stage depends on who teaches it.

    Args:
        above: the stages before it, whose students are its teachers beside ``teacher``.
    """
    if not above:
        return {"teacher": Teacher(model=teacher), "gate": False}
    further: dict[str, AnyTeacher] = {name: StageTeacher(stage=name) for name in reversed(above[:-1])}
    further["teacher"] = Teacher(model=teacher)
    asked = (None, *further)
    streams = tuple(_asking(stream, name, len(asked), drop) for name in asked for stream in stage.streams)
    return {"teacher": StageTeacher(), "teachers": further, "streams": streams, "gate": gate}


def _asking(stream: Stream, teacher: str | None, num_teachers: int, drop: float) -> Stream:
    """A stream as it asks one of several teachers, with its part of the loss."""
    name = stream.name if teacher is None else f"{stream.name}_{teacher.replace('-', '_')}"
    terms = tuple(term.scaled(1 / num_teachers) for term in stream.terms)
    return stream.model_copy(update={"name": name, "teacher": teacher, "drop": drop, "terms": terms})


def _stage_on_data(method: str, settings: Mapping[str, Any]) -> Stage:
    """The stage of a built-in method that compares with its teacher on the data's text, and on nothing else: on text
    that a model writes, each teacher's stream would write its own.

    Raises: ValueError for another.
    """
    from potstill.recipes import METHODS  # of which this is one

    def fits(name: str) -> bool:
        made = METHODS[name]()
        streams = made.stages[0].streams
        on_data = all(isinstance(stream.source, DatasetSource) and stream.asks_teacher for stream in streams)
        return len(made.stages) == 1 and on_data

    known = [name for name in METHODS if name != "dgkd" and fits(name)]
    if method not in known:
        raise ValueError(
            f"stage_method is {method}, and several teachers are asked about the same text, the data's. "
            f"It is one of {', '.join(known)}"
        )
    return stage_of(method, settings)
