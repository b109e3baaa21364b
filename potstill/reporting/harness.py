"""Figures of standard tasks as tables: one for each task, a row for each model, with lm-eval's standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.evaluation.harness import HarnessResult
from potstill.reporting.text import markdown_table


def markdown(results: Sequence[HarnessResult]) -> str:
    """A table for each task, below what its figures depend on. A group that has a mean is shown by that alone."""
    by_task = {task: [one for one in results if one.task == task] for task in dict.fromkeys(r.task for r in results)}
    return "\n\n".join(_table(task, some) for task, some in by_task.items())


def told(result: HarnessResult) -> str:
    """How models were asked, in a line."""
    members, settings = result.settings["members"], result.settings["settings"]
    several = [f"{len(members)} tasks"] if len(members) > 1 else []
    versions = ", ".join(sorted({str(one["version"]) for one in members.values()}))
    shots = ", ".join(str(count) for count in sorted({one["num_fewshot"] for one in members.values()}))
    return "; ".join(
        [
            *several,
            f"version {versions}",
            f"{sum(one['num_documents'] for one in members.values())} documents",
            f"{shots} examples before each",
            "chat template" if settings["chat"] else "no chat template",
            f"lm-eval {result.settings['lm_eval']}",
        ]
    )


def _table(task: str, results: Sequence[HarnessResult]) -> str:
    parts = _parts(task, results[0])
    shown = dict.fromkeys(metric for one in results for part in parts for metric in one.scores["figures"][part])
    less = {metric for one in results for metric in one.scores["less_is_better"]}
    named = [f"{metric} (less is better)" if metric.split(",")[0] in less else metric for metric in shown]
    of_part = ["task"] if parts != [task] else []
    head = ["model", *of_part, *named, "seconds"]
    rows = [
        [one.model, *([part] if of_part else []), *(_cell(one, part, metric) for metric in shown), _seconds(one)]
        for one in results
        for part in parts
    ]
    return f"{task}: {told(results[0])}\n\n{markdown_table(head, rows)}"


def _parts(task: str, result: HarnessResult) -> list[str]:
    """What has figures of its own: the task or group itself, or the members of a group without a mean, or of a tag."""
    figures = result.scores["figures"]
    return [task] if task in figures else list(figures)


def _cell(result: HarnessResult, part: str, metric: str) -> str:
    figure: dict[str, Any] = result.scores["figures"][part].get(metric, {})
    if figure.get("value") is None:
        return "-"
    spread = figure["stderr"]
    return _number(figure["value"]) + ("" if spread is None else f" ± {_number(spread)}")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _seconds(result: HarnessResult) -> str:
    return f"{result.scores['seconds']:.0f}"
