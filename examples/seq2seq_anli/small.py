"""What this size changes: of the recipe ``anli_minillm``, and of ``sft``. Everything else is as they have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.recipes.anli_minillm import RATES

VOCAB_SIZE, WIDTH, TEACHER_LAYERS, STUDENT_LAYERS = 2000, 128, 3, 2  # layers in each stack
ROUNDS = ("r1", "r2", "r3")


@dataclass(frozen=True)
class Task:
    """Rows in three rounds, and how long they are trained on.

    Args:
        name: of the task and of its run.
        train: the rounds' rows, in order. test: what is measured once each training is done.
        teacher_epochs, student_epochs: of each round.
        minillm_steps: of the last stage.
        controls: whether the last stage is set beside fine-tuning for as long, and beside the paper's single step.
        note: what a reader of its table has to know.
    """

    name: str
    train: tuple[str, str, str]
    test: str
    teacher_epochs: float
    student_epochs: float
    minillm_steps: int
    controls: bool
    note: str


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    copies: tuple[int, int] = (15_000, 200)  # texts to train on, texts to measure
    animals: tuple[int, int] = (1_200, 300)  # rows, likewise
    anli_test: int = 300  # of R1's 1,000 test rows
    validation: int = 60  # rows of a round that choose its checkpoint
    watched: int = 60  # test rows that are measured after a round that is not the last
    copy_steps: int = 3_200
    share: float = 1.0  # of the epochs and steps of the tasks
    max_new_tokens: int = 48


FULL = Sizes()
SMOKE = Sizes(
    copies=(64, 4), animals=(60, 4), anli_test=4, validation=2, watched=2, copy_steps=2, share=0.03, max_new_tokens=4
)


def tasks(sizes: Sizes) -> tuple[Task, Task]:
    """Animals can be learned by a model this small; ANLI is what the recipe is for."""
    animals = Task(
        name="animals",
        train=("data/animals_r1.jsonl", "data/animals_r2.jsonl", "data/animals_r3.jsonl"),
        test="data/animals_test.jsonl",
        teacher_epochs=4 * sizes.share,
        student_epochs=1 * sizes.share,
        minillm_steps=_steps(100, sizes.share),
        controls=True,
        note="Test sentences are of other stories.",
    )
    anli = Task(
        name="anli",
        train=("anli:r1_dev", "anli:r2_dev", "anli:r3_dev"),
        test="data/anli_r1_test.jsonl",
        teacher_epochs=1 * sizes.share,
        student_epochs=1 * sizes.share,
        minillm_steps=_steps(100, sizes.share),
        controls=False,
        note="These are ANLI's dev rows, not its train rows, and a part of the first round's test rows.",
    )
    return animals, anli


def _steps(steps: int, share: float) -> int:
    return max(2, round(steps * share))


# --- Settings by key, as `potstill train` takes them ------------------------------------------------------------------


def copying(sizes: Sizes) -> dict[str, Any]:
    """``sft`` on texts that are their own answers, from weights drawn anew."""
    return {
        "student.kind": "fresh",
        "student.model": "t5",
        "data.path": "data/copy_train.jsonl",
        "data.heldout": "data/copy_test.jsonl",
        "data.validation_fraction": 0.01,
        "optimizer.learning_rate": 2e-3,
        "batch": 16,
        "budget.steps": sizes.copy_steps,
        "checkpoint.every": _steps(sizes.copy_steps, 1 / 4),
        "checkpoint.best_by": "perplexity",
        "evaluation.accuracy": "exact",
        **_measured("evaluation", sizes.copies[1], sizes),
        **_EVERYWHERE,
    }


def fine_tuning(task: Task, epochs: float, sizes: Sizes) -> dict[str, Any]:
    """What is changed in r1, r2 and r3. The recipe has rates of a pretrained T5 and epochs of a large train split."""
    found: dict[str, Any] = {"train": list(task.train), "heldout": [task.test] * 3, **_EVERYWHERE}
    for name, rate in zip(ROUNDS, RATES, strict=True):
        found |= _changed(name, sizes) | {f"{name}.optimizer.learning_rate": 10 * rate}
        found |= {f"{name}.budget.epochs": epochs, f"{name}.checkpoint.every": 50}
        found |= _measured(f"{name}.evaluation", sizes.watched, sizes)
        found |= {f"{name}.evaluation.leave_out": ["untouched", "samples"]}
    return found


def distilling(task: Task, sizes: Sizes) -> dict[str, Any]:
    """What is changed in the last stage."""
    return {
        **_changed("minillm", sizes),
        "minillm.optimizer.learning_rate": 10 * RATES[-1],  # the same as in the last round, as in the recipe
        "minillm.budget.steps": task.minillm_steps,
        "minillm.streams.0.source.max_new_tokens": sizes.max_new_tokens,  # 180
        "minillm.data.max_prompt_tokens": 320,  # 180 would cut rows that the rounds saw whole
        **_measured("minillm.evaluation", 300, sizes),
        "baseline": "equal_time_sft" if task.controls else "none",
    }


def cut(model: str) -> dict[str, Any]:
    """The first stage's student: some of a model's layers, the encoder's and the decoder's."""
    return {
        "r1.student.kind": "pruned",
        "r1.student.model": model,
        "r1.student.keep_layers": STUDENT_LAYERS,
        "r1.student.freeze_embeddings": False,
    }


_EVERYWHERE: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


def _changed(stage: str, sizes: Sizes) -> dict[str, Any]:
    return {
        # What chooses the checkpoint is set aside from the round's own rows: there are no others.
        f"{stage}.data.validation_fraction": 0.1,
        f"{stage}.data.max_validation": sizes.validation,
        # Batches of 72 would be 14 in an epoch of 1,000 rows.
        f"{stage}.batch.size": 16,
        f"{stage}.batch.micro_size": 16,
    }


def _measured(section: str, num_rows: int, sizes: Sizes) -> dict[str, Any]:
    """Rows and lengths of an evaluation. Of the tasks, beams of 3 and repetition penalty 1.15 stay as they are."""
    return {
        f"{section}.max_examples": num_rows,
        f"{section}.generate_examples": num_rows,
        f"{section}.max_new_tokens": sizes.max_new_tokens,
        f"{section}.batch_size": 50,
        f"{section}.leave_out": ["samples"],
    }
