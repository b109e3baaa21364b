"""Which layer of the teacher each layer of the student is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from potstill import recipe
from potstill.errors import ConfigError

Pairs = tuple[tuple[int, int], ...]
ALMOST = 1e-9  # of a share: what the rounding of a sum may lack


def layer_pairs(
    spec: recipe.AnyLayers, of_student: int, of_teacher: int, influence: Callable[[], Float[Tensor, " layer"]]
) -> Pairs:
    """Pairs of layers, the student's rising.

    Args:
        spec: which ones.
        of_student: how many layers it has. of_teacher: likewise.
        influence: tells the Block Influence of the teacher's layers, where they are chosen by it.
    Raises: ConfigError for more layers than there are, and for one that is not there.
    """
    match spec:
        case recipe.LastLayers(count=count):
            _check_count(count, min(of_student, of_teacher))
            return tuple((of_student - back, of_teacher - back) for back in range(count, 0, -1))
        case recipe.PairedLayers(pairs=pairs):
            _check_there([student for student, _ in pairs], of_student, "student")
            _check_there([teacher for _, teacher in pairs], of_teacher, "teacher")
            return tuple(sorted(pairs))
    chosen = _evenly(spec.count or of_student, of_student)
    if isinstance(spec, recipe.UniformLayers):
        return tuple((layer, at_depth(layer + 1, of_student, of_teacher)) for layer in chosen)
    shares = influence().clamp_min(0).double().cumsum(0)
    return tuple((layer, at_share((layer + 1) / of_student, shares)) for layer in chosen)


def at_depth(done: int, of: int, layers: int) -> int:
    """The layer, of ``layers``, that leaves as large a part of its model behind as ``done`` layers of ``of`` do."""
    return max(0, (2 * done * layers + of) // (2 * of) - 1)  # rounded to the nearest, a half up


def at_share(share: float, cumulative: Float[Tensor, " layer"]) -> int:
    """The first layer at which that share of all change is done."""
    total = float(cumulative[-1])
    reached = (cumulative >= (share - ALMOST) * total).nonzero()
    return int(reached[0])


def _evenly(count: int, of: int) -> tuple[int, ...]:
    """``count`` of ``of`` layers, as far from each other as they can be, the last one among them."""
    _check_count(count, of)
    return tuple(-(-(at + 1) * of // count) - 1 for at in range(count))


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise ConfigError(f"layers.count is {count}, and there are {most}", f"set it to {most} at most")


def _check_there(layers: Sequence[int], of: int, whose: str) -> None:
    if missing := [layer for layer in layers if layer >= of]:
        raise ConfigError(
            f"layers.pairs names layer {missing[0]} of the {whose}, which has {of}", f"name layers from 0 to {of - 1}"
        )
