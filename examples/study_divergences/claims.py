"""From declared claims and measured figures to verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from paired import t_interval, t_test, wins_by_chance
from ruamel.yaml import YAML

from potstill.evaluation.metrics.significance import holm

Figures = Mapping[str, Mapping[int, Mapping[str, float]]]  # of one teacher: method, training seed, metric

HOLDS, FAILS, UNMEASURED = "HOLDS", "DOES NOT HOLD", "NOT MEASURED"


@dataclass(frozen=True)
class Comparison:
    """``of`` less ``against`` in a metric, seed by seed; ``of`` alone where there is no ``against``.

    Without a direction there is no rule.
    """

    of: str
    metric: str
    against: str | None = None
    direction: Literal["lower", "higher"] | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in ("lower", "higher", None) or not self.margin >= 0:
            raise ValueError(f"{self}: the direction is lower or higher, and the margin not below 0")

    @property
    def rule(self) -> str:
        """What every seed must show, as text."""
        if self.direction is None:
            return "reported only"
        return f"each < {-self.margin:g}" if self.direction == "lower" else f"each > {self.margin:g}"


@dataclass(frozen=True)
class Claim:
    """``exact``: the name of a check with bounds, for claims that need no statistics."""

    id: str
    claim: str
    comparisons: tuple[Comparison, ...] = ()
    reported: tuple[Comparison, ...] = ()
    teachers: tuple[int, ...] = (1,)
    exact: str | None = None

    def __post_init__(self) -> None:
        if bool(self.comparisons) == bool(self.exact) or not all(part.direction for part in self.comparisons):
            raise ValueError(f"{self.id}: a claim has comparisons, each with a direction, or an exact check")


@dataclass(frozen=True)
class Outcome:
    """A comparison with its differences, by training seed; empty where it was not measured."""

    comparison: Comparison
    differences: Mapping[int, float]

    @property
    def values(self) -> list[float]:
        return list(self.differences.values())

    @property
    def signed(self) -> list[float]:
        """The differences, with the sign turned where lower is declared."""
        return [-value if self.comparison.direction == "lower" else value for value in self.values]

    @property
    def mean(self) -> float:
        return fmean(self.values) if self.values else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return t_interval(self.values)

    @property
    def p(self) -> float:
        return t_test(self.signed)

    @property
    def sign_p(self) -> float:
        return wins_by_chance(self.signed) if self.values else math.nan

    @property
    def holds(self) -> bool:
        """Whether every seed lies beyond the margin; a figure that is not a number does not."""
        return bool(self.values) and all(value > self.comparison.margin for value in self.signed)


@dataclass(frozen=True)
class Verdict:
    """A claim under one teacher. ``p`` is the largest of its comparisons', ``p_holm`` after Holm's correction."""

    claim: Claim
    teacher: int
    outcomes: tuple[Outcome, ...]
    reported: tuple[Outcome, ...]
    verdict: str
    p: float = math.nan
    p_holm: float = math.nan


def read_claims(path: Path) -> tuple[float, list[Claim]]:
    """The family's alpha, and the claims of a file.

    Raises: ValueError or TypeError for a claim without a rule or with unknown keys.
    """
    content = YAML(typ="safe").load(path)
    return float(content["alpha"]), [_claim(raw) for raw in content["claims"]]


def judge(
    claims: Sequence[Claim],
    alpha: float,
    seeds: Iterable[int],
    figures: Mapping[int, Figures],
    exact: Mapping[str, Sequence[Any]],
) -> list[Verdict]:
    """A verdict for each claim and each of its teachers.

    Args:
        claims: as declared.
        alpha: of the family.
        seeds: training seeds, every one of which must have been measured; fewer than two decide nothing.
        figures: what was measured, by teacher.
        exact: the rows of each exact check, with figures and their bounds.
    """
    wanted = frozenset(seeds)
    drafts = [_draft(claim, teacher, wanted, figures, exact) for claim in claims for teacher in claim.teachers]
    tested = [index for index, draft in enumerate(drafts) if draft.outcomes and draft.verdict != UNMEASURED]
    for index, adjusted in zip(tested, holm([drafts[index].p for index in tested]), strict=True):
        held = drafts[index].verdict == HOLDS and adjusted <= alpha
        drafts[index] = replace(drafts[index], p_holm=adjusted, verdict=HOLDS if held else FAILS)
    return drafts


def within_bounds(row: Mapping[str, Any]) -> bool:
    """Whether a row of an exact check is finite and keeps its bounds, up to rounding; None is no bound."""
    pairs = (("largest_nats", "bound_nats"), ("largest_gradient", "gradient_bound"))
    bounded = [(row[value], row[bound]) for value, bound in pairs if row[bound] is not None]
    return all(value <= bound * (1 + 1e-9) for value, bound in bounded)  # a nan is not


def _draft(
    claim: Claim,
    teacher: int,
    seeds: frozenset[int],
    figures: Mapping[int, Figures],
    exact: Mapping[str, Sequence[Any]],
) -> Verdict:
    if claim.exact:
        rows = exact.get(claim.exact, ())
        return Verdict(claim, teacher, (), (), _verdict(bool(rows), all(map(within_bounds, rows))))
    of_teacher = figures.get(teacher, {})
    outcomes = _outcomes(claim.comparisons, of_teacher)
    measured = len(seeds) >= 2 and all(outcome.differences.keys() == seeds for outcome in outcomes)
    verdict = _verdict(measured, all(outcome.holds for outcome in outcomes))
    p = max(outcome.p for outcome in outcomes) if measured else math.nan
    return Verdict(claim, teacher, outcomes, _outcomes(claim.reported, of_teacher), verdict, p)


def _verdict(measured: bool, held: bool) -> str:
    return UNMEASURED if not measured else HOLDS if held else FAILS


def _outcomes(comparisons: Iterable[Comparison], figures: Figures) -> tuple[Outcome, ...]:
    return tuple(Outcome(comparison, _differences(comparison, figures)) for comparison in comparisons)


def _differences(comparison: Comparison, figures: Figures) -> dict[int, float]:
    """By the training seeds that both were measured with."""
    metric = comparison.metric
    of = {seed: found[metric] for seed, found in figures.get(comparison.of, {}).items() if metric in found}
    if comparison.against is None:
        return dict(sorted(of.items()))
    against = figures.get(comparison.against, {})
    return {seed: of[seed] - against[seed][metric] for seed in sorted(of.keys() & against.keys())}


def _claim(raw: dict[str, Any]) -> Claim:
    comparisons, reported = (
        tuple(Comparison(**part) for part in raw.get(key, ())) for key in ("comparisons", "reported")
    )
    teachers = tuple(raw.get("teachers", (1,)))
    return Claim(**{**raw, "comparisons": comparisons, "reported": reported, "teachers": teachers})
