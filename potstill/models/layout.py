"""Where a model keeps its layers, and what kind of model a config is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from potstill.errors import ModelError

ENCODER, DECODER = "encoder", "decoder"
# Where each architecture keeps its layers, under its base model, encoder or decoder. A new one joins by a name here.
LAYER_LISTS = ("layers", "decoder.layers", "h", "block")
# How each architecture's config says how many layers there are.
COUNT_KEYS = {
    ENCODER: ("num_layers", "encoder_layers", "num_encoder_layers", "num_hidden_layers"),
    DECODER: ("num_decoder_layers", "decoder_layers"),
}


@dataclass(frozen=True)
class Stack:
    """Layers that come one after another.

    ``path`` is where they are in the model; under ``count_keys`` its config says how many there are.
    """

    path: str
    layers: nn.ModuleList
    count_keys: tuple[str, ...]


def is_encoder_decoder(config: Any) -> bool:
    """Whether a model reads a source and writes a target, and does not go on with one sequence."""
    return bool(getattr(config, "is_encoder_decoder", False))


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model of this config with its head."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM


def stacks_of(model: Any) -> dict[str, Stack]:
    """The decoder's layers by ``DECODER``, and before them the encoder's by ``ENCODER`` where there is one.

    Raises: ModelError for a layout that is not known yet.
    """
    if not is_encoder_decoder(model.config):
        return {DECODER: _stack(model, model.base_model, ("num_hidden_layers",))}
    parts = {ENCODER: model.get_encoder(), DECODER: model.get_decoder()}
    return {name: _stack(model, part, COUNT_KEYS[name]) for name, part in parts.items()}


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder's layers, in order: all there are of a causal model. Raises: ModelError as ``stacks_of``."""
    return stacks_of(model)[DECODER].layers


def _stack(model: Any, part: nn.Module, count_keys: tuple[str, ...]) -> Stack:
    own = next((name for name, module in model.named_modules() if module is part), "")
    for path in LAYER_LISTS:
        try:
            layers = part.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            known = tuple(key for key in count_keys if hasattr(model.config, key))
            return Stack(f"{own}.{path}".lstrip("."), layers, known)
    raise ModelError(
        f"{type(model).__name__}: where it keeps its layers is not known, so it cannot be cut",
        "name a ready student with student=MODEL, or add its layout to LAYER_LISTS in potstill/models/layout.py",
    )
