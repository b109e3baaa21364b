"""A draw in a large vocabulary, block by block, is the plain quantile over all of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potstill.sampling.distributions import BLOCK, Decoding, draw, warped

GENERATOR = torch.Generator().manual_seed(0)


def quantile(probs: Tensor, uniform: float) -> int:
    """The first token up to which the probabilities sum to more than ``uniform`` of their total; exact sums."""
    from fractions import Fraction

    at, total = Fraction(uniform) * sum(map(Fraction, probs.tolist())), Fraction(0)
    for token, prob in enumerate(probs.tolist()):
        total += Fraction(prob)
        if total > at:
            return token
    raise AssertionError(uniform)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [3, BLOCK, BLOCK + 1, 5 * BLOCK - 7])
def test_draws_are_quantiles(vocab: int, dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(40, vocab, generator=GENERATOR, dtype=dtype)
    logits[:, 1:] = logits[:, 1:].masked_fill(torch.rand(40, vocab - 1, generator=GENERATOR) < 0.4, -torch.inf)
    logits[:20, BLOCK : 3 * BLOCK] = -torch.inf  # whole blocks that nothing is drawn from
    uniforms = torch.rand(40, generator=GENERATOR, dtype=torch.float64)
    uniforms[[3, 4]] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    log_probs = logits.log_softmax(-1)
    found = draw(log_probs, uniforms)
    assert found.tolist() == [quantile(row.exp(), u) for row, u in zip(log_probs, uniforms.tolist(), strict=True)]
    alone = [draw(log_probs[i : i + 1], uniforms[i : i + 1]).item() for i in range(40)]
    assert found.tolist() == alone


def test_the_ends_of_blocks_are_no_tokens_of_no_probability() -> None:
    """Each block's probability is on its first token: rounding must not fall on those behind it."""
    probs = torch.zeros(1, 4 * BLOCK, dtype=torch.float64)
    probs[0, ::BLOCK] = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    edges = [0.1, 0.3, 0.6, 1.0]
    for edge in edges:
        below = torch.nextafter(torch.tensor(edge, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
        token = draw(probs.log(), below[None]).item()
        assert token % BLOCK == 0


def test_greedy_is_drawn_wherever_it_stands() -> None:
    logits = torch.zeros(3, 2 * BLOCK)
    at = torch.tensor([0, BLOCK - 1, 2 * BLOCK - 1])
    logits[torch.arange(3), at] = 1.0
    log_probs = warped(logits, Decoding(1, frozenset(), temperature=0))
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert draw(log_probs, torch.full((3,), uniform, dtype=torch.float64)).tolist() == at.tolist()
