"""The optimizer of a stage, and how much of its budget is spent."""

from __future__ import annotations

import torch
from torch import nn

from potstill import recipe
from potstill.schedules import learning_rate_factor


def build(module: nn.Module, settings: recipe.Optimizer) -> torch.optim.AdamW:
    """AdamW over everything that is not frozen; weight decay on matrices only."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: recipe.Optimizer, progress: float) -> float:
    """Set the learning rate for a step that begins at ``progress`` of the budget, and return it."""
    factor = learning_rate_factor(progress, schedule=settings.schedule, warmup_fraction=settings.warmup_fraction)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    return settings.learning_rate * factor
