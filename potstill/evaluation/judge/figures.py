"""From marks to figures: the ratio of sums that the papers report, who wins, and how much the place alone is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from potstill.errors import DataError
from potstill.evaluation.judge.answers import Answer, Marks, marks_of
from potstill.evaluation.judge.pairs import Pair
from potstill.evaluation.metrics.significance import RESAMPLES, bootstrap_interval, paired_difference
from potstill.evaluation.suites.scoring import interval


@dataclass(frozen=True)
class Judged:
    """A pair's marks by who wrote the text, not by where it stood."""

    ours: float
    theirs: float
    ours_is_first: bool


def judged(pair: Pair, marks: Marks) -> Judged:
    ours, theirs = (marks.first, marks.second) if pair.ours_is_first else (marks.second, marks.first)
    return Judged(ours, theirs, pair.ours_is_first)


def score(
    pairs: Mapping[str, tuple[str, Pair]], answers: Mapping[str, Answer], *, allow_missing: bool = False
) -> dict[str, Any]:
    """The figures of a judge over the pairs whose answers can be read; the others are counted and no score.

    Args:
        pairs: by id with where each stands. answers: by id, each of one of the pairs.
        allow_missing: whether pairs without an answer are only counted.
    Returns: counts, ``judges`` (what was asked of whom), and the figures of ``figures``.
    Raises: DataError where a pair has no answer.
    """
    missing = [where for name, (where, _) in pairs.items() if name not in answers]
    if missing and not allow_missing:
        raise DataError(
            f"{len(missing)} of {len(pairs)} pairs have no answer: {_some(missing)}",
            "ask again with the same command, which goes on; or count them as missing by --allow-missing",
        )
    if not answers:
        raise DataError(f"none of the {len(pairs)} pairs has an answer", "ask with `potstill judge ask`, or by hand")
    there = {name: pair for name, (_, pair) in pairs.items() if name in answers}
    marks = {name: marks_of(answers[name], pair) for name, pair in there.items()}
    read = [judged(pair, found) for name, pair in there.items() if (found := marks[name]) is not None]
    some = next(iter(pairs.values()))[1]
    return {
        "suite": some.suite,
        "ours": some.ours_from,
        "theirs": some.theirs_from,
        "judges": _judges(answers.values()),
        "num_pairs": len(pairs),
        "num_missing": len(missing),
        "num_parsed": len(read),
        "num_parse_failures": len(there) - len(read),
        "parse_failures": [name for name in there if marks[name] is None],
        **figures(read),
    }


def figures(read: Sequence[Judged]) -> dict[str, Any]:
    """What marks come to, with 95% intervals over examples; null where there is nothing to compute from.

    ``sum_ratio`` is 100 * sum(ours) / sum(theirs), as MiniLLM reports GPT-4's marks. ``position_bias`` is by how many
    points a text's mark exceeds the other's for standing first: half the difference between ours - theirs where ours
    is first and where it is second. ``by_position`` has those two halves.
    """
    ours, theirs = np.array([one.ours for one in read]), np.array([one.theirs for one in read])
    first = np.array([one.ours_is_first for one in read], dtype=bool)
    halves = {"ours_first": first, "ours_second": ~first}
    return {
        "sum_ratio": _sum_ratio(ours, theirs),
        "ours_mean": interval(list(ours)),
        "theirs_mean": interval(list(theirs)),
        "difference": _difference(ours, theirs),
        "wins": int((ours > theirs).sum()),
        "ties": int((ours == theirs).sum()),
        "losses": int((ours < theirs).sum()),
        "position_bias": _resampled(lambda at: _bias((ours - theirs)[at], first[at]), len(read)),
        "by_position": {name: _half(ours[chosen], theirs[chosen]) for name, chosen in halves.items()},
    }


def _sum_ratio(ours: Float[np.ndarray, " example"], theirs: Float[np.ndarray, " example"]) -> dict[str, Any]:
    """100 * sum(ours) / sum(theirs): the mean of ours / theirs with theirs as weights, and no mark is 0."""
    if not len(ours):
        return {"value": None, "low": None, "high": None}
    low, high = bootstrap_interval(100 * ours / theirs, weights=theirs)
    return {"value": _ratio(ours, theirs), "low": low, "high": high}


def _ratio(ours: Float[np.ndarray, " example"], theirs: Float[np.ndarray, " example"]) -> float:
    return float(100 * ours.sum() / theirs.sum())


def _bias(differences: Float[np.ndarray, " example"], first: np.ndarray) -> float:
    """In points; nan where all stand in one place."""
    if first.all() or not first.any():
        return math.nan
    return float(differences[first].mean() - differences[~first].mean()) / 2


def _half(ours: Float[np.ndarray, " example"], theirs: Float[np.ndarray, " example"]) -> dict[str, Any]:
    """Figures of the pairs in which ours stands in one of the places."""
    there = len(ours) > 0
    return {
        "num": len(ours),
        "sum_ratio": _ratio(ours, theirs) if there else None,
        "ours_mean": float(ours.mean()) if there else None,
        "theirs_mean": float(theirs.mean()) if there else None,
    }


def _difference(ours: Float[np.ndarray, " example"], theirs: Float[np.ndarray, " example"]) -> dict[str, Any]:
    if not len(ours):
        return {"mean": None, "low": None, "high": None, "p": None}
    found = paired_difference(ours, theirs)
    return {"mean": found.mean, "low": found.low, "high": found.high, "p": found.p}


def _resampled(figure: Callable[[np.ndarray], float], num: int) -> dict[str, Any]:
    """A figure of chosen examples, with its interval; draws in which it cannot be computed are left out."""
    value = figure(np.arange(num)) if num else math.nan
    if math.isnan(value):
        return {"value": None, "low": None, "high": None}
    random = np.random.default_rng(0)
    draws = np.array([figure(random.integers(0, num, num)) for _ in range(RESAMPLES)])
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}


def _judges(answers: Any) -> list[dict[str, Any]]:
    """The different requests behind the answers; none for answers by hand."""
    found: list[dict[str, Any]] = []
    for answer in answers:
        told = None if answer.request is None else answer.request | {"served_model": answer.served_model}
        if told is not None and told not in found:
            found.append(told)
    return found


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
