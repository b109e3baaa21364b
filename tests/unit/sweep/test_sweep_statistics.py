"""Intervals over seeds against tables, hand-made numbers and repeated sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from potstill.sweep.statistics import Examples, t_mean, t_quantile, t_within, two_level_interval

# Two-sided 95% points of Student's t, from any printed table.
TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 10: 2.2281, 30: 2.0423, 120: 1.9799}


@pytest.mark.parametrize(("freedom", "point"), TABLE.items())
def test_points_of_students_t(freedom: int, point: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(point, abs=5e-5)
    assert t_within(point, freedom) == pytest.approx(0.95, abs=1e-5)


def test_shares_of_students_t_that_have_a_closed_form() -> None:
    assert t_within(1.0, 1) == pytest.approx(0.5)  # Cauchy
    assert t_within(math.sqrt(2), 2) == pytest.approx(math.sqrt(0.5))  # t / sqrt(2 + t**2)


def test_a_share_of_no_use_is_refused() -> None:
    for share, freedom in ((0.5, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="degrees of freedom"):
            t_quantile(share, freedom)


def test_mean_and_interval_of_hand_made_numbers() -> None:
    found = t_mean([1.0, 2.0, 3.0])  # s = 1, error = 1 / sqrt(3)
    reach = 4.302653 / math.sqrt(3)
    assert (found.mean, found.num) == (2.0, 3)
    assert (found.low, found.high) == (pytest.approx(2 - reach, abs=1e-5), pytest.approx(2 + reach, abs=1e-5))
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # the closed form of 2 degrees of freedom
    assert t_mean([-1.0, -2.0, -3.0]).p == pytest.approx(found.p)


def test_p_is_below_5_percent_exactly_where_the_interval_leaves_0_out() -> None:
    drawn = np.random.default_rng(0)
    means = [t_mean(list(drawn.normal(0.8, 1, 4))) for _ in range(200)]
    assert [found.p < 0.05 for found in means] == [found.low > 0 or found.high < 0 for found in means]
    assert 20 < sum(found.p < 0.05 for found in means) < 180


def test_few_figures_and_equal_ones() -> None:
    one = t_mean([0.5])
    assert (one.mean, one.num) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    assert math.isnan(t_mean([]).mean)
    assert t_mean([0.0, 0.0]).p == 1
    same = t_mean([0.3, 0.3, 0.3])
    assert same.low == same.high == same.mean
    assert math.isnan(same.p)


def test_the_t_interval_covers_the_mean_of_normal_figures() -> None:
    drawn = np.random.default_rng(1)
    covered = [(found := t_mean(list(drawn.normal(0, 1, 3)))).low < 0 < found.high for _ in range(2000)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def crossed(drawn: np.random.Generator, seeds: int, examples: int) -> Examples:
    """Scores with an effect of the seed, one of the example, and noise; of mean 0."""
    by_seed, by_example = drawn.normal(0, 1, (seeds, 1)), drawn.normal(0, 2, (1, examples))
    values = by_seed + by_example + drawn.normal(0, 0.5, (seeds, examples))
    return Examples(values, np.ones_like(values))


def test_two_levels_cover_the_mean_of_other_seeds_and_other_examples() -> None:
    drawn = np.random.default_rng(2)
    intervals = [two_level_interval(crossed(drawn, 10, 40)) for _ in range(200)]
    assert 0.88 < np.mean([low < 0 < high for low, high in intervals]) <= 1


def test_two_levels_are_wider_than_seeds_alone_where_examples_differ() -> None:
    found = crossed(np.random.default_rng(3), 5, 20)
    of_seeds = t_mean(list(found.values.mean(1)))
    low, high = two_level_interval(found)
    alike = Examples(np.repeat(found.values.mean(1, keepdims=True), 20, axis=1), found.weights)
    narrow = two_level_interval(alike)
    assert high - low > narrow.high - narrow.low
    error = (of_seeds.high - of_seeds.low) / 2 / t_quantile(0.975, 4) * math.sqrt(4 / 5)
    assert (narrow.high - narrow.low) / 2 == pytest.approx(1.96 * error, rel=0.15)  # seeds alone, too narrow as told


def test_the_same_difference_of_every_seed_and_example_has_no_width() -> None:
    theirs = crossed(np.random.default_rng(4), 3, 12)
    ours = Examples(theirs.values + 0.25, theirs.weights)
    assert two_level_interval(ours, theirs) == (pytest.approx(0.25), pytest.approx(0.25))


def test_weights_make_a_ratio_and_a_perplexity_is_of_the_mean_of_its_logarithm() -> None:
    values, weights = np.array([[1.0, 3.0], [1.0, 3.0]]), np.array([[3.0, 1.0], [3.0, 1.0]])
    all_once = np.ones((1, 2), dtype=int)
    assert Examples(values, weights).figures(all_once).tolist() == [[1.5, 1.5]]
    assert Examples(values, weights, is_log=True).figures(all_once)[0, 0] == pytest.approx(math.exp(1.5))
    only_second = np.array([[0, 2]])
    assert Examples(values, weights).figures(only_second).tolist() == [[3.0, 3.0]]
