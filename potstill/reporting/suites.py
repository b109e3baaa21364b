"""Results of suites as tables: a row for each model, a figure with its 95% interval in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.evaluation.metrics.significance import Difference, holm, paired_difference
from potstill.evaluation.suites import SUITES
from potstill.evaluation.suites.run import Result
from potstill.evaluation.suites.suite import Weighed
from potstill.reporting.text import markdown_table


@dataclass(frozen=True)
class Against:
    """A model less the first one, item by item, on a suite's primary figure; ``p_holm`` is right for all of them."""

    suite: str
    figure: str
    model: str
    first: str
    difference: Difference
    p_holm: float


def markdown(results: Sequence[Result]) -> str:
    """A table for each suite, below what it depends on, and what of it is more than chance."""
    tables = [_table(name, some) for name, some in _by_suite(results)]
    compared = differences(results)
    return "\n\n".join([*tables, *([_differences(compared)] if compared else [])])


def differences(results: Sequence[Result]) -> list[Against]:
    """Every model against the first, on the items that both answered; nothing for a suite that one model answered."""
    found = [(name, *pair) for name, some in _by_suite(results) for pair in _pairs(some)]
    adjusted = holm([difference.p for *_, difference in found])
    return [
        Against(name, figure, model, first, difference, p)
        for (name, figure, model, first, difference), p in zip(found, adjusted, strict=True)
    ]


def _pairs(results: Sequence[Result]) -> Iterator[tuple[str, str, str, Difference]]:
    first, *others = results
    base = scores_of_each(first)
    for other in others:
        ours = scores_of_each(other)
        both = [(ours[id].value, base[id].value, base[id].weight) for id in ours if id in base]
        if both:
            values, theirs, weights = zip(*both, strict=True)
            difference = paired_difference(values, theirs, weights=weights)
            yield SUITES[first.suite].protocol.primary, other.model, first.model, difference


def scores_of_each(result: Result) -> dict[str, Weighed]:
    """The suite's primary figure by item, without items of which it could not be computed."""
    rows = result.rows
    values = SUITES[result.suite].protocol.of_each(rows)
    return {row["id"]: value for row, value in zip(rows, values, strict=True) if value is not None}


def _differences(compared: Sequence[Against]) -> str:
    """A table of differences: paired over items, 95% intervals, p after Holm's correction over the whole table."""
    head = ("suite", "figure", "model", "less", "difference", "p", "p, Holm")
    rows = [(c.suite, c.figure.replace("_", " "), c.model, c.first, *_difference(c)) for c in compared]
    return f"Differences, paired over items:\n\n{markdown_table(head, rows)}"


def _difference(against: Against) -> tuple[str, str, str]:
    found = against.difference
    return f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}]", f"{found.p:.2g}", f"{against.p_holm:.2g}"


def _by_suite(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    for name in dict.fromkeys(result.suite for result in results):
        yield name, [result for result in results if result.suite == name]


def _table(name: str, results: Sequence[Result]) -> str:
    headline = SUITES[name].protocol.headline
    shown = [key for key in headline if any(key in result.scores for result in results)]
    head = ("model", *(key.replace("_", " ") for key in shown), "shortened", "seconds")
    rows = [(r.model, *(figure(r.scores.get(key)) for key in shown), *_effort(r)) for r in results]
    return f"{name}: {told(results[0])}\n\n{markdown_table(head, rows)}"


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
    if asked["frame"] != "{prompt}":
        frames = (asked["frame"], *asked.get("variants", ()))
        parts.append(f"asked as {' and as '.join(map(repr, frames))}")
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
