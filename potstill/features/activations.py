"""What the channels of some layers hold while a model reads a batch: taken out, or changed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.models.families import Family
from potstill.models.layout import layers_of
from potstill.models.places import mlp_out_of
from potstill.types import Batch

# residual: what leaves a layer, before the final norm. mlp: what the MLP's output matrix reads, its inner channels.
Place: TypeAlias = Literal["residual", "mlp"]
Change: TypeAlias = Callable[[Tensor], Tensor]


def as_it_is(activation: Tensor) -> Tensor:
    return activation


def differentiable(activation: Tensor) -> Tensor:
    """The activation as something to differentiate by: a leaf, unless it already hangs on a layer's below."""
    return activation if activation.requires_grad else activation.detach().requires_grad_()


@contextmanager
def watching(family: Family, layers: Sequence[int], place: Place, change: Change = as_it_is) -> Iterator[list[Tensor]]:
    """What stands at ``place`` in each of these layers of the decoder, once the family has read a batch.

    Args:
        change: what the model goes on with, and what is given back, in place of the activation.
    Yields: a list to be read after the forward, in the order of ``layers``: ``[batch, tokens, channel]``, or the same
        with batch and tokens in one, as some models have it.
    Raises: ModelError for a layout that is not known.
    """
    seen: list[Tensor] = [torch.empty(0)] * len(layers)
    with ExitStack() as hooks:
        for at, layer in enumerate(layers):
            hooks.callback(_hook(family.model, layer, place, change, seen, at).remove)
        yield seen


def _hook(model: Any, layer: int, place: Place, change: Change, seen: list[Tensor], at: int) -> Any:
    def take(activation: Tensor) -> Tensor:
        seen[at] = change(activation)
        return seen[at]

    def leaving(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (take(output[0]), *output[1:]) if isinstance(output, tuple) else take(output)

    def entering(_module: nn.Module, args: Any) -> Any:
        return (take(args[0]), *args[1:])

    if place == "residual":
        return layers_of(model)[layer].register_forward_hook(leaving)
    return mlp_out_of(model, layer).register_forward_pre_hook(entering)


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


@torch.no_grad()
def width_at(family: Family, batch: Batch, layers: Sequence[int], place: Place) -> int:
    """How many channels the first of these layers has at ``place``. Raises: ModelError."""
    with watching(family, layers[:1], place) as seen:
        family(batch.to(next(family.parameters()).device))
    return seen[0].shape[-1]
