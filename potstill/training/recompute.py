"""Gradient checkpointing: of each layer only what enters it is kept, and the rest is computed again for the gradient.

Source: Chen et al. 2016, arXiv:1604.06174. The mechanism is transformers' and torch's (not re-entrant); dropout draws
the same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers.modeling_layers import GradientCheckpointingLayer

from potstill.errors import ConfigError
from potstill.models.families import Family

RECOMPUTES = "_gradient_checkpointing_func"  # what transformers runs such a layer by


@contextmanager
def recomputing(student: Family, *, wanted: bool, dropout: bool = True) -> Iterator[None]:
    """Compute the student's layers again for their gradient, while it is trained and nowhere else.

    Args:
        student: in training mode where its dropout is on, and else in evaluation mode.
        wanted: false leaves everything as it is. dropout: whether it is on.
    Raises: ConfigError for a model that cannot.
    """
    if not wanted:
        yield
        return
    model = student.model
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"gradient_checkpointing is true, and {type(model).__name__} of transformers has none",
            "leave it out, and lower batch.micro_size instead",
        )
    # transformers renamed it; both take torch's settings first.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    around = student.packing.recomputed if student.packing else noop_context_fn
    enable({"use_reentrant": False, "context_fn": around})
    # Without dropout they are not in training, and transformers goes by that; so does dropout that a layer applies
    # itself. They are said to be in training, and not while they run.
    said = [] if dropout else [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in said:
        layer.training = True
        setattr(layer, RECOMPUTES, _checkpointed(layer, around))
    try:
        yield
    finally:
        disable()
        for layer in said:
            layer.training = False


def _checkpointed(layer: nn.Module, around: Callable[[], Any]) -> Callable[..., Any]:
    def checkpointed(function: Callable[..., Any], *args: Any) -> Any:
        def run(*given: Any) -> Any:
            before, layer.training = layer.training, False
            try:
                return function(*given)
            finally:
                layer.training = before

        return checkpoint(run, *args, use_reentrant=False, context_fn=around)

    return checkpointed
