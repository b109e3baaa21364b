"""Where to look inside a model's layers: one line for each kind of architecture, of the names of its modules.

Beside ``axes``, which has every weight of the models that can be cut in width; looking needs two names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.axes import GPT2, LLAMA, OPT
from potstill.models.layout import DECODER, stacks_of


@dataclass(frozen=True)
class Places:
    """Names of modules.

    Args:
        mlp_out: in a layer, the matrix that reads the MLP's inner channels.
        relations: in a layer, what makes queries, keys and values, or the one that makes all three, side by side.
        final: beside the list of layers, what stands between the last layer and the head, in order; one that a model of
            this kind does not have, or has as None, is passed over.
    """

    mlp_out: str
    relations: tuple[str, ...]
    final: tuple[str, ...]


_SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA = Places(LLAMA.mlp_out, _SEPARATE, ("norm",))
_T5 = Places(
    "layer.2.DenseReluDense.wo",
    ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    ("final_layer_norm",),
)
PLACES: Mapping[str, Places] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2"), _LLAMA),
    "gpt2": Places(GPT2.mlp_out, ("attn.c_attn",), ("ln_f",)),
    "opt": Places(OPT.mlp_out, _SEPARATE, ("final_layer_norm", "project_out")),
    **dict.fromkeys(("t5", "mt5"), _T5),
    "bart": Places("fc2", _SEPARATE, ()),
}


def places_of(config: Any) -> Places:
    """Raises: ModelError for an architecture that is not in the table, saying what to add."""
    if found := PLACES.get(config.model_type):
        return found
    raise ModelError(
        f"what a {config.model_type} calls the modules of its layers is not known",
        "add a line to PLACES in potstill/models/places.py: the matrix that reads a layer's inner channels, those that "
        f"make queries, keys and values, and the norm behind the last layer; there are {', '.join(PLACES)}. "
        "place=residual with measure=grad_activation, "
        "integrated_gradients or mean_activation needs no such line",
    )


def mlp_out_of(model: Any, layer: int) -> nn.Module:
    """The matrix that reads the inner channels of one of the decoder's layers. Raises: ModelError."""
    return module_of(model, layer, places_of(model.config).mlp_out)


def relations_of(model: Any, layer: int) -> tuple[nn.Module, ...]:
    """What makes queries, keys and values in one of the decoder's layers, or all three at once. Raises: ModelError."""
    return tuple(module_of(model, layer, name) for name in places_of(model.config).relations)


def module_of(model: Any, layer: int, name: str) -> nn.Module:
    """A module of one of the decoder's layers. Raises: ModelError."""
    try:
        return stacks_of(model)[DECODER].layers[layer].get_submodule(name)
    except AttributeError:
        raise ModelError(
            f"layer {layer} of this {model.config.model_type} has no {name}",
            "its line in PLACES of potstill/models/places.py does not fit it: look at other layers, or place=residual",
        ) from None


def to_head(model: Any, residual: Float[Tensor, "*pos hidden"]) -> Float[Tensor, "*pos hidden"]:
    """What the head would be given if this layer were the decoder's last. Raises: ModelError."""
    names, path = places_of(model.config).final, stacks_of(model)[DECODER].path
    beside = model.get_submodule(path.rpartition(".")[0])
    for name in names:
        module = getattr(beside, name, None)
        residual = residual if module is None else module(residual)
    return residual
