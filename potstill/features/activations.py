"""What activations are to an attribution: something to differentiate by, where they are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from potstill.models.families import Family


def differentiable(activation: Tensor) -> Tensor:
    """The activation as something to differentiate by: a leaf, unless it already hangs on a layer's below."""
    return activation if activation.requires_grad else activation.detach().requires_grad_()


def scored(activation: Tensor, at: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "token channel"]:
    """The rows of an activation that stand where ``at`` says, batch and tokens in one or not."""
    return activation.view(*at.shape, -1)[at.to(activation.device)]


@contextmanager
def frozen(family: Family) -> Iterator[None]:
    """Gradients on, but none of the weights': a graph begins at what is made differentiable, and not below it."""
    learning = [parameter for parameter in family.parameters() if parameter.requires_grad]
    family.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()
