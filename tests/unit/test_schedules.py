"""The learning rate over the budget."""

from __future__ import annotations

import math
from typing import Any

import pytest

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
