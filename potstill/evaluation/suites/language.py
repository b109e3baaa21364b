"""Plain text: how well a model predicts documents, by the token and by the byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from potstill.data.catalogue.item import Item
from potstill.data.examples import Tokenised
from potstill.evaluation.metrics.language import language_figures
from potstill.evaluation.suites.scoring import ByPrimary
from potstill.evaluation.suites.subject import Subject
from potstill.evaluation.suites.suite import Row, Scores, Settings, Weighed, row_of


class Language(ByPrimary):
    """Perplexity and bits per byte of whole documents.

    A document longer than ``max_prompt_tokens`` is read in windows of that many tokens, each of which starts anew: its
    first token has only the end token before it. Bits per byte compares models of different tokenizers.
    """

    version = 1
    max_frames: int | None = 0
    shortens = False
    headline: tuple[str, ...] = ("perplexity", "bits_per_byte")
    primary = "bits_per_byte"
    better: Literal["higher", "lower"] = "lower"

    def ask(self, subject: Subject, items: Sequence[Item], settings: Settings) -> list[Row]:
        size = subject.room_for_prompt(settings.max_prompt_tokens, 1)  # one for the end that stands before
        windows = [_windows(item, subject, size) for item in items]
        nats = iter(subject.nats_of([window for some in windows for window in some]))
        return [_row(item, [next(nats) for _ in some]) for item, some in zip(items, windows, strict=True)]

    def scores(self, rows: Sequence[Row], settings: Settings) -> Scores:
        columns = ([row["scores"][name] for row in rows] for name in ("nats", "tokens", "bytes"))
        return dict(language_figures(*columns))

    def of_each(self, rows: Sequence[Row]) -> list[Weighed | None]:
        """Bits per byte of each document, which counts for as much as it has bytes."""
        scores = [row["scores"] for row in rows]
        return [Weighed(s["nats"] / math.log(2) / s["bytes"], s["bytes"]) if s["bytes"] else None for s in scores]


def _windows(item: Item, subject: Subject, size: int) -> list[Tokenised]:
    end = subject.tokenizer.eos_token_id
    ids = subject.tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
    pieces = [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    return [Tokenised(item.id, (end,), piece, "", "", truncated=True) for piece in pieces]


def _row(item: Item, nats: Sequence[tuple[float, int]]) -> Row:
    scores: dict[str, float | None] = {
        "nats": sum(part for part, _ in nats),
        "tokens": sum(count for _, count in nats),
        "bytes": len(item.prompt.encode("utf-8")),
    }
    return row_of(item, item.prompt, {}, scores)
