"""Figures of significance on any small set of scores, against enumerations in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import chain, combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.evaluation.metrics.significance import (
    Difference,
    bootstrap_interval,
    gap_closed,
    holm,
    mcnemar,
    paired_difference,
    sign_flip_test,
    sign_test,
)

DRAWS = 4000
SURE = 5 * math.sqrt(0.25 / DRAWS)  # five standard deviations of a share of the draws, at most
several = settings(max_examples=60, deadline=None)
score = st.integers(-4, 4)
few = st.lists(score, min_size=1, max_size=4)
pairs = st.lists(st.tuples(score, score), min_size=1, max_size=4)
answers = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=14)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def mean(values: tuple[int, ...] | list[int]) -> Fraction:
    return Fraction(sum(values), len(values))


def resampled(values: list[int]) -> list[Fraction]:
    """The mean of every sample with replacement, each as likely as any other."""
    return [mean(chosen) for chosen in product(values, repeat=len(values))]


def share(kept: Callable[[Fraction], bool], among: list[Fraction]) -> float:
    return sum(map(kept, among)) / len(among)


def columns(rows: list[tuple[int, int]]) -> tuple[list[int], list[int], list[int]]:
    return [a for a, _ in rows], [b for _, b in rows], [a - b for a, b in rows]


# --- intervals --------------------------------------------------------------------------------------------------------


@several
@given(few, st.sampled_from([0.5, 0.8, 0.95]))
def test_the_edges_of_an_interval_cut_off_the_tails_of_all_samples(values: list[int], level: float) -> None:
    found = bootstrap_interval(values, level=level, num_draws=DRAWS)
    exact, tail = resampled(values), (1 - level) / 2
    nearly = 1e-9  # an edge is a float, and a mean a fraction
    assert share(lambda m: m < found.low - nearly, exact) <= tail + SURE
    assert share(lambda m: m <= found.low + nearly, exact) >= tail - SURE
    assert share(lambda m: m > found.high + nearly, exact) <= tail + SURE
    assert share(lambda m: m >= found.high - nearly, exact) >= tail - SURE


@several
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.01, 0.98), st.integers(0, 5))
def test_an_interval_is_within_the_scores_and_within_any_of_a_higher_level(
    values: list[float], level: float, seed: int
) -> None:
    inner = bootstrap_interval(values, level=level, num_draws=200, seed=seed)
    outer = bootstrap_interval(values, level=level + 0.01, num_draws=200, seed=seed)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= outer.low <= inner.low + slack
    assert inner.high - slack <= outer.high <= max(values) + slack
    assert inner.low <= inner.high


# --- differences ------------------------------------------------------------------------------------------------------


@several
@given(pairs)
def test_the_other_way_round_a_difference_is_its_mirror(rows: list[tuple[int, int]]) -> None:
    ours, theirs, _ = columns(rows)
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    mirrored = Difference(-other.mean, -other.high, -other.low, other.p)
    assert vars(one) == pytest.approx(vars(mirrored))
    assert sign_flip_test(ours, theirs, num_draws=200) == sign_flip_test(theirs, ours, num_draws=200)


@several
@given(st.lists(st.tuples(score, score), min_size=1, max_size=8))
def test_the_flipped_p_is_the_share_of_all_signs(rows: list[tuple[int, int]]) -> None:
    ours, theirs, differences = columns(rows)
    signs = product([-1, 1], repeat=len(rows))
    sums = [abs(sum(sign * d for sign, d in zip(some, differences, strict=True))) for some in signs]
    exact = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
    assert sign_flip_test(ours, theirs, num_draws=DRAWS) == pytest.approx(exact, abs=SURE + 1 / DRAWS)


# --- counts -----------------------------------------------------------------------------------------------------------


@several
@given(answers)
def test_mcnemar_is_the_share_of_all_outcomes_as_uneven(rows: list[tuple[bool, bool]]) -> None:
    differ = [ours for ours, theirs in rows if ours != theirs]
    uneven = abs(2 * sum(differ) - len(differ))
    outcomes = [abs(2 * sum(some) - len(differ)) for some in product([0, 1], repeat=len(differ))]
    found = mcnemar([ours for ours, _ in rows], [theirs for _, theirs in rows])
    assert (found.only_ours, found.only_theirs) == (sum(differ), len(differ) - sum(differ))
    assert found.p == pytest.approx(sum(value >= uneven for value in outcomes) / len(outcomes))


@several
@given(st.integers(0, 300), st.data())
def test_the_sign_test_is_the_binomial_tail(count: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, count))
    tail = Fraction(sum(math.comb(count, number) for number in range(wins, count + 1)), 2**count)
    assert sign_test(wins, count) == pytest.approx(float(tail), rel=1e-12)


# --- families ---------------------------------------------------------------------------------------------------------


def closed(values: list[float], index: int) -> float:
    """A hypothesis is rejected where every family that it is in is, each by Bonferroni: what Holm's steps come to.

    Source: Marcus, Peritz and Gabriel 1976, closed testing procedures.
    """
    places = range(len(values))
    families = chain.from_iterable(combinations(places, size) for size in range(1, len(values) + 1))
    return max(min(1.0, len(some) * min(values[at] for at in some)) for some in families if index in some)


@several
@given(p_values)
def test_holm_is_closed_testing_of_all_families(values: list[float]) -> None:
    assert holm(values) == pytest.approx([closed(values, index) for index in range(len(values))])


@several
@given(p_values, st.randoms(use_true_random=False))
def test_holm_goes_by_the_values_and_not_by_their_places(values: list[float], shuffling: object) -> None:
    order = list(range(len(values)))
    shuffling.shuffle(order)  # type: ignore[attr-defined]
    adjusted = holm(values)
    assert holm([values[at] for at in order]) == [adjusted[at] for at in order]


# --- the gap ----------------------------------------------------------------------------------------------------------

triples = st.lists(st.tuples(score, score, score), min_size=2, max_size=8)


@several
@given(triples)
def test_the_share_of_the_gap_is_the_ratio_of_means(rows: list[tuple[int, int, int]]) -> None:
    student, untouched, teacher = (list(column) for column in zip(*rows, strict=True))
    gap = mean(teacher) - mean(untouched)
    found = gap_closed(student, untouched, teacher, num_draws=300)
    assert found.gap == pytest.approx(float(gap))
    if gap == 0:
        assert math.isnan(found.share)
        assert found.note
    else:
        assert found.share == pytest.approx(float((mean(student) - mean(untouched)) / gap))
    assert (found.note is None) == (found.gap_low > 0 or found.gap_high < 0)
    assert (found.note is not None) == math.isnan(found.low)


@several
@given(triples, st.sampled_from([-100.0, -1.0, 0.5, 3.0]), st.integers(-5, 5))
def test_the_share_is_the_same_in_any_units(rows: list[tuple[int, int, int]], unit: float, zero: int) -> None:
    """Points or per cent, more or less being better."""
    always = [(student, untouched, untouched + 1 + abs(gap)) for student, untouched, gap in rows]  # a gap in each row
    plain = gap_closed(*([float(x) for x in column] for column in zip(*always, strict=True)), num_draws=300)
    moved = gap_closed(*([unit * x + zero for x in column] for column in zip(*always, strict=True)), num_draws=300)
    assert plain.note is None
    assert (moved.share, moved.low, moved.high) == pytest.approx((plain.share, plain.low, plain.high))
    assert moved.gap == pytest.approx(unit * plain.gap)
