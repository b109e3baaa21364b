"""Results of suites as tables: a row for each model, a figure with its 95% interval in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from potstill.evaluation.suites import SUITES
from potstill.evaluation.suites.run import Result


def markdown(results: Sequence[Result]) -> str:
    """A table for each suite, below what it depends on."""
    return "\n\n".join(_table(name, some) for name, some in _by_suite(results))


def _by_suite(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    for name in dict.fromkeys(result.suite for result in results):
        yield name, [result for result in results if result.suite == name]


def _table(name: str, results: Sequence[Result]) -> str:
    headline = SUITES[name].protocol.headline
    shown = [key for key in headline if any(key in result.scores for result in results)]
    head = ("model", *(key.replace("_", " ") for key in shown), "shortened", "seconds")
    rows = [(r.model, *(figure(r.scores.get(key)) for key in shown), *_effort(r)) for r in results]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"{name}: {told(results[0])}", "", *lines])


def _effort(result: Result) -> tuple[str, str]:
    return str(result.scores["num_shortened"]), f"{result.scores['seconds']:.0f}"


def told(result: Result) -> str:
    """How the models were asked, in a line: a score is nothing without it."""
    asked = result.settings["settings"]
    parts = [
        f"{result.settings['num_items']} items",
        f"at most {asked['max_prompt_tokens']} tokens asked and {asked['max_new_tokens']} written",
        f"template {asked['template']}",
    ]
    if asked["seeds"]:
        parts.append(f"temperature {asked['temperature']:g} with seeds {', '.join(map(str, asked['seeds']))}")
    if asked["no_repeat_ngram"]:
        parts.append(f"no {asked['no_repeat_ngram']} tokens in a row twice")
    return "; ".join(parts)


def figure(score: Any) -> str:
    """A mean with its interval, or a number by itself; a dash for what could not be computed."""
    if isinstance(score, dict):
        if score["mean"] is None:
            return "-"
        spread = f" ± {score['deviation_of_seeds']:.2f} over seeds" if "deviation_of_seeds" in score else ""
        return f"{_number(score['mean'])} [{_number(score['low'])}, {_number(score['high'])}]{spread}"
    return "-" if score is None or score != score else _number(score)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
