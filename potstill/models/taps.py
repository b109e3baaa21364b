"""Looking inside a model while it runs: what leaves a layer, its MLP's inner channels, its queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.families import Family
from potstill.models.layout import layers_of
from potstill.models.places import mlp_out_of, relations_of
from potstill.types import Batch, Inside, Tap

RELATIONS = ("queries", "keys", "values")
Change: TypeAlias = Callable[[Tensor], Tensor]


def as_it_is(states: Tensor) -> Tensor:
    return states


@contextmanager
def tapping(family: Family, taps: Sequence[Tap], change: Change = as_it_is) -> Iterator[dict[Tap, Tensor]]:
    """While it is open, a forward of the family leaves in the dictionary what was at each place, as the model has it.

    Gradient flows through what is left there, where the forward has any. ``read`` brings it to the response.

    Args:
        taps: the places. They come in the order in which the model goes through them.
        change: what the model goes on with, and what is left, in the place of what it had; of residual and mlp.
    Raises: ModelError for a layer that is not there, or whose inside is not known.
    """
    seen: dict[Tap, Tensor] = {}
    hooks = []
    try:
        for tap in taps:
            hooks.append(_hook(family, tap, seen, change))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def read(family: Family, seen: dict[Tap, Tensor], batch: Batch) -> Inside:
    """What was seen, at the response's positions: ``[batch, response, channel]`` for each place."""
    return {tap: family.aligned(states, batch) for tap, states in seen.items()}


def width(family: Family, tap: Tap) -> int:
    """How many channels there are at a place. Raises: ModelError as ``tapping``."""
    _layer(family, tap)
    if tap.place == "residual":
        return int(family.model.config.get_text_config().hidden_size)
    if tap.place == "mlp":
        return _inputs(mlp_out_of(family.model, tap.layer))
    made_by = relations_of(family.model, tap.layer)
    if len(made_by) == 1:
        return _outputs(made_by[0]) // len(RELATIONS)
    return _outputs(made_by[RELATIONS.index(tap.place)])


def _hook(family: Family, tap: Tap, seen: dict[Tap, Tensor], change: Change) -> Any:
    def take(states: Tensor) -> Tensor:
        seen[tap] = change(states)
        return seen[tap]

    def leaving(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (take(output[0]), *output[1:]) if isinstance(output, tuple) else take(output)

    def entering(_module: nn.Module, args: Any) -> Any:
        return (take(args[0]), *args[1:])

    layer = _layer(family, tap)
    if tap.place == "residual":
        return layer.register_forward_hook(leaving)
    if tap.place == "mlp":
        return mlp_out_of(family.model, tap.layer).register_forward_pre_hook(entering)
    at, made_by = RELATIONS.index(tap.place), relations_of(family.model, tap.layer)
    if len(made_by) > 1:
        return made_by[at].register_forward_hook(leaving)
    return made_by[0].register_forward_hook(_third(tap, at, seen))


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


def _inputs(matrix: Any) -> int:
    return int(matrix.in_features if hasattr(matrix, "in_features") else matrix.nx)  # nx: GPT-2's Conv1D


def _outputs(matrix: Any) -> int:
    return int(matrix.out_features if hasattr(matrix, "out_features") else matrix.nf)
