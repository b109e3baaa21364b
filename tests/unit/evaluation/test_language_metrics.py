"""Perplexity and bits per byte of text whose likelihood is known."""

from __future__ import annotations

import math

import pytest

from potstill.evaluation.metrics.language import bits_per_byte, language_figures, perplexity


def test_a_uniform_guess_has_the_size_of_its_vocabulary() -> None:
    assert perplexity(7 * math.log(50), 7) == pytest.approx(50)


def test_a_uniform_guess_of_bytes_costs_eight_bits_each_however_they_are_cut_into_tokens() -> None:
    assert bits_per_byte(12 * math.log(256), 12) == pytest.approx(8)


def test_nothing_to_predict_is_nan_and_the_hopeless_is_inf() -> None:
    assert math.isnan(perplexity(0.0, 0))
    assert math.isnan(bits_per_byte(0.0, 0))
    assert perplexity(1e6, 1) == math.inf


def test_figures_are_over_tokens_and_bytes_of_all_examples_and_not_means_of_examples() -> None:
    found = language_figures([6.0, 2.0], [2, 2], [4, 8])
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert found["bits_per_byte"] == pytest.approx(8 / 12 / math.log(2))
    # Means 3 and 1 of equally long examples: the mean's error is their deviation / sqrt(2), which is 1.
    assert found["perplexity_stderr"] == pytest.approx(math.exp(2))
    # Residuals 6 - 4 * 2/3 = 10/3 and -10/3, by Cochran: sqrt(2 * (10/3)**2 * 2 / 1) / 12.
    assert found["bits_per_byte_stderr"] == pytest.approx(math.sqrt(4 * (10 / 3) ** 2) / 12 / math.log(2))


def test_one_example_has_no_error_and_none_has_nothing() -> None:
    assert math.isnan(language_figures([6.0], [2], [4])["perplexity_stderr"])
    assert all(map(math.isnan, language_figures([], [], []).values()))
    with pytest.raises(ValueError, match="2 of bytes"):
        language_figures([1.0], [1], [1, 2])
