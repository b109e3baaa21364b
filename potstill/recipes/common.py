"""What the built-in methods share, so that a comparison of two of them compares the methods.

The size is the demo's: a student of 63 M parameters and a few minutes of two CPU cores. For a task set
budget.epochs, a larger batch and evaluation.max_examples. A student that is to write its own text has to be able to
write: start from one that was trained (``student=runs/kd-1/student``) and not from one that was just cut. The
learning rate is for that. The best checkpoint is the one with the highest Rouge-L of greedy answers to the
validation prompts, as in MiniLLM, or a newer one within its standard error: these are few.
"""

from __future__ import annotations

from potstill.recipe import (
    Batching,
    Budget,
    Checkpoint,
    Evaluation,
    Optimizer,
    Recipe,
    Stage,
    Stream,
    Teacher,
)


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
