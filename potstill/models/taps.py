"""Looking inside a model while it runs: what leaves a layer, its MLP's inner channels, its queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.families import Family
from potstill.models.layout import layers_of
from potstill.types import Batch, Inside, Tap

RELATIONS = ("queries", "keys", "values")


@dataclass(frozen=True)
class Names:
    """How an architecture names what is in its layers.

    ``mlp`` is the matrix that reads the inner channels; ``relations`` make queries, keys and values, or one makes all.
    """

    mlp: str
    relations: tuple[str, ...]


# The one table of what layers have inside; a layer is of the first kind whose names it has.
NAMES = (
    Names("mlp.down_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),  # LLaMA, Qwen, SmolLM, Gemma
    Names("mlp.c_proj", ("attn.c_attn",)),  # GPT-2
    Names("fc2", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),  # OPT, BART
    Names(
        "layer.2.DenseReluDense.wo", ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v")
    ),  # T5's decoder
)


@contextmanager
def tapping(family: Family, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """While it is open, a forward of the family leaves in the dictionary what was at each place, as the model has it.

    Gradient flows through what is left there, where the forward has any. ``read`` brings it to the response.

    Raises: ModelError for a layer that is not there, or whose inside is not known.
    """
    seen: dict[Tap, Tensor] = {}
    hooks = []
    try:
        for tap in taps:
            hooks.append(_hook(_layer(family, tap), tap, seen))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def read(family: Family, seen: dict[Tap, Tensor], batch: Batch) -> Inside:
    """What was seen, at the response's positions: ``[batch, response, channel]`` for each place."""
    return {tap: family.aligned(_by_row(states, len(batch)), batch) for tap, states in seen.items()}


def width(family: Family, tap: Tap) -> int:
    """How many channels there are at a place. Raises: ModelError as ``tapping``."""
    layer = _layer(family, tap)
    if tap.place == "residual":
        return int(family.model.config.get_text_config().hidden_size)
    names = names_of(layer)
    if tap.place == "mlp":
        return _inputs(layer.get_submodule(names.mlp))
    if len(names.relations) == 1:
        return _outputs(layer.get_submodule(names.relations[0])) // len(RELATIONS)
    return _outputs(layer.get_submodule(names.relations[RELATIONS.index(tap.place)]))


def names_of(layer: nn.Module) -> Names:
    """How a layer names what is in it. Raises: ModelError for one that is not in the table."""
    for names in NAMES:
        if all(_has(layer, name) for name in (names.mlp, *names.relations)):
            return names
    raise ModelError(
        f"what a {type(layer).__name__} has inside is not known",
        "compare what leaves it, place=residual, or add the names of its parts to NAMES in potstill/models/taps.py",
    )


def _hook(layer: nn.Module, tap: Tap, seen: dict[Tap, Tensor]) -> Any:
    def leaving(_module: nn.Module, _args: Any, output: Any) -> None:
        seen[tap] = output[0] if isinstance(output, tuple) else output

    def entering(_module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[tap] = args[0] if args else next(iter(kwargs.values()))

    if tap.place == "residual":
        return layer.register_forward_hook(leaving)
    names = names_of(layer)
    if tap.place == "mlp":
        return layer.get_submodule(names.mlp).register_forward_pre_hook(entering, with_kwargs=True)
    at = RELATIONS.index(tap.place)
    if len(names.relations) > 1:
        return layer.get_submodule(names.relations[at]).register_forward_hook(leaving)
    return layer.get_submodule(names.relations[0]).register_forward_hook(_third(tap, at, seen))


def _third(tap: Tap, at: int, seen: dict[Tap, Tensor]) -> Callable[..., None]:
    def leaving(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen[tap] = output.chunk(len(RELATIONS), -1)[at]

    return leaving


def _layer(family: Family, tap: Tap) -> nn.Module:
    layers = layers_of(family.model)
    if not tap.layer < len(layers):
        raise ModelError(
            f"layer {tap.layer} is not there: the model has {len(layers)}", f"name layers from 0 to {len(layers) - 1}"
        )
    return layers[tap.layer]


def _by_row(states: Tensor, rows: int) -> Tensor:
    """OPT's MLPs see all tokens of a batch in one line."""
    return states.view(rows, -1, states.shape[-1]) if states.ndim == 2 else states


def _has(layer: nn.Module, name: str) -> bool:
    try:
        layer.get_submodule(name)
    except AttributeError:
        return False
    return True


def _inputs(matrix: Any) -> int:
    return int(matrix.in_features if hasattr(matrix, "in_features") else matrix.nx)  # nx: GPT-2's Conv1D


def _outputs(matrix: Any) -> int:
    return int(matrix.out_features if hasattr(matrix, "out_features") else matrix.nf)
