"""How well a model predicts text, from the sums of its negative log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from potstill.evaluation.metrics.statistics import mean_and_error


def perplexity(nats: float, num_tokens: int) -> float:
    """exp of the mean negative log-likelihood of a token; nan without tokens, inf beyond what a float holds.

    Two models' are comparable only if they cut text into the same tokens; ``bits_per_byte`` always is.

    Args:
        nats: summed over the tokens. num_tokens: those that were predicted.
    """
    return _exp(nats / num_tokens) if num_tokens else math.nan


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Negative log-likelihood of a text in bits, for each byte of it in UTF-8; nan without bytes.

    Args:
        nats: summed over all tokens of the text. num_bytes: of the same text.
    Source: Gao et al. 2020, The Pile, arXiv:2101.00027, section 3.1.
    """
    return nats / math.log(2) / num_bytes if num_bytes else math.nan


def language_figures(nats: Sequence[float], tokens: Sequence[int], num_bytes: Sequence[int]) -> dict[str, float]:
    """Perplexity and bits per byte of all examples together, with standard errors over examples.

    Args:
        nats: of each example, summed over its tokens. tokens, num_bytes: counts of each example.
    Returns: ``perplexity`` (of all tokens, not the mean over examples), ``perplexity_stderr`` (delta method: that of
        the mean times the perplexity), ``bits_per_byte``, ``bits_per_byte_stderr``; nan where nothing can be computed.
    Raises: ValueError where the three differ in length.
    """
    if not len(nats) == len(tokens) == len(num_bytes):
        raise ValueError(f"{len(nats)} sums, {len(tokens)} counts of tokens, {len(num_bytes)} of bytes: give as many")
    per_token, token_error = _mean_and_error(nats, tokens)
    per_byte, byte_error = _mean_and_error(nats, num_bytes)
    found = _exp(per_token)
    return {
        "perplexity": found,
        "perplexity_stderr": found * token_error,
        "bits_per_byte": per_byte / math.log(2),
        "bits_per_byte_stderr": byte_error / math.log(2),
    }


def _mean_and_error(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    if sum(counts) == 0:
        return math.nan, math.nan
    return mean_and_error(torch.tensor(sums, dtype=torch.float64), torch.tensor(counts))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
