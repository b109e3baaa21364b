"""Scales: what each token of a global batch counts, for both reductions."""

from __future__ import annotations

import pytest
import torch

from potstill import weighting
from potstill.recipe import Term
from tests import tiny

LENGTHS = [(3, 4), (2, 1), (5, 0)]


def scales(reduction: str, *, of: int = 1) -> torch.Tensor:
    """Scales of the batch above, as one of ``of`` equal micro-batches."""
    term = Term.model_validate({"objective": "cross_entropy", "reduction": reduction})
    batch = tiny.batch(LENGTHS, extra_right=2)
    weight = weighting.weights(term.weighting, batch)
    return weighting.scales(term, weight, of * weighting.denominator(term, weight))


def test_token_mean_counts_every_token_the_same() -> None:
    found = scales("token_mean")
    assert found[0, :4].tolist() == [0.2] * 4
    assert found[1, 0] == 0.2
    assert found.sum().item() == pytest.approx(1)


def test_sequence_mean_counts_every_sequence_the_same_and_empty_ones_not_at_all() -> None:
    found = scales("sequence_mean")
    assert found[0, :4].tolist() == [0.125] * 4
    assert found[1, 0] == 0.5
    assert found.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_padding_counts_nothing_and_denominators_are_global(reduction: str) -> None:
    found = scales(reduction)
    assert (found[:, 4:] == 0).all()
    assert (found[2] == 0).all()
    assert scales(reduction, of=3).sum().item() == pytest.approx(1 / 3)


def test_a_global_batch_without_tokens_scales_to_zero_and_not_to_nan() -> None:
    term = Term.model_validate({"objective": "cross_entropy"})
    batch = tiny.batch([(3, 0)], extra_right=2)
    weight = weighting.weights(term.weighting, batch)
    assert (weighting.scales(term, weight, 0.0) == 0).all()
