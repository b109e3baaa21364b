"""Which figures the run of a recipe measures of its student: a metric that no cell will have is refused beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from potstill.errors import ConfigError, nearest
from potstill.recipe import (
    METRICS_OF_ANSWERS,
    METRICS_TO_MAXIMISE,
    METRICS_TO_MINIMISE,
    METRICS_WITHOUT_TEACHER,
    Recipe,
)

OF_A_TEACHER = tuple(
    name for name in (*METRICS_TO_MINIMISE, *METRICS_TO_MAXIMISE) if name not in METRICS_WITHOUT_TEACHER
)
# Of the text that a student is to write: another text, another figure.
OF_TEXT = (*OF_A_TEACHER, "perplexity", "rouge_l", "rouge_l_sampled")
ALWAYS = (
    "perplexity",
    "rouge_l",
    "num_examples",
    "num_tokens",
    "num_generated_examples",
    "num_parameters",
    "size_on_disk_bytes",
    "tokens_per_s",
    "cut_share",
)
OF_MODELS = ("mass_outside",)  # only where a head has rows that are left out, which the models alone can tell
OF_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
FORMS = "label_then_rationale or rationale_then_label"
WAYS = dict.fromkeys(OF_A_TEACHER, "It compares with a teacher: set teacher. ")
WAYS |= dict.fromkeys(OF_ACCURACY, "Set evaluation.accuracy to exact or equation. ")
WAYS |= {"rouge_l_sampled": "Take samples out of evaluation.leave_out. "}
WAYS |= {"rationale_rouge_l": f"Set data.target to {FORMS}. "}


def figures_of(recipe: Recipe) -> tuple[str, ...]:
    """The figures in ``eval/student_after.json`` of this recipe's run, standard errors and OF_MODELS left out."""
    stage, found = recipe.stage, [*ALWAYS]
    if stage.teacher:
        found += OF_A_TEACHER
    if stage.evaluation.accuracy != "none":
        found += OF_ACCURACY
    if stage.data.target != "response":
        found.append("rationale_rouge_l")
    if "samples" not in stage.evaluation.leave_out:
        found.append("rouge_l_sampled")
    return tuple(found)


def mistake(metric: str, recipes: Sequence[Recipe]) -> tuple[str, str] | None:
    """Why a figure is none that a sweep can be about, and the way out; None where it is one.

    Args:
        metric: a key of ``eval/student_after.json``.
        recipes: of the cells; where they are not known, only what no run can have is refused.
    """
    there = sorted({name for recipe in recipes for name in figures_of(recipe)} if recipes else {*ALWAYS, *WAYS})
    if metric in _with_errors(there) or metric in OF_MODELS:
        return None
    if way := WAYS.get(metric.removesuffix("_stderr")):
        return f"{metric} is not measured in any cell", f"{way}There are {', '.join(there)}"
    return f"{metric} is no figure that a run measures", f"{nearest(metric, there)}There are {', '.join(there)}"


def check_validated(metric: str, recipes: Sequence[Recipe]) -> None:
    """Refuse a figure that no cell measures while it is trained, and so has no curve.

    Raises: ConfigError.
    """
    there = list(dict.fromkeys(name for recipe in recipes for name in _validated(recipe)))
    if metric not in there:
        way = f"checkpoint.best_by={metric} validates by it; or set " if metric in METRICS_OF_ANSWERS else "set "
        raise ConfigError(
            f"--at needs a figure of validations, and {metric} is measured at the end alone",
            f"{way}metric to one of {', '.join(there)}",
        )


def _validated(recipe: Recipe) -> Iterator[str]:
    """The figures at each validation of this recipe's result."""
    stage = recipe.stage
    yield from OF_A_TEACHER if stage.teacher else ()
    yield "perplexity"
    if stage.checkpoint.best_by in METRICS_OF_ANSWERS:
        yield "rouge_l"
        yield from () if stage.evaluation.accuracy == "none" else ("accuracy",)


def _with_errors(names: Sequence[str]) -> Iterator[str]:
    """The figures and the standard errors of those that have one."""
    yield from names
    yield from (f"{name}_stderr" for name in names if name in (*OF_A_TEACHER, "perplexity"))
