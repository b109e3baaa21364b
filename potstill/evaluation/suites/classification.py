"""Choices: which option a model finds likeliest, and which one it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from potstill.data.catalogue.item import Item
from potstill.data.examples import Unusable
from potstill.evaluation.metrics.classification import (
    calibration_error,
    confusion_matrix,
    macro_f1,
    named_option,
    option_probabilities,
)
from potstill.evaluation.suites.scoring import ByPrimary, by_group, column, interval, mean_scores
from potstill.evaluation.suites.subject import Subject
from potstill.evaluation.suites.suite import Row, Scores, Settings, row_of

WAYS = ("likelihood", "normalised", "generated")


class Classification(ByPrimary):
    """Accuracy in three ways, because they need not agree: by the likelihood of each option's text, by that for each
    token (which does not favour short options), and by what is written, where an answer that names no option is wrong.

    Figures beside them: how often nothing could be read from what was written; expected calibration error of both
    likelihoods (15 bins); where all items have the same options, macro-F1 and the confusion matrix.

    Asked in several frames, an option is as probable as it is on average over them, and the answer that is read is that
    to the first. The mean is over probabilities, not their logarithms: it is how probable the option is where one does
    not know in which of these words the question will come, and a frame that all but rules an option out does not
    decide alone. Beside them each frame's own accuracy in all three ways, and ``frame_agreement``: how often the same
    option is the likeliest in all frames.

    Source: Liu et al. 2021, Pre-train, Prompt, and Predict, arXiv:2107.13586, prompt ensembling by uniform averaging.
    """

    version = 1
    max_frames: int | None = None
    shortens = True
    headline: tuple[str, ...] = (
        "accuracy_likelihood",
        "accuracy_normalised",
        "accuracy_generated",
        "parse_failure_rate",
        "macro_f1_likelihood",
        "frame_agreement",
    )
    primary = "accuracy_likelihood"

    def check(self, item: Item) -> None:
        """Raises: Unusable where there are not two options, or none is right."""
        if len(item.options) < 2 or item.answer is None:
            raise Unusable(f"{len(item.options)} options to choose from, or none that is right")

    def ask(self, subject: Subject, items: Sequence[Item], settings: Settings) -> list[Row]:
        said = [_asked(subject, items, settings, frame) for frame in settings.frames]
        prompts = settings.framed(items)
        return [
            _row(item, prompt, settings.frames, by_frame)
            for item, prompt, *by_frame in zip(items, prompts, *said, strict=True)
        ]

    def scores(self, rows: Sequence[Row], settings: Settings) -> Scores:
        found = mean_scores(rows)
        for way in ("likelihood", "normalised"):
            confidences = [row["predictions"]["confidence"][way] for row in rows]
            right = [bool(row["scores"][f"accuracy_{way}"]) for row in rows]
            found[f"calibration_error_{way}"] = calibration_error(confidences, right)
        if groups := by_group(rows, "accuracy_likelihood"):
            found["accuracy_likelihood_by_group"] = groups
        return found | _by_frame(rows, settings.frames) | _confusions(rows)


class Answer(NamedTuple):
    """What a model says to one prompt: how probable it finds each option, by both likelihoods, and what it writes."""

    probabilities: dict[str, Float[np.ndarray, " option"]]
    text: str


def _asked(subject: Subject, items: Sequence[Item], settings: Settings, frame: str) -> list[Answer]:
    prompts = settings.framed(items, frame)
    asked = [(prompt, option) for prompt, item in zip(prompts, items, strict=True) for option in item.options]
    nats = iter(subject.nats([prompt for prompt, _ in asked], [option for _, option in asked]))
    greedy = subject.decoding(settings.max_new_tokens, temperature=0.0)
    written = subject.write(prompts, [item.id for item in items], greedy, seed=0)
    return [
        Answer(_probabilities([next(nats) for _ in item.options]), text)
        for item, text in zip(items, written, strict=True)
    ]


def _probabilities(nats: Sequence[tuple[float, int]]) -> dict[str, Float[np.ndarray, " option"]]:
    logs = [-amount for amount, _ in nats]
    lengths = [count for _, count in nats]
    return {"likelihood": option_probabilities(logs), "normalised": option_probabilities(logs, lengths)}


def _mean(answers: Sequence[Answer]) -> Answer:
    first, *others = answers
    if not others:
        return first
    ways = {way: np.mean([answer.probabilities[way] for answer in answers], axis=0) for way in first.probabilities}
    return Answer(ways, first.text)


def _row(item: Item, prompt: str, frames: Sequence[str], answers: Sequence[Answer]) -> Row:
    predictions, scores = _judged(item, _mean(answers))
    if len(frames) > 1:
        judged = [_judged(item, answer) for answer in answers]
        predictions["by_frame"] = [
            {"frame": frame, **told, "scores": own} for frame, (told, own) in zip(frames, judged, strict=True)
        ]
        likeliest = {int(answer.probabilities["likelihood"].argmax()) for answer in answers}
        scores["frame_agreement"] = float(len(likeliest) == 1)
    return row_of(item, prompt, predictions, scores) | {"options": list(item.options)}


def _judged(item: Item, answer: Answer) -> tuple[dict[str, Any], dict[str, float]]:
    named = named_option(answer.text, item.options).option
    chosen = {way: int(of_each.argmax()) for way, of_each in answer.probabilities.items()} | {"generated": named}
    predictions: dict[str, Any] = {
        "written": answer.text,
        "chosen": {way: None if at is None else item.options[at] for way, at in chosen.items()},
        "confidence": {way: float(of_each.max()) for way, of_each in answer.probabilities.items()},
    }
    scores = {f"accuracy_{way}": float(at == item.answer) for way, at in chosen.items()}
    return predictions, scores | {"parse_failure_rate": float(named is None)}


def _by_frame(rows: Sequence[Row], frames: Sequence[str]) -> Scores:
    """Each frame's own accuracies, where there are several."""
    if len(frames) == 1:
        return {}
    told = [[row["predictions"]["by_frame"][at] for row in rows] for at in range(len(frames))]
    names = [f"accuracy_{way}" for way in WAYS]
    return {
        f"{name}_by_frame": {
            frame: interval(column(own, name), of_trials=True) for frame, own in zip(frames, told, strict=True)
        }
        for name in names
    }


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
