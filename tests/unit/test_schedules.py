"""Numbers that change while training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import recipe, schedules
from potstill.schedules import learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.05, 0.5),
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 1.0, 0.0),
        ("linear", 0.55, 0.5),
        ("linear", 1.0, 0.0),
        ("constant", 0.05, 0.5),
        ("constant", 0.9, 1.0),
    ],
)
def test_values(schedule: Any, progress: float, expected: float) -> None:
    assert learning_rate_factor(progress, schedule=schedule, warmup_fraction=0.1) == pytest.approx(expected, abs=1e-12)


def test_without_warmup_it_starts_at_the_top() -> None:
    assert learning_rate_factor(0.0, schedule="cosine", warmup_fraction=0.0) == 1


def test_all_warmup_rises_to_the_end() -> None:
    assert learning_rate_factor(0.999, schedule="cosine", warmup_fraction=1.0) == pytest.approx(0.999)
    assert learning_rate_factor(1.0, schedule="cosine", warmup_fraction=1.0) == 1


def test_a_budget_in_seconds_may_overshoot() -> None:
    assert learning_rate_factor(1.3, schedule="cosine", warmup_fraction=0.1) == pytest.approx(0, abs=1e-12)
    assert not math.isnan(learning_rate_factor(1.3, schedule="linear", warmup_fraction=0.1))


# --- Schedules of settings --------------------------------------------------------------------------------------------


def values(spec: object, count: int = 5) -> list[float]:
    schedule = schedules.build(spec)  # type: ignore[arg-type]
    return [schedule.value(i / (count - 1)) for i in range(count)]


def test_fixed_schedules() -> None:
    assert values(0.3) == [0.3] * 5
    assert values(recipe.LinearSchedule(start=1, end=3)) == [1, 1.5, 2, 2.5, 3]
    assert values(recipe.LinearSchedule(start=1, end=3, share=0.5)) == [1, 2, 3, 3, 3]
    assert values(recipe.CosineSchedule(start=1, end=0), 3) == pytest.approx([1, 0.5, 0])
    assert values(recipe.CosineSchedule(start=0, end=2, share=0.5)) == pytest.approx([0, 1, 2, 2, 2])
    assert values(recipe.StepSchedule(values=(1, 2, 0), at=(0.25, 0.6))) == [1, 2, 2, 0, 0]


def taid(**settings: float) -> schedules.TaidSchedule:
    return schedules.TaidSchedule(**settings)


def train(schedule: schedules.TaidSchedule, losses: list[float], steps: int) -> list[float]:
    found = []
    for index, loss in enumerate(losses):
        found.append(schedule.value(index / steps))
        schedule.observe(loss, index / steps)
    return found


def test_taid_follows_its_rule_step_by_step() -> None:
    """Written out again from the paper, with a rate at which the adaptive part matters."""
    losses = [3.0, 2.5, 2.6, 1.0, 1.0]
    found = train(taid(rate=0.3, momentum=0.5), losses, steps=1000)
    t, momentum, expected = 0.4, 0.0, [0.4, 0.4 + 0.6 * 1 / 1000]
    t = expected[-1]
    for n in range(1, 4):
        momentum = 0.5 * momentum + 0.5 * (losses[n - 1] - losses[n]) / losses[n - 1]
        t = max(t + 0.3 / (1 + math.exp(-momentum)) * (1 - t), 0.4 + 0.6 * (n + 1) / 1000)
        expected.append(t)
    assert found == pytest.approx(expected, rel=1e-9)


@given(
    st.lists(st.floats(1e-6, 20), min_size=2, max_size=40),
    st.floats(0, 0.9),
    st.floats(1e-5, 1),
    st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_taid_rises_over_its_line_and_ends_at_its_end(
    losses: list[float], start: float, rate: float, momentum: float
) -> None:
    steps = len(losses)
    found = train(taid(start=start, end=0.95, rate=rate, momentum=momentum), losses, steps)
    for index, value in enumerate(found):
        assert start + (0.95 - start) * index / steps - 1e-12 <= value <= 0.95
    assert found == sorted(found)


def test_taid_rises_faster_while_the_loss_falls() -> None:
    falling = train(taid(rate=0.1, momentum=0.0), [8.0, 4.0, 2.0, 1.0], 10_000)
    rising = train(taid(rate=0.1, momentum=0.0), [1.0, 2.0, 4.0, 8.0], 10_000)
    assert falling[-1] > rising[-1]


def test_with_the_papers_rate_the_line_decides_in_a_short_run() -> None:
    """What the adaptive part adds in 1,000 steps, at most: a run this short is the linear schedule."""
    losses = [3.0 * 0.999**n for n in range(1000)]
    line = [0.4 + 0.6 * n / 1000 for n in range(1000)]
    found = train(taid(), losses, 1000)
    assert max(a - b for a, b in zip(found, line, strict=True)) < 1e-3


@pytest.mark.parametrize("make", [lambda: taid(rate=0.2), schedules.DistillmSchedule])
def test_adaptive_schedules_go_on_from_a_saved_state(make: Callable[[], Any]) -> None:
    losses = [3.0, 2.0, 2.5, 4.0, 1.0, 5.0, 5.2]
    whole, first, second = make(), make(), make()
    for index, loss in enumerate(losses):
        whole.observe(loss, index / 10)
        (first if index < 3 else second).observe(loss, index / 10)
        if index == 2:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.value(0.7) == whole.value(0.7)
    assert second.state_dict() == whole.state_dict()


def test_distillm_raises_its_share_when_the_validation_loss_rises() -> None:
    schedule = schedules.DistillmSchedule()
    shares = []
    for loss in [3.0, 2.0, 2.5, 3.05, 3.1, 3.15, 3.21, 3.32]:
        schedule.observe(loss, 0.5)
        shares.append(round(schedule.value(0.5), 10))
    # Compared with the first, 3.0, and not with the lowest: 3.1 is 0.1 above it, then 3.21 is 0.1 above 3.1.
    assert shares == [0, 0, 0, 0, 0.1, 0.1, 0.2, 0.3]
    assert schedule.generated(0.0) == pytest.approx(0.3)
    assert schedule.generated(0.75) == pytest.approx(0.075)
    assert schedule.generated(1.0) == schedule.generated(2.0) == 0


def test_distillm_never_leaves_its_range() -> None:
    schedule = schedules.DistillmSchedule(step=0.4)
    previous = 0.0
    for loss in range(10):
        schedule.observe(float(loss), 0.0)
        assert previous <= schedule.value(0.0) <= 1
        previous = schedule.value(0.0)
    assert previous == 1


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_not_learned_from(figure: float) -> None:
    for make in (lambda: taid(rate=0.2), schedules.DistillmSchedule):
        with_it, without = make(), make()
        for index, loss in enumerate([figure, 3.0, figure, 2.0, 5.0]):
            with_it.observe(loss, index / 10)
            if math.isfinite(loss):
                without.observe(loss, index / 10)
        assert with_it.state_dict() == without.state_dict()
