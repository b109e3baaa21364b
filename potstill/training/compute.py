"""How many floating point operations training takes, counted as the models run: whatever a method asks of them.

By the usual convention: 2 for each weight that a position meets in a matrix product, and twice that again for its
gradients. Products of attention scores, lookups and everything between products are left out, and the head counts at
every position. Padding counts where it is computed, and rows laid end to end have none; what gradient checkpointing
computes again does not count.

Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from potstill.models import adapters
from potstill.models.families import Family
from potstill.models.layout import DECODER, ENCODER, is_encoder_decoder, stacks_of
from potstill.models.quantised import entries


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
            module.register_forward_pre_hook(self._counting(weights, backward, model), with_kwargs=True)
            for model, module, weights, backward in counted
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _counting(self, weights: int, backward: int, model: nn.Module) -> Any:
        trained = any(parameter.requires_grad for parameter in model.parameters())

        def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = args[0] if args else next(iter(kwargs.values()))
            positions = read.shape.numel() if read.ndim == 2 else read.shape[:-1].numel()
            self.flops += 2.0 * positions * (weights + (backward if trained and torch.is_grad_enabled() else 0))

        return count


def _parts(model: Any) -> Iterator[tuple[Any, nn.Module, int, int]]:
    """Modules that every position of a text goes through once, the weights it meets from there on, and how many times
    over in all it meets them again in the backward pass."""
    head = model.get_output_embeddings().weight.numel()
    if not is_encoder_decoder(model.config):
        yield model, model.get_input_embeddings(), *_met(model, model.base_model, head)
        return
    stacks = stacks_of(model)
    for name in (ENCODER, DECODER):
        layers = stacks[name].layers
        yield model, layers[0], *_met(model, layers, head if name == DECODER else 0)


def _met(model: Any, module: nn.Module, head: int) -> tuple[int, int]:
    """Weights that are met forward, and backward: twice each, but those under an adapter once, for the states alone."""
    weights = _weights(module) + head
    if not adapters.is_adapted(model):
        return weights, 2 * weights
    return weights, weights + sum(p.numel() for name, p in module.named_parameters() if adapters.is_matrix(name))


def _weights(module: nn.Module) -> int:
    """Entries of matrices in products: no biases and norms, and no tables that are looked up."""
    parts = (part for part in module.modules() if not isinstance(part, nn.Embedding))
    return sum(entries(own) for part in parts for own in part.parameters(recurse=False) if own.ndim >= 2)
