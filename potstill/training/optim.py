"""The optimizer of a stage, and how much of its budget is spent."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from potstill import recipe
from potstill.schedules import learning_rate_factor


def build(module: nn.Module, settings: recipe.Optimizer) -> torch.optim.Optimizer:
    """The optimizer over everything that is not frozen; weight decay, decoupled from the gradient, on matrices only."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    given: list[dict[str, Any]] = [group for group in groups if group["params"]]
    if settings.name == "adafactor":
        return _adafactor(given, settings)
    return torch.optim.AdamW(given, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon)


def _adafactor(groups: list[dict[str, Any]], settings: recipe.Optimizer) -> torch.optim.Optimizer:
    """Adafactor with the learning rate as it is given. What is left out are its defaults, which are the paper's.

    Source: Shazeer and Stern 2018, Adafactor, arXiv:1804.04235.
    """
    from transformers.optimization import Adafactor  # slow to import, and seldom wanted

    made: torch.optim.Optimizer = Adafactor(
        groups, lr=settings.learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return made


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: recipe.Optimizer, progress: float) -> float:
    """Set the learning rate for a step that begins at ``progress`` of the budget, and return it."""
    factor = learning_rate_factor(progress, schedule=settings.schedule, warmup_fraction=settings.warmup_fraction)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    return settings.learning_rate * factor
