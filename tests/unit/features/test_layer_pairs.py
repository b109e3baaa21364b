"""Which layers meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from potstill import recipe
from potstill.errors import ConfigError
from potstill.features.layers import layer_pairs
from potstill.recipe.features import Layers


def pairs(spec: Any, student: int, teacher: int, influence: list[float] | None = None) -> tuple[tuple[int, int], ...]:
    made: recipe.AnyLayers = TypeAdapter(Layers).validate_python(spec)

    def asked() -> torch.Tensor:
        assert influence is not None
        return torch.tensor(influence)

    return layer_pairs(made, student, teacher, asked)


def test_uniform_is_by_depth_and_ends_with_the_last() -> None:
    assert pairs("uniform", 4, 12) == ((0, 2), (1, 5), (2, 8), (3, 11))  # TinyBERT's g(m) = 3 m
    assert pairs("uniform", 3, 3) == ((0, 0), (1, 1), (2, 2))
    assert pairs({"name": "uniform", "count": 2}, 4, 12) == ((1, 5), (3, 11))
    assert pairs({"name": "uniform", "count": 1}, 4, 12) == ((3, 11),)
    assert pairs("uniform", 3, 2) == ((0, 0), (1, 0), (2, 1))  # a deeper student


def test_last_counts_from_the_end_of_both() -> None:
    assert pairs("last", 4, 12) == ((1, 9), (2, 10), (3, 11))
    assert pairs({"name": "last", "count": 1}, 4, 12) == ((3, 11),)


def test_block_influence_goes_by_how_much_is_done() -> None:
    """The teacher's first layer does half of the work: so does the student's first of two."""
    assert pairs("block_influence", 2, 4, [3.0, 1.0, 1.0, 1.0]) == ((0, 0), (1, 3))
    assert pairs("block_influence", 2, 4, [1.0, 1.0, 1.0, 3.0]) == ((0, 2), (1, 3))
    assert pairs("block_influence", 4, 4, [1.0, 1.0, 1.0, 1.0]) == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert pairs("block_influence", 2, 4, [1.0, -0.5, 1.0, 0.0]) == ((0, 0), (1, 2))  # nothing is undone, or left
    assert pairs({"name": "block_influence", "count": 1}, 3, 3, [0.1, 0.2, 0.3]) == ((2, 2),)


def test_pairs_are_as_they_are_named() -> None:
    assert pairs({"name": "pairs", "pairs": [[2, 5], [0, 1]]}, 3, 6) == ((0, 1), (2, 5))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "uniform", "count": 5}, "layers.count is 5, and there are 4"),
        ({"name": "block_influence", "count": 5}, "layers.count is 5, and there are 4"),
        ({"name": "last", "count": 5}, "layers.count is 5, and there are 4"),
        ({"name": "pairs", "pairs": [[4, 0]]}, "names layer 4 of the student, which has 4"),
        ({"name": "pairs", "pairs": [[0, 6]]}, "names layer 6 of the teacher, which has 6"),
    ],
)
def test_layers_that_are_not_there_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pairs(spec, 4, 6, [1.0] * 6)
