"""What models answered to the same prompts, those first on which the students differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.reporting.comparison.table import Entry, Key


@dataclass(frozen=True)
class Answer:
    """What one model wrote, and what it is worth by the measure of its source; None where it was not scored."""

    entry: Entry
    text: str
    score: float | None


@dataclass(frozen=True)
class Sample:
    """One example. ``spread``: how far apart the trained models' scores are."""

    source: str
    id: str
    prompt: str
    references: tuple[str, ...]
    answers: tuple[Answer, ...]
    spread: float


def side_by_side(
    source: str, entries: Sequence[Entry], rows: Mapping[str, Mapping[Key, Mapping[str, Any]]], score: str
) -> list[Sample]:
    """Examples that at least one model answered, the most disputed first, then in the order of the first model's rows.

    Args:
        source: where they are from, for people.
        rows: of each entry's key, by example, as ``eval/*.rows.jsonl`` and suites have them.
        score: the name of what an answer is worth.
    """
    examples = {key: row for some in rows.values() for key, row in some.items()}
    found = []
    for key, row in examples.items():
        answers = [
            Answer(entry, text, there["scores"].get(score))
            for entry in entries
            if (there := rows.get(entry.key, {}).get(key)) and (text := _first(there["predictions"])) is not None
        ]
        if answers:
            found.append(
                Sample(source, row["id"], row["input"], tuple(row["references"]), tuple(answers), _spread(answers))
            )
    return sorted(found, key=lambda sample: -sample.spread)


def _first(predictions: Mapping[str, Any]) -> str | None:
    """The greedy answer, or where there is none the first that is text."""
    texts = [predictions.get("greedy"), predictions.get("written"), *predictions.values()]
    return next((text for text in texts if isinstance(text, str)), None)


def _spread(answers: Sequence[Answer]) -> float:
    scores = [a.score for a in answers if a.score is not None and a.entry.is_trained]
    return max(scores) - min(scores) if len(scores) > 1 else 0.0
