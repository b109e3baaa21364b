"""Rows by split, and where a folder of them keeps what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.data.examples import Tokenised

SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class Prepared:
    """Token ids by split, in memory or read from a folder row by row, and ``counts``: what data.json says of them."""

    train: Sequence[Tokenised]
    validation: Sequence[Tokenised]
    heldout: Sequence[Tokenised]
    counts: dict[str, Any]
