"""The whole way: fine-tune the teacher on the rows, fine-tune the student, distil, evaluate.

    stage teacher-sft   teacher                      cross-entropy on the rows
    stage warm-up       learner                      the same: cut from the fine-tuned teacher, loaded, or fresh
    stage student       taught by teacher-sft        stage_method; the result

    with assistants, between the first and the warm-up, for each of them
    stage assistant-warm-up, stage assistant         as the student's; the assistant teaches the next

The held-out rows are the same in all stages, so the report has in one table what the teacher scores as it was and
fine-tuned, the student fine-tuned and distilled, and the baseline: the fine-tuned student, fine-tuned on for as long
as its distillation took. What is set for one stage is reached by its name and for all by ``all``:
``all.data=rows.jsonl warm-up.budget.epochs=3``.

Public systems have these steps as scripts that a person runs one by one, with the folder of one as an argument of the
next: MiniLLM (microsoft/LMOps; a student is fine-tuned for a few epochs before its policy gradient), the teacher
assistants on top of it (GAEUNYIM/LMOps-TA-Distillation), the feature selection on top of it (Khsaadi/KD-LLMs), MiniLLM
for encoder-decoder models (Fabio-Klinge/MiniLLM_Seq2Seq; its three rounds of ANLI are ``anli_minillm``) and the study
of GPT-2 on CNN/DailyMail (shiv-vignesh/Knowledge-Distillation-Research-Study).

Defaults: both are fine-tuned with the settings of ``sft``, the teacher with learning rate 5e-5 (MiniLLM's for
GPT-2 XL), since it is trained already and the cut student is not. Student, length and size of evaluation are those of
``kd``; everything else is the method's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from potstill.recipe import (
    PretrainedStudent,
    PreviousStudent,
    PrunedStudent,
    Recipe,
    Stage,
    StageTeacher,
    Student,
    Teacher,
)
from potstill.recipes.common import Learner, stage_of
from potstill.recipes.sft import sft

TAUGHT = "teacher-sft"  # the stage; ``teacher`` is a parameter
TEACHER_RATE = 5e-5  # MiniLLM, GPT-2 XL
LEARNER = PrunedStudent(keep_layers=10)  # as kd


def pipeline(
    *,
    teacher: str = Teacher().model,
    learner: Learner = LEARNER,
    assistants: tuple[Learner, ...] = (),
    stage_method: str = "kd",
    stage_settings: Mapping[str, Any] = {},
    fine_tune: Literal["both", "teacher", "student", "none"] = "both",
) -> Recipe:
    """Fine-tune teacher and student, then distil the one into the other.

    Args:
        teacher: a model as it is.
        learner: the student that is wanted: a number of layers of its teacher, or any student.
        assistants: between teacher and learner, from the largest to the smallest, likewise; each is distilled too.
        stage_method: of the distillation: a built-in one of one stage, with a teacher.
        stage_settings: parameters and settings of that method, such as ``{ce_weight: 0.5}``.
        fine_tune: what is fine-tuned before: both, the teacher, the student (and assistants), or none.
    """
    method = stage_of(stage_method, stage_settings)
    taught = fine_tune in ("both", "teacher")
    stages = [_fine_tuning(TAUGHT, PretrainedStudent(model=teacher), rate=TEACHER_RATE)] if taught else []
    teaches: Teacher | StageTeacher = StageTeacher(stage=TAUGHT) if taught else Teacher(model=teacher)
    for name, made in zip(_names(len(assistants)), (*assistants, learner), strict=True):
        stages += _distilled(name, made, teaches, method, warm=fine_tune in ("both", "student"))
        teaches = StageTeacher(stage=name)
    return Recipe(method="pipeline", baseline="equal_time_sft", stages=tuple(stages))


def _names(assistants: int) -> list[str]:
    """Of the stages that distil, in order."""
    return ["assistant" if at == 0 else f"assistant-{at + 1}" for at in range(assistants)] + ["student"]


def _distilled(
    name: str, learner: Student, teacher: Teacher | StageTeacher, method: Stage, *, warm: bool
) -> Iterator[Stage]:
    """A student's stages: its warm-up, and its distillation."""
    if warm:
        cut = isinstance(learner, PrunedStudent) and learner.model is None
        yield _fine_tuning("warm-up" if name == "student" else f"{name}-warm-up", learner, teacher if cut else None)
        learner = PreviousStudent(freeze_embeddings=learner.freeze_embeddings)
    yield method.model_copy(update={"name": name, "teacher": teacher, "student": learner})


def _fine_tuning(
    name: str, student: Student, teacher: Teacher | StageTeacher | None = None, *, rate: float | None = None
) -> Stage:
    """The stage of ``sft``. ``teacher``: what the student is cut from; it is compared with, and teaches nothing."""
    stage = sft().stage
    optimizer = stage.optimizer.model_copy(update={"learning_rate": rate or stage.optimizer.learning_rate})
    update = {"name": name, "method": "sft", "teacher": teacher, "student": student, "optimizer": optimizer}
    return stage.model_copy(update=update)
