"""Rows by split, and where a folder of them keeps what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.data.examples import Tokenised

SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class Prepared:
    """Token ids by split, in memory or read from a folder row by row, and ``counts``: what data.json says of them.

    ``views`` are what is asked of the train rows beside their own prompts, by stream.
    """

    train: Sequence[Tokenised]
    validation: Sequence[Tokenised]
    heldout: Sequence[Tokenised]
    counts: dict[str, Any]
    views: Mapping[str, Sequence[Tokenised]] = field(default_factory=dict)
