"""What a step tells of itself, beside what it does, which tests/numerics and tests/distributed are about."""

from __future__ import annotations

import pytest
import torch

from potstill import recipe
from tests import rollouts
from tests.rollouts import Given, data, step

STUDENT, TEACHER = rollouts.gpt2(1), rollouts.gpt2(2)


@pytest.mark.parametrize("micro_size", [2, 8])
def test_the_share_that_a_gate_lets_through_is_of_the_response_tokens_of_all_micro_batches(micro_size: int) -> None:
    """By hand, from the teacher's entropy at each token; a term that leaves nothing out has no share."""
    batches = data().next(rollouts.Share(8, micro_size), 0.0)
    with torch.no_grad():
        probabilities = [TEACHER.head(TEACHER(batch)).softmax(-1)[batch.response_mask] for batch in batches]
    entropies = torch.cat([-(p * p.log()).sum(-1) for p in probabilities])
    threshold = float(entropies.median())
    gate = {"name": "entropy_gate", "threshold": threshold}
    terms = [{"objective": "forward_kl", "weighting": gate}, {"objective": "reverse_kl"}]
    stream = recipe.Stream.model_validate({"name": "data", "signal": "logits", "terms": terms})
    result, _ = step(STUDENT, TEACHER, stream, Given(batches), size=8, micro_size=micro_size)
    expected = float((entropies > threshold).sum()) / len(entropies)
    assert result.selected == {"data/forward_kl": pytest.approx(expected)}
    assert 0.3 < expected < 0.6


def test_a_gate_that_lets_nothing_through_says_so() -> None:
    gate = {"name": "entropy_gate", "threshold": 99.0}
    terms = [{"objective": "forward_kl", "weighting": gate}]
    stream = recipe.Stream.model_validate({"name": "data", "signal": "logits", "terms": terms})
    result, _ = step(STUDENT, TEACHER, stream, Given(data().next(rollouts.Share(4, 4), 0.0)))
    assert result.selected == {"data/forward_kl": 0.0}
