"""Choices: which option a model finds likeliest, and which one it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.data.catalogue.item import Item
from potstill.data.examples import Unusable
from potstill.evaluation.metrics.classification import (
    calibration_error,
    confusion_matrix,
    macro_f1,
    named_option,
    option_probabilities,
)
from potstill.evaluation.suites.scoring import ByPrimary, by_group, mean_scores
from potstill.evaluation.suites.subject import Subject
from potstill.evaluation.suites.suite import Row, Scores, Settings, row_of

WAYS = ("likelihood", "normalised", "generated")


class Classification(ByPrimary):
    """Accuracy in three ways, because they need not agree: by the likelihood of each option's text, by that for each
    token (which does not favour short options), and by what is written, where an answer that names no option is wrong.

    Figures beside them: how often nothing could be read from what was written; expected calibration error of both
    likelihoods (15 bins); where all items have the same options, macro-F1 and the confusion matrix.
    """

    version = 1
    shortens = True
    headline: tuple[str, ...] = (
        "accuracy_likelihood",
        "accuracy_normalised",
        "accuracy_generated",
        "parse_failure_rate",
        "macro_f1_likelihood",
    )
    primary = "accuracy_likelihood"

    def check(self, item: Item) -> None:
        """Raises: Unusable where there are not two options, or none is right."""
        if len(item.options) < 2 or item.answer is None:
            raise Unusable(f"{len(item.options)} options to choose from, or none that is right")

    def ask(self, subject: Subject, items: Sequence[Item], settings: Settings) -> list[Row]:
        prompts = settings.framed(items)
        asked = [(prompt, option) for prompt, item in zip(prompts, items, strict=True) for option in item.options]
        nats = iter(subject.nats([prompt for prompt, _ in asked], [option for _, option in asked]))
        greedy = subject.decoding(settings.max_new_tokens, temperature=0.0)
        written = subject.write(prompts, [item.id for item in items], greedy, seed=0)
        return [
            _row(item, prompt, [next(nats) for _ in item.options], text)
            for item, prompt, text in zip(items, prompts, written, strict=True)
        ]

    def scores(self, rows: Sequence[Row], settings: Settings) -> Scores:
        found = mean_scores(rows)
        for way in ("likelihood", "normalised"):
            confidences = [row["predictions"]["confidence"][way] for row in rows]
            right = [bool(row["scores"][f"accuracy_{way}"]) for row in rows]
            found[f"calibration_error_{way}"] = calibration_error(confidences, right)
        if groups := by_group(rows, "accuracy_likelihood"):
            found["accuracy_likelihood_by_group"] = groups
        return found | _confusions(rows)


def _row(item: Item, prompt: str, nats: Sequence[tuple[float, int]], text: str) -> Row:
    full = option_probabilities([-amount for amount, _ in nats])
    normalised = option_probabilities([-amount for amount, _ in nats], [count for _, count in nats])
    named = named_option(text, item.options)
    chosen = {"likelihood": int(full.argmax()), "normalised": int(normalised.argmax()), "generated": named.option}
    predictions: dict[str, Any] = {
        "written": text,
        "chosen": {way: None if at is None else item.options[at] for way, at in chosen.items()},
        "confidence": {"likelihood": float(full.max()), "normalised": float(normalised.max())},
    }
    scores = {f"accuracy_{way}": float(at == item.answer) for way, at in chosen.items()}
    scores["parse_failure_rate"] = float(named.option is None)
    return row_of(item, prompt, predictions, scores) | {"options": list(item.options)}


def _confusions(rows: Sequence[Row]) -> Scores:
    """Macro-F1 and counts of gold labels by answers, where the options are labels and not each item's own."""
    labels = rows[0]["options"] if rows else []
    if not rows or any(row["options"] != labels for row in rows):
        return {}
    found: Scores = {"labels": [*labels, "no label"]}
    gold = [row["references"][0] for row in rows]
    for way in WAYS:
        counts = confusion_matrix(gold, [row["predictions"]["chosen"][way] for row in rows], labels)
        found[f"confusion_{way}"] = np.asarray(counts).tolist()
        found[f"macro_f1_{way}"] = macro_f1(counts)
    return found
