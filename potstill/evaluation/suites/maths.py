"""Word problems: whether a written answer comes to the right number, whatever it looks like."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.data.catalogue.item import Item
from potstill.data.examples import Unusable
from potstill.evaluation.metrics.arithmetic import evaluate, final_number, same_value
from potstill.evaluation.suites.scoring import ByPrimary, by_group, mean_scores
from potstill.evaluation.suites.subject import Subject
from potstill.evaluation.suites.suite import Row, Scores, Settings, row_of


class Maths(ByPrimary):
    """Accuracy by value, to one part in ten thousand, of a greedy answer: its equation, or the number it ends in.

    An answer without a number is wrong, and counted by ``parse_failure_rate``. Nothing that a model writes is executed.
    """

    version = 1
    shortens = True
    headline: tuple[str, ...] = ("accuracy", "parse_failure_rate")
    primary = "accuracy"

    def check(self, item: Item) -> None:
        """Raises: Unusable where the first reference has no value."""
        gold = evaluate(item.references[0] if item.references else "")
        if gold.value is None:
            raise Unusable(f"its answer has no value: {gold.reason}")

    def ask(self, subject: Subject, items: Sequence[Item], settings: Settings) -> list[Row]:
        prompts = settings.framed(items)
        greedy = subject.decoding(settings.max_new_tokens, temperature=0.0)
        written = subject.write(prompts, [item.id for item in items], greedy, seed=0)
        return [_row(item, prompt, text) for item, prompt, text in zip(items, prompts, written, strict=True)]

    def scores(self, rows: Sequence[Row], settings: Settings) -> Scores:
        groups = by_group(rows, "accuracy")
        return mean_scores(rows) | ({"accuracy_by_group": groups} if groups else {})


def _row(item: Item, prompt: str, text: str) -> Row:
    gold = evaluate(item.references[0])
    found = final_number(text)
    predictions = {"written": text, "value": found.value, "why_none": found.reason}
    scores = {"accuracy": float(same_value(found.value, gold.value)), "parse_failure_rate": float(found.value is None)}
    return row_of(item, prompt, predictions, scores)
