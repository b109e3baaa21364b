"""What a summary is beside its article, by hand."""

from __future__ import annotations

import math

import pytest

from potstill.evaluation.metrics.summaries import compression, lead, novelty, sentences, summary_figures

ARTICLE = "A storm hit the coast. Was it strong? It was! Boats sank off Cape 3.5 km out.\nNobody died."


def test_sentences_end_at_a_stop_before_white_space() -> None:
    assert sentences(ARTICLE) == [
        "A storm hit the coast.",
        "Was it strong?",
        "It was!",
        "Boats sank off Cape 3.5 km out.",
        "Nobody died.",
    ]
    assert sentences(" \n") == []
    assert sentences("no stop at all") == ["no stop at all"]


def test_an_abbreviation_ends_a_sentence_which_is_a_known_limit() -> None:
    assert sentences("Mr. Smith left.") == ["Mr.", "Smith left."]


def test_the_lead_is_the_first_sentences() -> None:
    assert lead(ARTICLE) == "A storm hit the coast. Was it strong? It was!"
    assert lead(ARTICLE, 1) == "A storm hit the coast."
    assert lead("One only.") == "One only."
    assert lead("") == ""
    with pytest.raises(ValueError, match="0 sentences"):
        lead(ARTICLE, 0)


@pytest.mark.parametrize(
    ("n", "share"),
    [(1, 1 / 5), (2, 2 / 4), (3, 2 / 3), (4, 2 / 2)],  # "big" is new; with it two pairs, two triples, two fours
)
def test_novelty_is_the_share_of_n_grams_the_article_does_not_have(n: int, share: float) -> None:
    assert novelty("A storm hit big coast", ARTICLE.replace("the coast", "coast"), n) == pytest.approx(share)


def test_what_is_copied_is_not_new_whatever_its_case_and_punctuation() -> None:
    figures = summary_figures("a STORM hit, the coast", ARTICLE)
    assert [figures[f"novelty_{n}"] for n in (1, 2, 3, 4)] == [0, 0, 0, 0]
    assert figures["words"] == 5
    assert figures["compression"] == pytest.approx(19 / 5)


def test_a_repeated_n_gram_counts_as_often_as_it_is_written() -> None:
    assert novelty("new new storm", "storm", 1) == pytest.approx(2 / 3)


def test_what_a_summary_is_too_short_for_is_nan() -> None:
    assert math.isnan(novelty("two words", ARTICLE, 3))
    assert math.isnan(compression(" ", ARTICLE))
    assert math.isnan(summary_figures("", ARTICLE)["novelty_1"])
    assert novelty("two words", "", 1) == 1
    with pytest.raises(ValueError, match="n-grams of 0"):
        novelty("a", "b", 0)
