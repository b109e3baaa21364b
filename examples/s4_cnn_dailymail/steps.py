"""The steps: two fine-tunings, then every method from the same student. Each is a recipe in ``full/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import potstill
from potstill import recipe_io
from potstill.recipe import Recipe
from potstill.recipes import METHODS
from potstill.run import RUNS, Run

FULL = Path(__file__).with_name("full")
TEACHER, STUDENT = "sft_teacher", "sft_student"
DISTILLED = ("forward_kl", "reverse_kl", "jensen_shannon", "policy_gradient", "penalised_policy_gradient")
STEPS = (TEACHER, STUDENT, "sft_continued", *DISTILLED)


def recipe_file(step: str) -> Path:
    """The full-size recipe of a step. Its paths are relative to the output folder."""
    return FULL / f"{step}.yaml"


def recipe_of(step: str, overrides: dict[str, Any]) -> Recipe:
    """The step's recipe with settings changed. Raises: ConfigError."""
    return recipe_io.load(recipe_file(step), overrides, methods=METHODS)


def small(steps: int) -> dict[str, Any]:
    """What is changed for two cores and a model of 260 thousand parameters; README.md says why."""
    return {
        "data": {"max_prompt_tokens": 160, "max_response_tokens": 448},
        "optimizer": {"learning_rate": 1e-3},
        "batch": {"size": 8, "micro_size": 8},
        "budget": {"steps": steps},
        "checkpoint": {"every": max(30, steps // 2)},
        "evaluation": {"max_examples": 32, "generate_examples": 8, "batch_size": 16},
        "dtype": "float32",
    }


def tiny(sizes: dict[str, Any]) -> dict[str, Any]:
    """The same with as little measured in each run as shows that it runs."""
    return sizes | {"evaluation": {"max_examples": 4, "generate_examples": 2, "max_new_tokens": 8}}


def overrides_of(step: str, sizes: dict[str, Any], teacher: str | None, student: Any) -> dict[str, Any]:
    """What is changed in a step's recipe.

    Args:
        step: which.
        sizes: changes that all steps share.
        teacher: the model that is fine-tuned as the teacher; the recipe's own where None.
        student: likewise, or the settings of a student that is cut from a model.
    """
    model = {TEACHER: teacher, STUDENT: student}.get(step)
    return sizes | ({"student": model} if model else {})


def run_step(step: str, overrides: dict[str, Any]) -> bool:
    """Train a step in ``runs/`` of the current folder, or go on with it; false where it was finished already."""
    run = Run(RUNS / step)
    if (run.student / "config.json").exists() and run.report_file.exists():
        return False
    if run.metrics_file.exists():
        potstill.resume(run)
    else:
        potstill.train(recipe_file(step), **overrides)
    return True


def parameters(step: str) -> str:
    """The model that a step began from, by its last name, and its size."""
    run = Run(RUNS / step)
    size = run.read("eval/student_after")["num_parameters"]
    return f"{Path(run.read('student')['from']).name}, {size:,} parameters"


def held_out() -> dict[str, dict[str, float]]:
    """What the runs measured on validation articles: perplexity, and forward KL where a teacher was asked."""
    found = {step: Run(RUNS / step).read("eval/student_after") for step in STEPS}
    found[STUDENT] = Run(RUNS / DISTILLED[0]).read("eval/student_before")  # the same student, beside its teacher
    found[TEACHER] = Run(RUNS / DISTILLED[0]).read("eval/teacher")
    return found
