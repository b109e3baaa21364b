"""results.md and results.json from what the runs and the suite measured: nobody types a figure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from small import Task

from potstill.reporting.text import markdown_table
from potstill.run import PARTS, RUNS, Run, read_jsonl, write_text

NAMES = {
    "teacher": "teacher, fine-tuned",
    "untouched": "student, fine-tuned",
    "student": "student, then MiniLLM",
    "sft": "student, then fine-tuned for as long",
}
HEAD = ("", "parameters", "accuracy", "accuracy of the likeliest label", "Rouge-L of the reasons", "reverse KL, nats")
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
    found = {
        "copying": copying.evaluations(),
        "tasks": {task.name: _measured(task, labels[task.name]) for task in tasks},
        "seconds": dict(seconds),
    }
    write_text(Path("results.json"), json.dumps(found, indent=1) + "\n")
    parts = [_copying(found["copying"]), *(_task(task, found["tasks"][task.name]) for task in tasks), _time(seconds)]
    write_text(Path("results.md"), "\n\n".join(parts) + "\n")


def _measured(task: Task, labels: Mapping[str, Figures]) -> dict[str, Any]:
    """Of each model what its run measured, with ``likeliest`` beside it: mean and 95% interval."""
    own = Run(RUNS / task.name).result.evaluations()
    return {part: {**own[PARTS[part]], "likeliest": scores["accuracy_likelihood"]} for part, scores in labels.items()}


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
        "{mean:.1%} [{low:.1%}, {high:.1%}]".format(**one["likeliest"]),
        f"{one['rationale_rouge_l']:.1f}",
        f"{one.get('reverse_kl_nats', 0):.3f}",
    )


def _time(seconds: Mapping[str, Sequence[float]]) -> str:
    rows = [(name, f"{own:.0f}", f"{wall:.0f}") for name, (own, wall) in seconds.items()]
    total = tuple(f"{sum(column):.0f}" for column in zip(*seconds.values(), strict=True))
    return markdown_table(("seconds", "of processor", "of wall"), [*rows, ("all", *total)])
