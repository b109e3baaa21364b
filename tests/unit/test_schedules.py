"""Numbers that change while training."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
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
    assert values(recipe.ExponentialSchedule(start=0, end=1, left=0.01), 3) == pytest.approx([0, 0.9, 0.99])
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


def test_exponential_leaves_the_same_share_at_every_step_and_does_not_go_on_over_the_end() -> None:
    """ImitKD's share of the data: left**progress."""
    found = values(recipe.ExponentialSchedule(start=0, end=1, left=0.2), 9)
    ratios = [(1 - b) / (1 - a) for a, b in itertools.pairwise(found)]
    assert ratios == pytest.approx([0.2 ** (1 / 8)] * 8)
    late = schedules.build(recipe.ExponentialSchedule(start=3, end=1, left=0.25))
    assert late.value(1.0) == late.value(2.0) == pytest.approx(1.5)


# --- One number for each response -------------------------------------------------------------------------------------


def test_a_skew_is_the_starts_where_the_models_differ_as_at_first_and_less_where_they_are_closer() -> None:
    """1 - 0.9 c / gap, with c = 0.2: by hand."""
    schedule = schedules.CurriculumSkew()
    schedule.anchor(0.2)
    found = schedule.values(torch.tensor([0.2, 0.19, 0.185, 0.18, 0.02, 0.5], dtype=torch.float64))
    assert found[0].item() == pytest.approx(0.1, abs=1e-4)
    assert found[1].item() == pytest.approx(1 - 0.9 * 0.2 / 0.19, abs=1e-4)
    assert found[2].item() == pytest.approx(1 - 0.9 * 0.2 / 0.185, abs=1e-4)
    assert found[3:].tolist() == [0.01, 0.01, 0.1]  # kept in range


def test_a_skew_stays_in_range_whatever_the_gaps() -> None:
    schedule = schedules.CurriculumSkew(start=0.3, least=0.05)
    for first in (0.2, 0.0, -0.2, math.nan):
        schedule.anchor(first)
        gaps = torch.tensor([0.0, -1e-5, -0.4, 1e-30, 1.0, math.nan], dtype=torch.float64)
        found = schedule.values(gaps)
        assert ((found >= 0.05) & (found <= 0.3)).all()


def test_a_curriculum_has_to_be_anchored_and_is_so_after_a_restart() -> None:
    schedule, later = schedules.CurriculumSkew(), schedules.CurriculumSkew()
    assert not schedule.is_anchored
    with pytest.raises(ValueError, match="has not been told yet"):
        schedule.values(torch.ones(2))
    later.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert not later.is_anchored
    schedule.anchor(0.2)
    later.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    gaps = torch.tensor([0.1, 0.19, 0.3])
    assert torch.equal(later.values(gaps), schedule.values(gaps))


@pytest.mark.parametrize(
    ("section", "settings"), [("curriculum", {"start": 0.1, "least": 0.2}), ("taid", {"start": 1.0, "end": 0.5})]
)
def test_ranges_that_run_backwards_are_refused(section: str, settings: dict[str, float]) -> None:
    made = {"curriculum": recipe.CurriculumSkew, "taid": recipe.TaidSchedule}[section]
    with pytest.raises(ValueError, match=r"(?i)give a (least|start) up to the"):
        made(**settings)
