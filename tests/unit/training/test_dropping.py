"""Which streams sit a step out: a pure function, with the shares that it promises."""

from __future__ import annotations

from itertools import combinations

import pytest

from potstill.recipe import Stream
from potstill.training.dropping import dropped

STEPS = 2000


def streams(*drops: float) -> list[Stream]:
    made = (
        {"name": f"s{at}", "drop": drop, "terms": [{"objective": "cross_entropy"}]} for at, drop in enumerate(drops)
    )
    return [Stream.model_validate(one) for one in made]


def shares(*drops: float) -> list[float]:
    """How often each stream is dropped."""
    found = [dropped(streams(*drops), 1, step) for step in range(STEPS)]
    return [sum(f"s{at}" in out for out in found) / STEPS for at in range(len(drops))]


def error(share: float) -> float:
    """Four standard errors of a share of ``STEPS`` draws."""
    return 4 * (share * (1 - share) / STEPS) ** 0.5


def test_without_drop_nobody_is_dropped() -> None:
    assert {dropped(streams(0.0, 0.0), 1, step) for step in range(50)} == {frozenset()}


def test_beside_one_that_stays_each_is_dropped_as_often_as_it_says() -> None:
    stays, often, seldom = shares(0.0, 0.7, 0.2)
    assert stays == 0
    assert often == pytest.approx(0.7, abs=error(0.7))
    assert seldom == pytest.approx(0.2, abs=error(0.2))


def test_draws_of_different_streams_are_independent() -> None:
    found = [dropped(streams(0.0, 0.5, 0.5, 0.5), 1, step) for step in range(STEPS)]
    for pair in combinations(("s1", "s2", "s3"), 2):
        assert sum(set(pair) <= out for out in found) / STEPS == pytest.approx(0.25, abs=error(0.25))


@pytest.mark.parametrize("drops", [(0.5, 0.5), (0.9, 0.9, 0.9), (0.9, 0.6)])
def test_one_is_always_kept_and_of_those_that_would_go_each_as_often(drops: tuple[float, ...]) -> None:
    together = 1.0
    for drop in drops:
        together *= drop
    for drop, share in zip(drops, shares(*drops), strict=True):
        expected = drop - together / len(drops)
        assert share == pytest.approx(expected, abs=error(expected))
    assert all(len(dropped(streams(*drops), 1, step)) < len(drops) for step in range(STEPS))


def test_it_depends_on_seed_name_and_step_alone() -> None:
    first, second = streams(0.5, 0.5, 0.5), streams(0.5, 0.5, 0.5)[::-1]
    found = [dropped(first, 1, step) for step in range(100)]
    assert found == [dropped(second, 1, step) for step in range(100)]
    assert found != [dropped(first, 2, step) for step in range(100)]
    assert len(set(found)) > 3
