"""The optimizers: the update against one written here, what is decayed, and a state that comes back bit for bit."""

from __future__ import annotations

import io
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill import recipe
from potstill.training import optim

RATE, DECAY = 0.02, 0.1


def module(seed: int = 0) -> nn.Module:
    """A matrix and a vector."""
    torch.manual_seed(seed)
    return nn.Linear(5, 3).double()


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 5), (3,))]


def take(made: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    for step in steps:
        for parameter, gradient in zip(made.parameters(), gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in made.parameters()]


def settings(name: str, **given: object) -> recipe.Optimizer:
    return recipe.Optimizer.model_validate({"name": name, "learning_rate": RATE, "weight_decay": DECAY} | given)


def adafactor_by_hand(start: list[Tensor], steps: int) -> list[Tensor]:
    """Shazeer and Stern's algorithms 4 and 5 without first moments and with a given rate; decay on the matrix alone."""
    matrix, vector = (parameter.clone() for parameter in start)
    rows, columns, squares = torch.zeros(3).double(), torch.zeros(5).double(), torch.zeros(3).double()
    for step in range(steps):
        g_matrix, g_vector = gradients(step)
        keep = 1 - (step + 1) ** -0.8
        rows = keep * rows + (1 - keep) * (g_matrix**2 + 1e-30).mean(1)
        columns = keep * columns + (1 - keep) * (g_matrix**2 + 1e-30).mean(0)
        squares = keep * squares + (1 - keep) * (g_vector**2 + 1e-30)
        second = rows[:, None] * columns[None, :] / rows.mean()
        for parameter, update, decay in (
            (matrix, g_matrix / second.sqrt(), DECAY),
            (vector, g_vector / squares.sqrt(), 0),
        ):
            update = update / max(1.0, float(update.norm()) / math.sqrt(update.numel()))
            parameter -= RATE * decay * parameter + RATE * update
    return [matrix, vector]


def test_adafactor_is_the_papers_with_a_rate_of_its_own_and_decay_on_matrices_alone() -> None:
    made = module()
    start = [parameter.detach().clone() for parameter in made.parameters()]
    found = take(made, optim.build(made, settings("adafactor")), range(4))
    for one, other in zip(found, adafactor_by_hand(start, 4), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_saved_state_goes_on_bit_for_bit(name: str) -> None:
    whole = module()
    expected = take(whole, optim.build(whole, settings(name)), range(6))
    begun = module()
    optimizer = optim.build(begun, settings(name))
    take(begun, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = module(seed=1)
    again.load_state_dict(begun.state_dict())
    restored = optim.build(again, settings(name))
    restored.load_state_dict(torch.load(file, weights_only=True))
    for one, other in zip(take(again, restored, range(3, 6)), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_schedule_sets_the_rate_of_the_step(name: str) -> None:
    """At a rate of 0 nothing moves, whatever the gradient."""
    made = module()
    before = [parameter.detach().clone() for parameter in made.parameters()]
    chosen = settings(name, schedule="linear", warmup_fraction=0.0)
    optimizer = optim.build(made, chosen)
    assert optim.set_learning_rate(optimizer, chosen, 1.0) == 0
    assert all(map(torch.equal, take(made, optimizer, range(1)), before))
    assert optim.set_learning_rate(optimizer, chosen, 0.0) == RATE
    assert not any(map(torch.equal, take(made, optimizer, range(1)), before))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_what_is_frozen_is_no_ones_to_move(name: str) -> None:
    made = module()
    made.weight.requires_grad_(False)
    held = {id(p) for group in optim.build(made, settings(name)).param_groups for p in group["params"]}
    assert held == {id(made.bias)}


@pytest.mark.parametrize("wrong", [{"betas": (0.9, 0.999)}, {"epsilon": 1e-6}])
def test_settings_of_adamw_are_refused_of_adafactor(wrong: dict[str, object]) -> None:
    assert settings("adamw", **wrong)
    with pytest.raises(ValidationError, match="is of adamw, and name is adafactor"):
        settings("adafactor", **wrong)
