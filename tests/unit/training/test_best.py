"""Which student is kept."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.training.trainer import State, _validate, choose


def chosen(name: str, *validations: tuple[float, float]) -> int | None:
    """The step that is kept after these values and standard errors, one step each from step 1."""
    state = State(world_size=1, settings={})
    for step, (value, error) in enumerate(validations, 1):
        state.step = step
        choose(state, name, value, error)
    return state.best_step


@pytest.mark.parametrize(("name", "best"), [("forward_kl_nats", 2), ("perplexity", 2), ("top1_agreement", 3)])
def test_without_noise_the_best_is_kept_and_of_equals_the_first(name: str, best: int) -> None:
    assert chosen(name, (2.0, 0), (1.0, 0), (3.0, 0), (1.0, 0), (3.0, 0)) == best


def test_within_the_best_ones_standard_error_the_newest_is_kept() -> None:
    assert chosen("rouge_l", (21.3, 3.0), (19.7, 1.0)) == 2
    assert chosen("rouge_l", (21.3, 1.0), (19.7, 3.0)) == 1  # whose error it is matters
    assert chosen("rouge_l", (21.3, 3.0), (19.7, 1.0), (15.0, 1.0)) == 2


def test_a_slow_decline_does_not_drag_the_choice_down() -> None:
    """Each is within an error of the one before, but the errors are counted from the best of all."""
    assert chosen("rouge_l", *((20.0 - step, 1.5) for step in range(8))) == 2


def test_a_new_best_brings_its_own_error() -> None:
    assert chosen("rouge_l", (10.0, 5.0), (12.0, 0.5), (11.0, 5.0)) == 2


def test_an_error_that_is_not_known_is_no_allowance() -> None:
    assert chosen("rouge_l", (20.0, math.nan), (19.0, math.nan)) == 1


@pytest.mark.parametrize(
    ("name", "values", "best"), [("perplexity", (1.0, 2.0, 2.1), 1), ("accuracy", (0.9, 0.5, 0.45), 2)]
)
def test_noise_is_allowed_for_in_answers_alone_and_the_untouched_student_is_not_kept(
    name: str, values: tuple[float, ...], best: int
) -> None:
    """Perplexity and divergences have standard errors too, over rows that are the same each time."""
    state, found = State(world_size=1, settings={}), iter(values)
    job: Any = SimpleNamespace(
        runtime=SimpleNamespace(is_main=True, share=lambda told: told),
        validate=lambda: {name: next(found), f"{name}_stderr": 0.2},
        stage=SimpleNamespace(checkpoint=SimpleNamespace(best_by=name)),
        streams=(),
        label="kd",
    )
    quiet: Any = SimpleNamespace(write=lambda _: None, note=lambda _: None)
    for step in range(3):
        state.step = step
        _validate(job, state, quiet, quiet)
    assert state.best_step == best
