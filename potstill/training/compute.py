"""How many floating point operations training takes, counted as the models run: whatever a method asks of them.

By the usual convention: 2 for each weight that a position meets in a matrix product, and twice that again for its
gradients. Products of attention scores, lookups and everything between products are left out, and the head counts at
every position. Padding counts too, since it is computed; what gradient checkpointing computes again does not.

Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from potstill.models.families import Family
from potstill.models.layout import DECODER, ENCODER, is_encoder_decoder, stacks_of


class Meter:
    """Counts while it is open. ``flops`` are those of this process since it was opened."""

    def __init__(self) -> None:
        self.flops = 0.0

    @contextmanager
    def reading(self, families: Sequence[Family]) -> Iterator[Meter]:
        """Count what these models do; one that is named twice counts once."""
        models = {id(family.model): family.model for family in families}.values()
        counted = [part for model in models for part in _parts(model)]
        hooks = [
            module.register_forward_pre_hook(self._counting(weights, model), with_kwargs=True)
            for model, module, weights in counted
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _counting(self, weights: int, model: nn.Module) -> Any:
        trained = any(parameter.requires_grad for parameter in model.parameters())

        def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = args[0] if args else next(iter(kwargs.values()))
            positions = read.shape.numel() if read.ndim == 2 else read.shape[:-1].numel()
            self.flops += 2.0 * weights * positions * (3 if trained and torch.is_grad_enabled() else 1)

        return count


def _parts(model: Any) -> Iterator[tuple[Any, nn.Module, int]]:
    """Modules that every position of a text goes through once, and the weights it meets from there on."""
    head = model.get_output_embeddings().weight
    if not is_encoder_decoder(model.config):
        embedding = model.get_input_embeddings()
        yield model, embedding, _weights(model.base_model) + head.numel()
        return
    stacks = stacks_of(model)
    for name in (ENCODER, DECODER):
        layers = stacks[name].layers
        yield model, layers[0], _weights(layers) + (head.numel() if name == DECODER else 0)


def _weights(module: nn.Module) -> int:
    """Entries of matrices in products: no biases and norms, and no tables that are looked up."""
    parts = (part for part in module.modules() if not isinstance(part, nn.Embedding))
    return sum(_entries(own) for part in parts for own in part.parameters(recurse=False) if own.ndim >= 2)


def _entries(weight: Any) -> int:
    """Entries of a matrix, of one in bitsandbytes' 4 bits too, which holds two in a byte."""
    state = getattr(weight, "quant_state", None)
    return int(weight.numel() if state is None else state.shape.numel())
