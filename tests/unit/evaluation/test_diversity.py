"""How varied responses are, by hand."""

from __future__ import annotations

import math

import pytest

from potstill.evaluation.metrics.diversity import distinct_n, diversity, mean_length, repeated_ngram_rate, self_bleu

STOP = 9


@pytest.mark.parametrize(
    ("n", "share"),
    [(1, 3 / 7), (2, 4 / 5), (3, 3 / 3), (4, 1.0)],  # 1 2 3; 12 21 23 31 of 12 21 12 | 23 31; 121 212 231; 1212
)
def test_distinct_n_counts_n_grams_within_responses_and_over_all(n: int, share: float) -> None:
    assert distinct_n([(1, 2, 1, 2), (2, 3, 1)], n) == pytest.approx(share)


def test_the_same_response_twice_halves_distinct_n() -> None:
    assert distinct_n([(1, 2, 3), (1, 2, 3)], 2) == pytest.approx(0.5)


def test_repeated_4_grams_are_counted_within_a_response_only() -> None:
    loop = (1, 2, 1, 2, 1, 2, 1)  # 1212 2121 1212 2121: two of four stood before
    plain = (1, 2, 3, 4, 5)
    assert repeated_ngram_rate([loop]) == pytest.approx(0.5)
    assert repeated_ngram_rate([plain, plain]) == 0
    assert repeated_ngram_rate([loop, plain]) == pytest.approx(0.25)  # of responses, not of 4-grams: those give 2 / 6
    assert repeated_ngram_rate([loop, (1, 2, 3)]) == pytest.approx(0.5)  # three tokens have no 4-gram: left out
    assert repeated_ngram_rate([(7,) * 6]) == pytest.approx(2 / 3)


def test_self_bleu_is_1_for_copies_and_0_without_a_common_token() -> None:
    same, other = (1, 2, 3, 4, 5), (11, 12, 13, 14, 15)
    assert self_bleu([same] * 3) == pytest.approx(1)
    assert self_bleu([same, other]) == 0
    assert self_bleu([(1, 2), (1, 2)]) == pytest.approx(1)  # too short for 4-grams


def test_self_bleu_by_hand() -> None:
    """The first against the second: precisions 5/6, 3/5, 1/4 and 0.1/3, no brevity penalty; the second likewise."""
    first, second = (1, 2, 3, 4, 5, 6), (1, 2, 3, 7, 5, 6)
    one_way = (5 / 6 * 3 / 5 * 1 / 4 * 0.1 / 3) ** 0.25
    assert self_bleu([first, second]) == pytest.approx(one_way)


def test_self_bleu_compares_with_all_others_and_punishes_shortness() -> None:
    long, short = (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4)
    forth = math.exp(1 - 8 / 4)  # every n-gram of the short one is in the long one, which is twice as long
    back = (4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25
    assert self_bleu([long, short]) == pytest.approx((forth + back) / 2)
    assert self_bleu([long, short, short]) == pytest.approx((back + 1 + 1) / 3)


def test_what_cannot_be_computed_is_not_a_number() -> None:
    for nothing in ([], [()]):
        assert math.isnan(distinct_n(nothing, 1))
        assert math.isnan(repeated_ngram_rate(nothing))
        assert math.isnan(self_bleu(nothing))
    assert math.isnan(distinct_n([(1, 2)], 3))
    assert math.isnan(repeated_ngram_rate([(1, 2, 3)]))
    assert math.isnan(self_bleu([(1, 2, 3, 4), ()]))
    assert math.isnan(mean_length([]))
    assert mean_length([(), (1, 2, 3)]) == 1.5


@pytest.mark.parametrize("n", [0, -1])
def test_n_grams_of_no_tokens_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="n of 1 or more"):
        distinct_n([(1, 2)], n)


def test_the_end_token_counts_for_nothing_but_the_end() -> None:
    texts = [(1, 2, 1, 2, 1), (3, 4, 5, 6)]
    found = diversity([(*texts[0], STOP), texts[1]], STOP)
    assert found["finished_share"] == 0.5
    assert found["response_tokens_mean"] == 4.5
    assert found["distinct_1"] == distinct_n(texts, 1)
    assert found["distinct_2"] == distinct_n(texts, 2)
    assert found["distinct_3"] == distinct_n(texts, 3)
    assert found["self_bleu"] == self_bleu(texts)
    assert found["repeated_4gram_rate"] == repeated_ngram_rate(texts)
    assert diversity([(STOP,), (STOP,)], STOP)["response_tokens_mean"] == 0
