"""What the built-in methods share, so that a comparison of two of them compares the methods.

The size is the demo's: a student of 63 M parameters and a few minutes of two CPU cores. For a task set
budget.epochs, a larger batch and evaluation.max_examples. A student that is to write its own text has to be able to
write: start from one that was trained (``student=runs/kd-1/student``) and not from one that was just cut. The
learning rate is for that. The best checkpoint is the one with the highest Rouge-L of greedy answers to the
validation prompts, as in MiniLLM, or a newer one within its standard error: these are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from potstill import recipe_io
from potstill.errors import ConfigError
from potstill.recipe import (
    Batching,
    Budget,
    Checkpoint,
    Evaluation,
    Optimizer,
    Recipe,
    Stage,
    Stream,
    Student,
    Teacher,
)
from potstill.recipe.models import student_of


def distillation(
    method: str,
    *streams: Stream,
    learning_rate: float = 1e-4,
    batch_size: int = 2,
    steps: int = 60,
    dropout: bool = True,
) -> Recipe:
    """A recipe of one stage with these streams, and an equally long fine-tuning beside it."""
    return Recipe(
        method=method,
        baseline="equal_time_sft",
        stages=(
            Stage(
                teacher=Teacher(),
                streams=streams,
                optimizer=Optimizer(learning_rate=learning_rate),
                batch=Batching(size=batch_size),
                budget=Budget(steps=steps),
                dropout=dropout,
                checkpoint=Checkpoint(every=steps // 2, best_by="rouge_l"),
                evaluation=Evaluation(max_examples=40, generate_examples=8, max_new_tokens=64),
            ),
        ),
    )


def check_plain_text(path: str | None, **given: bool) -> None:
    """Refuse settings of a loss on plain text where there is none.

    Args:
        path: of the text. given: whether each of the settings was set.
    Raises: ValueError, naming the first.
    """
    if path is None and any(given.values()):
        name = next(name for name, there in given.items() if there)
        raise ValueError(f"{name} is of the loss on plain text, and plain_text is not set")


def _learner(value: Any) -> Any:
    """A number is short for that many layers of its teacher."""
    return {"kind": "pruned", "keep_layers": value} if isinstance(value, int) else student_of(value)


Learner = Annotated[Student, BeforeValidator(_learner)]


def stage_of(method: str, settings: Mapping[str, Any] = {}) -> Stage:
    """The stage of a built-in method, for a recipe that has it among others.

    Args:
        settings: the method's parameters, and keys of its stage.
    Raises: ValueError for a method that has no single stage with a teacher, and for settings that are not its own.
    """
    from potstill.recipes import METHODS  # of which the caller is one

    if method not in METHODS or not _is_taught_once(METHODS[method]()):
        known = ", ".join(name for name, build in METHODS.items() if _is_taught_once(build()))
        raise ValueError(f"stage_method is {method}, which has no teacher in one stage. It is one of {known}")
    try:
        made = recipe_io.load(method, settings, methods=METHODS)
    except ConfigError as error:
        raise ValueError(f"stage_settings are not of {method}: {error}") from None
    if made != METHODS[method]().model_copy(update={"stages": made.stages}):
        raise ValueError("stage_settings are of one stage, and not of the run. Set what is of the run beside them")
    return made.stage.model_copy(update={"method": method})


def _is_taught_once(recipe: Recipe) -> bool:
    return len(recipe.stages) == 1 and recipe.stage.teacher is not None
