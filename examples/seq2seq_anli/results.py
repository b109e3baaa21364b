"""results.md and results.json from what the runs and the suite measured: nobody types a figure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from small import Task

from potstill.evaluation.metrics.significance import bootstrap_interval
from potstill.reporting.text import markdown_table
from potstill.run import PARTS, RUNS, Run, read_jsonl, write_text

NAMES = {
    "teacher": "teacher, fine-tuned",
    "untouched": "student, fine-tuned",
    "student": "student, then MiniLLM",
    "single_step": "student, then MiniLLM with the paper's single step",
    "sft": "student, then fine-tuned for as long",
}
HEAD = (
    *("", "parameters", "accuracy", "less the fine-tuned student's", "accuracy of the likeliest label"),
    *("Rouge-L of the reasons", "reverse KL, nats"),
)
Figures = Mapping[str, Any]


def write_results(
    copying: Run,
    tasks: Sequence[Task],
    labels: Mapping[str, Mapping[str, Figures]],
    seconds: Mapping[str, Sequence[float]],
) -> None:
    """Write ``results.json`` and ``results.md`` into the current folder.

    Args:
        copying: the run that all begins with.
        tasks: what was learned, in order.
        labels: of each task and model the scores of the suite ``classification``.
        seconds: of each step processor and wall time.
    """
    copied = copying.evaluations()
    learned = {task.name: _measured(task, labels[task.name]) for task in tasks}
    found = {"copying": copied, "tasks": learned, "seconds": dict(seconds)}
    write_text(Path("results.json"), json.dumps(found, indent=1) + "\n")
    parts = [_copying(copied), *(_task(task, learned[task.name]) for task in tasks), _time(seconds)]
    write_text(Path("results.md"), "\n\n".join(parts) + "\n")


def _measured(task: Task, labels: Mapping[str, Figures]) -> dict[str, Any]:
    """Of each model what its run measured; beside it ``likeliest``, and ``gain``, the accuracy less that of the student
    that MiniLLM began with, row by row: mean and 95% interval."""
    right = {part: _right(*_place(task, part)) for part in labels}
    return {
        part: {
            **_place(task, part)[0].evaluations()[_place(task, part)[1]],
            "likeliest": scores["accuracy_likelihood"],
            "gain": _interval(right[part] - right["untouched"]),
        }
        for part, scores in labels.items()
    }


def _place(task: Task, part: str) -> tuple[Run, str]:
    """The run that measured a model, and what it calls it."""
    if part == "single_step":
        return Run(RUNS / f"{task.name}_single_step"), "student_after"
    return Run(RUNS / task.name).result, PARTS[part]


def _right(run: Run, model: str) -> Float[np.ndarray, " row"]:
    """1 where a model's answer is right, in the order of the rows."""
    return np.array([row["scores"]["accuracy"] for row in run.rows(model)])


def _interval(values: Float[np.ndarray, " row"]) -> dict[str, float]:
    low, high = bootstrap_interval(values)
    return {"mean": float(values.mean()), "low": low, "high": high}


def _copying(figures: Mapping[str, Figures]) -> str:
    before, after = figures["student_before"], figures["student_after"]
    rows = [
        (name, f"{one['accuracy']:.1%}", f"{one['rouge_l']:.1f}", f"{one['perplexity']:.1f}")
        for name, one in (("weights as drawn", before), ("trained to copy", after))
    ]
    table = markdown_table(("", "copied exactly", "Rouge-L", "perplexity"), rows)
    return f"Copying, {after['num_examples']} texts of stories that were not trained on\n\n{table}"


def _task(task: Task, models: Mapping[str, Figures]) -> str:
    labels = Counter(row["response"] for row in read_jsonl(Path(task.test)))
    (label, most), count = labels.most_common(1)[0], labels.total()
    table = markdown_table(HEAD, [_row(NAMES[part], one) for part, one in models.items()])
    return (
        f"{task.name}: trained on {', '.join(task.train)}; measured on the {count} rows of {task.test}. {task.note} "
        f"Always to answer {label} is right in {most / count:.1%}.\n\n{table}"
    )


def _row(name: str, one: Figures) -> tuple[str, ...]:
    return (
        name,
        f"{one['num_parameters']:,}",
        f"{one['accuracy']:.1%} [{one['accuracy_low']:.1%}, {one['accuracy_high']:.1%}]",
        "{mean:+.1%} [{low:+.1%}, {high:+.1%}]".format(**one["gain"]) if name != NAMES["untouched"] else "-",
        "{mean:.1%} [{low:.1%}, {high:.1%}]".format(**one["likeliest"]),
        f"{one['rationale_rouge_l']:.1f}",
        f"{one.get('reverse_kl_nats', 0):.3f}",
    )


def _time(seconds: Mapping[str, Sequence[float]]) -> str:
    rows = [(name, f"{own:.0f}", f"{wall:.0f}") for name, (own, wall) in seconds.items()]
    total = tuple(f"{sum(column):.0f}" for column in zip(*seconds.values(), strict=True))
    return markdown_table(("seconds", "of processor", "of wall"), [*rows, ("all", *total)])
