"""Intervals and tests against closed forms, enumerations of tiny cases, and simulated truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from potstill.evaluation.metrics import significance
from potstill.evaluation.metrics.significance import (
    bootstrap_interval,
    gap_closed,
    holm,
    mcnemar,
    paired_difference,
    sign_flip_test,
    sign_test,
)

SMALL = [0.0, 1.0, 5.0, 7.0]


def _enumerated_means(values: list[float]) -> np.ndarray:
    return np.array([np.mean(chosen) for chosen in itertools.product(values, repeat=len(values))])


def test_the_interval_is_that_of_all_resamples_of_a_tiny_case() -> None:
    exact = np.quantile(_enumerated_means(SMALL), [0.1, 0.9])
    assert bootstrap_interval(SMALL, level=0.8, num_draws=100_000) == pytest.approx(tuple(exact), abs=0.26)
    assert exact[1] - exact[0] > 3  # wider than the step between two means, which is 1/4, by far


def test_the_interval_of_many_examples_is_the_normal_one() -> None:
    scores = np.random.default_rng(3).normal(2, 5, 4000)
    half = 1.959964 * scores.std() / math.sqrt(len(scores))
    found = bootstrap_interval(scores, num_draws=20_000)
    assert found.low == pytest.approx(scores.mean() - half, abs=half * 0.05)
    assert found.high == pytest.approx(scores.mean() + half, abs=half * 0.05)


def test_the_same_seed_gives_the_same_interval_and_pairs_two_models() -> None:
    scores = np.random.default_rng(0).random(30)
    assert bootstrap_interval(scores) == bootstrap_interval(scores.tolist())
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores)
    moved = bootstrap_interval(scores + 10)  # the same examples drawn
    assert moved == pytest.approx(tuple(edge + 10 for edge in bootstrap_interval(scores)))


def test_draws_are_numpys_own_in_one_piece() -> None:
    scores = np.random.default_rng(0).random(100)
    draws = np.random.default_rng(0).integers(0, 100, (2000, 100))
    assert bootstrap_interval(scores) == tuple(np.quantile(scores[draws].mean(1), [0.025, 0.975]))


def test_draws_that_do_not_fit_into_memory_at_once_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(scores, num_draws=20_001), sign_flip_test(scores, scores[::-1], num_draws=20_001)
    monkeypatch.setattr(significance, "_AT_ONCE", 50 * 7)
    parts = bootstrap_interval(scores, num_draws=20_001), sign_flip_test(scores, scores[::-1], num_draws=20_001)
    assert parts[0] == pytest.approx(whole[0], abs=0.01)
    assert parts[1] == pytest.approx(whole[1], abs=0.03)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [(lambda r, n: r.normal(1, 2, n), 1.0), (lambda r, n: r.random(n) < 0.3, 0.3)],
    ids=["normal", "right or wrong"],
)
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_covers_the_truth_as_often_as_it_says(
    draw: Callable[[np.random.Generator, int], np.ndarray], truth: float, level: float
) -> None:
    random = np.random.default_rng(0)
    found = [bootstrap_interval(draw(random, 100), level=level, num_draws=1000, seed=case) for case in range(300)]
    covered = sum(low <= truth <= high for low, high in found) / 300
    assert covered == pytest.approx(level, abs=2.5 * math.sqrt(level * (1 - level) / 300))


def test_without_examples_or_with_nan_there_is_no_interval_and_one_example_is_a_point() -> None:
    assert all(map(math.isnan, bootstrap_interval([])))
    assert all(map(math.isnan, bootstrap_interval([1.0, math.nan])))
    assert bootstrap_interval([3.0]) == (3, 3)


@pytest.mark.parametrize("settings", [{"level": 1.0}, {"level": 0.0}, {"num_draws": 0}])
def test_settings_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        bootstrap_interval(SMALL, **settings)  # type: ignore[arg-type]


def test_a_paired_difference_is_that_of_the_same_examples() -> None:
    random = np.random.default_rng(5)
    hard = random.normal(0, 10, 80)  # what both models share
    theirs, ours = hard + random.normal(0, 1, 80), hard + 1 + random.normal(0, 1, 80)
    found = paired_difference(ours, theirs)
    assert found.mean == pytest.approx(float((ours - theirs).mean()))
    assert (found.low, found.high) == bootstrap_interval(ours - theirs)
    assert found.p == 1 / 10_001  # never 0
    assert found.high - found.low < 1
    flipped = paired_difference(theirs, ours)
    assert (flipped.mean, flipped.p) == (-found.mean, found.p)


@pytest.mark.parametrize("differences", [[1.0, 2.0, 3.0, 4.0], [0.1, 0.2, -0.3, 0.7, 0.1], [1.0, 1.0, -1.0, 0.0]])
def test_the_sign_flip_test_is_the_enumeration_of_all_signs(differences: list[float]) -> None:
    seen = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in _signs(len(differences))]
    exact = sum(value >= seen - 1e-9 for value in sums) / len(sums)
    found = sign_flip_test(differences, [0.0] * len(differences), num_draws=40_000)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 40_000))


def _signs(count: int) -> list[tuple[int, ...]]:
    return list(itertools.product([-1, 1], repeat=count))


def test_the_sign_flip_test_counts_what_was_seen_among_the_draws() -> None:
    assert sign_flip_test([1.0] * 60, [0.0] * 60, num_draws=99) == 1 / 100
    assert sign_flip_test([1.0, 2.0], [1.0, 2.0]) == 1  # no difference at all
    assert math.isnan(sign_flip_test([], []))
    assert math.isnan(sign_flip_test([math.nan], [0.0]))


def test_without_a_difference_one_in_twenty_is_significant() -> None:
    random = np.random.default_rng(4)
    pairs = [(random.normal(0, 1, 60), random.normal(0, 1, 60)) for _ in range(300)]
    ps = [sign_flip_test(*pair, num_draws=500, seed=case) for case, pair in enumerate(pairs)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=2.5 * math.sqrt(0.05 * 0.95 / 300))
    assert np.mean(ps) == pytest.approx(0.5, abs=2.5 / math.sqrt(12 * 300))  # uniform


def test_mcnemar_is_the_two_sided_binomial_of_what_they_disagree_on() -> None:
    ours, theirs = [True] * 8 + [False] + [True] * 50, [False] * 8 + [True] + [True] * 50
    found = mcnemar(ours, theirs)
    assert (found.only_ours, found.only_theirs) == (8, 1)
    assert found.p == pytest.approx(2 * (math.comb(9, 0) + math.comb(9, 1)) / 2**9)
    assert mcnemar(theirs, ours).p == found.p


def test_mcnemar_of_models_that_agree_or_differ_both_ways_is_1() -> None:
    assert mcnemar([True, False], [True, False]).p == 1
    assert mcnemar([], []).p == 1
    assert mcnemar([True, False], [False, True]).p == 1


def test_mcnemar_of_thousands_neither_overflows_nor_takes_long() -> None:
    ours = [True] * 5200 + [False] * 4800
    z = (5200 - 4800 - 1) / math.sqrt(10_000)  # with the correction for continuity
    assert mcnemar(ours, [not right for right in ours]).p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


@pytest.mark.parametrize(("wins", "count", "p"), [(5, 5, 1 / 32), (4, 5, 6 / 32), (0, 5, 1), (0, 0, 1), (3, 5, 0.5)])
def test_sign_test(wins: int, count: int, p: float) -> None:
    assert sign_test(wins, count) == pytest.approx(p)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, and no later one is smaller.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_takes_what_is_not_known_as_1_and_counts_it() -> None:
    assert holm([math.nan, 0.01]) == pytest.approx([1, 0.02])


def test_the_share_of_the_gap_that_is_closed_and_its_interval() -> None:
    random = np.random.default_rng(7)
    untouched = random.normal(20, 5, 200)
    gaps = random.normal(10, 3, 200)
    found = gap_closed(untouched + gaps / 4 + random.normal(0, 1, 200), untouched, untouched + gaps)
    assert found.share == pytest.approx(1 / 4, abs=0.02)
    assert found.low < found.share < found.high
    assert (found.gap, found.note) == (pytest.approx(gaps.mean()), None)
    assert (found.gap_low, found.gap_high) == pytest.approx(tuple(bootstrap_interval(gaps)))


def test_a_fixed_share_of_every_gap_has_an_interval_without_width() -> None:
    untouched, gaps = np.arange(30.0), np.linspace(1, 5, 30)
    found = gap_closed(untouched + gaps / 2, untouched, untouched + gaps)
    assert (found.share, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))  # drawn together, not apart
    worse = gap_closed(untouched - gaps / 2, untouched, untouched - gaps)  # a score where less is better
    assert (worse.share, worse.note) == (pytest.approx(0.5), None)


def test_the_interval_of_the_share_covers_the_truth_as_often_as_the_delta_method() -> None:
    random, cases, count = np.random.default_rng(8), 1000, 100
    covered, by_delta = 0, 0
    for case in range(cases):
        untouched, teacher, student = (random.normal(mean, 2, count) for mean in (0, 4, 3))
        found = gap_closed(student, untouched, teacher, num_draws=500, seed=case)
        covered += found.low <= 3 / 4 <= found.high
        residuals = (student - untouched) - found.share * (teacher - untouched)
        error = residuals.std(ddof=1) / math.sqrt(count) / abs(found.gap)
        by_delta += abs(found.share - 3 / 4) <= 1.96 * error
    # The percentile interval is a little narrow here: 93.9% of 3000 other cases, the delta method 94.4%.
    assert covered / cases == pytest.approx(0.95, abs=0.01 + 2.5 * math.sqrt(0.95 * 0.05 / cases))
    assert covered / cases == pytest.approx(by_delta / cases, abs=0.015)


def test_where_the_gap_may_be_none_there_is_a_note_and_no_interval() -> None:
    random = np.random.default_rng(9)
    untouched = random.normal(0, 1, 50)
    found = gap_closed(untouched + 1, untouched, untouched + random.normal(0, 1, 50))
    assert found.gap_low < 0 < found.gap_high
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.note is not None
    assert "may be none" in found.note
    assert found.share == pytest.approx(1 / found.gap)
    assert math.isnan(gap_closed(SMALL, SMALL, SMALL).share)


def test_draws_without_a_gap_are_left_out_of_the_interval() -> None:
    teacher = [1.0] * 3 + [0.0] * 7  # a draw has none of the three with probability .7 ** 10
    found = gap_closed([0.0] * 10, [0.0] * 10, teacher, level=0.9)
    assert (found.share, found.low, found.high, found.note) == (0, 0, 0, None)


@pytest.mark.parametrize("test", [paired_difference, sign_flip_test, mcnemar, lambda a, b: gap_closed(a, b, b)])
def test_models_with_different_numbers_of_scores_are_refused(test: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"as many of each|zip"):
        test([1.0, 0.0], [1.0])


# --- Weights: a mean over tokens of scores over examples --------------------------------------------------------------

WEIGHTS = [1.0, 10.0, 2.0, 5.0]


def test_a_constant_score_has_no_spread_whatever_its_examples_weigh() -> None:
    assert bootstrap_interval([3.0] * 4, weights=WEIGHTS) == pytest.approx((3, 3))


def test_the_weighted_interval_is_that_of_all_ratios_of_a_tiny_case() -> None:
    chosen = [list(some) for some in itertools.product(range(4), repeat=4)]
    score, weight = np.array(SMALL), np.array(WEIGHTS)
    ratios = [np.average(score[some], weights=weight[some]) for some in chosen]
    exact = np.quantile(ratios, [0.1, 0.9])
    assert bootstrap_interval(SMALL, weights=WEIGHTS, level=0.8, num_draws=100_000) == pytest.approx(
        tuple(exact), abs=0.1
    )
    assert tuple(exact) != pytest.approx(bootstrap_interval(SMALL, level=0.8, num_draws=100_000), abs=0.3)
    assert bootstrap_interval(SMALL, weights=[7.0] * 4) == pytest.approx(bootstrap_interval(SMALL))


def test_a_paired_difference_is_weighted_and_its_p_is_that_of_all_flips() -> None:
    ours, theirs = [1.0, 2.0, 0.5, 4.0], [0.5, 1.0, 1.0, 1.0]
    found = paired_difference(ours, theirs, weights=WEIGHTS)
    gaps = np.subtract(ours, theirs)
    assert found.mean == pytest.approx(np.average(gaps, weights=WEIGHTS))
    assert (found.low, found.high) == bootstrap_interval(gaps, weights=WEIGHTS)
    flips = [abs(np.dot(np.multiply(gaps, WEIGHTS), signs)) for signs in itertools.product([-1, 1], repeat=4)]
    exact = np.mean(np.array(flips) >= abs(np.dot(gaps, WEIGHTS)) - 1e-9)
    assert found.p == pytest.approx(exact, abs=0.015)
    assert paired_difference([9.0, 8, 7, 9], [0.0] * 4).p >= 0.12  # of four examples nothing is surer


def test_the_share_of_a_weighted_gap() -> None:
    untouched, teacher = np.zeros(4), np.array([2.0, 4.0, 1.0, 3.0])
    found = gap_closed(teacher / 4, untouched, teacher, weights=WEIGHTS)
    assert (found.share, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.gap == pytest.approx(np.average(teacher, weights=WEIGHTS))


def test_a_weight_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        bootstrap_interval(SMALL, weights=[1, 0, 1, 1])


def test_the_sign_flips_of_a_paired_difference_are_weighted() -> None:
    """Of the eight flips all are as far from 0 where the last example is so heavy, and six where it is not."""
    ours, theirs, weights = [5.0, 1.0, -4.0], [0.0] * 3, [1.0, 1.0, 20.0]
    assert paired_difference(ours, theirs, weights=weights).p == pytest.approx(
        sign_flip_test(ours, theirs, weights=weights)
    )
    assert sign_flip_test(ours, theirs, weights=weights) != pytest.approx(sign_flip_test(ours, theirs), abs=0.1)


def test_the_seed_is_that_of_the_draws_of_every_figure() -> None:
    random = np.random.default_rng(4)
    ours, theirs, teacher = (random.normal(mean, 1, 30) for mean in (0.4, 0, 3))
    one, other = (paired_difference(ours, theirs, seed=seed) for seed in (0, 1))
    assert (one.low, one.p) != (other.low, other.p)
    assert (other.low, other.high) == bootstrap_interval(ours - theirs, seed=1)
    assert other.p == sign_flip_test(ours, theirs, seed=1)
    gaps = [gap_closed(ours, theirs, teacher, seed=seed) for seed in (0, 1)]
    assert gaps[0].low != gaps[1].low
    assert (gaps[1].gap_low, gaps[1].gap_high) == bootstrap_interval(teacher - theirs, seed=1)


def test_no_adjusted_p_is_over_1() -> None:
    assert holm([0.6, 0.7, 0.9]) == [1, 1, 1]
