"""Through assistants: each student is the next one's teacher, down to the one that is wanted.

    stage assistant       teacher   -> assistant     stage_method
    stage student         assistant -> student       the same method; the result
    stage direct          teacher   -> student       as many steps as the stage student
    stage direct_longer   teacher   -> student       as many floating point operations as the whole chain

The best checkpoint of each stage teaches the next. A gate stands before every stage that an assistant teaches: an
assistant that is no better on held-out rows than the next student is untaught has nothing to teach, and the run stops
and says so. The last two stages are what the chain is compared with, on the same held-out rows: published gains of
assistants are about a point, and a chain costs a training more.

A setting of one stage is reached by its name, ``student.budget.steps=200``, and of all by ``all``:
``all.data=rows.jsonl all.budget.steps=200``.

Papers: Mirzadeh et al. 2020, arXiv:1902.03393, whose assistants of middling accuracy do best, not those of middling
size, and whose longer chains do better. Against it: MiniLLM (Gu et al. 2024) finds larger teachers better one by one.

Defaults: the teacher's layers halved, and the student of ``kd``. Everything else is the method's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from potstill.recipe import Budget, PrunedStudent, Recipe, Stage, StageTeacher, Student, Teacher
from potstill.recipes.common import Learner, stage_of

RESULT = "student"
LEARNER = PrunedStudent(keep_layers=10)  # as kd
HALF = PrunedStudent(keep_layers=15)  # of the embedded model's 30 layers


Direct = Literal["none", "steps", "compute", "both"]


def teacher_assistant(
    *,
    stage_method: str = "kd",
    stage_settings: Mapping[str, Any] = {},
    teacher: str = Teacher().model,
    assistants: Annotated[tuple[Learner, ...], Field(min_length=1)] = (HALF,),
    learner: Learner = LEARNER,
    direct: Direct = "both",
    gate: bool = True,
) -> Recipe:
    """Distil through one assistant or several.

    Args:
        stage_method: of every stage: a built-in one of one stage, with a teacher.
        stage_settings: parameters and settings of that method, such as ``{ce_weight: 0.5}``.
        teacher: of the first stage.
        assistants: from the largest to the smallest, each a number of layers of its teacher, or any student.
        learner: the student that is wanted, likewise.
        direct: what the chain is compared with: equally many steps, equally much compute.
        gate: whether an assistant has to be better than the next student is untaught.
    """
    stage = stage_of(stage_method, stage_settings)
    names = names_of(assistants)
    chain = [
        stage.model_copy(
            update={
                "name": name,
                "teacher": Teacher(model=teacher) if at == 0 else StageTeacher(),
                "student": student,
                "gate": gate and at > 0,
            }
        )
        for at, (name, student) in enumerate(zip(names, (*assistants, learner), strict=True))
    ]
    beside = direct_routes(stage, names, teacher, learner, direct)
    return Recipe(method="teacher_assistant", result=RESULT, stages=(*chain, *beside))


def names_of(assistants: Sequence[Student]) -> list[str]:
    """The stages that make the assistants and the student, by name."""
    return ["assistant", *(f"assistant-{at + 2}" for at in range(len(assistants) - 1)), RESULT]


def direct_routes(stage: Stage, chain: Sequence[str], teacher: str, learner: Student, direct: Direct) -> list[Stage]:
    """The stages that a chain is compared with.

    Args:
        stage: what one of the method is. chain: the names of its stages.
    """
    routes = {"direct": {}, "direct_longer": {"budget": Budget(compute_of=tuple(chain))}}
    wanted = {"none": (), "steps": ("direct",), "compute": ("direct_longer",), "both": tuple(routes)}[direct]
    alone = {"teacher": Teacher(model=teacher), "student": learner, "gate": False}
    return [stage.model_copy(update={"name": name, **alone, **routes[name]}) for name in wanted]
