"""What two files have in common, and what one has twice: whole rows, runs of words, and rows that differ a little."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.data import datasets
from potstill.data.datasets import Place
from potstill.data.examples import Example
from potstill.data.formats import check_fields
from potstill.data.gathering import sifted
from potstill.data.overlap import NEARLY, overlap, shingles
from potstill.data.quarantine import Sifted, judge
from potstill.recipe import Data


@dataclass(frozen=True)
class Pair:
    """Two rows that are nearly the same; ``similarity``: the share of their three-word runs that both have, 0 to 1."""

    one: str
    other: str
    similarity: float


@dataclass(frozen=True)
class Audit:
    """Figures by name, and the pairs that some of them count: the most alike first."""

    figures: dict[str, int | float]
    across: tuple[Pair, ...]
    within: tuple[Pair, ...]


def audit(train: str | Path, test: str | Path, config: Data, *, threshold: float = NEARLY) -> Audit:
    """Compare the rows of two files, prompts and responses, each row's own words only.

    Args:
        train, test: files, splits of named data sets as "dolly:dev", or "starter"; in the place of ``config``'s own.
        config: how the rows of files are laid out, and the share of them that may be bad.
        threshold: similarity from which two rows count as nearly the same.
    Raises: DataError for a file or split that cannot be read, or has more rows that cannot be used than
        ``config.max_bad_rows``: what they share would not be found. Fewer are counted.
    """
    check_fields(config)
    config = config.model_copy(update={"path": str(train), "heldout": str(test)})
    places = (datasets.train_place(config), datasets.heldout_place(config))
    found = [_usable(place, config) for place in places if place]
    rows, asked = (part.examples for part in found)
    across, within = near_duplicates(asked, rows, threshold), near_duplicates(rows, None, threshold)
    figures: dict[str, int | float] = {
        "train_rows": len(rows),
        "test_rows": len(asked),
        "unusable_rows": sum(len(part.bad) for part in found),
        **overlap(asked, rows),
        "near_duplicate_rows": len({pair.one for pair in across}),  # at this threshold
        "train_rows_near_another": len({id for pair in within for id in (pair.one, pair.other)}),
    }
    return Audit(figures, across, within)


def _usable(place: Place, config: Data) -> Sifted:
    """The rows of a file or split, sorted. Raises: DataError where too many cannot be used."""
    found, _ = sifted(place, config, lambda example: example)
    judge(place, found, config.max_bad_rows)
    return found


def near_duplicates(
    ones: Sequence[Example], others: Sequence[Example] | None = None, threshold: float = NEARLY
) -> tuple[Pair, ...]:
    """All pairs whose similarity reaches the threshold, the most alike first; among ``ones`` where ``others`` is None.

    Exact: two sets that are so alike must share one of their rarest members, so only those are looked up.

    Args:
        threshold: above 0 and at most 1.
    Raises: ValueError for another threshold.
    Source: Bayardo et al. 2007, Scaling Up All Pairs Similarity Search (prefix filtering).
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold}: give one above 0 and at most 1")
    left = [shingles(example) for example in ones]
    right = left if others is None else [shingles(example) for example in others]
    frequency = Counter(shingle for some in (left if others is None else [*left, *right]) for shingle in some)
    known: dict[Hashable, list[int]] = defaultdict(list)
    for at, own in enumerate(right):
        for shingle in _rarest(own, frequency, threshold):
            known[shingle].append(at)
    names = ones if others is None else others
    found = [
        Pair(ones[one].id, names[other].id, similarity)
        for one, own in enumerate(left)
        for other in {other for shingle in _rarest(own, frequency, threshold) for other in known[shingle]}
        if (others is not None or one < other) and (similarity := _jaccard(own, right[other])) >= threshold
    ]
    return tuple(sorted(found, key=lambda pair: (-pair.similarity, pair.one, pair.other)))


def _rarest(shingles: frozenset[Hashable], frequency: Counter[Hashable], threshold: float) -> list[Hashable]:
    """So many of a set's rarest members that a set without any of them cannot be alike enough."""
    count = len(shingles) - math.ceil(threshold * len(shingles) - 1e-9) + 1
    return sorted(shingles, key=lambda shingle: (frequency[shingle], repr(shingle)))[:count] if shingles else []


def _jaccard(one: frozenset[Hashable], other: frozenset[Hashable]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0
