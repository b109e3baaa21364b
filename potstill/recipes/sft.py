"""Supervised fine-tuning: cross-entropy on the data's own responses. No teacher.

It is the baseline every distilled student has to beat, and the usual first step of a teacher or a student for a
task.

Defaults: those of ``kd``, so that the two compare; the student is cut from the embedded model.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import (
    Batching,
    Budget,
    Checkpoint,
    Evaluation,
    Optimizer,
    PrunedStudent,
    Recipe,
    Stage,
    Stream,
    Teacher,
    Term,
)


def sft(*, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> Recipe:
    """Fine-tune a student on prompts and responses.

    Args:
        label_smoothing: share of the target spread evenly over the vocabulary.
    """
    term = Term.model_validate({"objective": {"name": "cross_entropy", "label_smoothing": label_smoothing}})
    return Recipe(
        method="sft",
        stages=(
            Stage(
                student=PrunedStudent(model=Teacher().model),
                streams=(Stream(terms=(term,)),),
                optimizer=Optimizer(learning_rate=1e-3),
                batch=Batching(size=2),
                budget=Budget(steps=120),
                checkpoint=Checkpoint(every=60, best_by="rouge_l"),
                evaluation=Evaluation(max_examples=40, generate_examples=8, max_new_tokens=64),
            ),
        ),
    )
