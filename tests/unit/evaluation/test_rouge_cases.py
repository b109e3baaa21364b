"""Rouge by hand: stemming, several references, nothing to compare, punctuation and other scripts."""

from __future__ import annotations

import pytest

from potstill.evaluation.metrics.rouge import rouge_l_scores, rouge_scores


@pytest.mark.parametrize(
    ("response", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 100),
        ("The CAT, sat!", "the cat sat", 100),  # case and punctuation are nothing
        ("walked home", "walking home", 100),  # one stem, of words longer than three letters
        ("runs", "ran", 0),  # an irregular form is another stem
        ("the dog sat", "the cat sat", 200 / 3),  # the, sat: 2 of 3 and 2 of 3
        ("sat cat the", "the cat sat", 100 / 3),  # in order there is one word
        ("b c", "a b c d", 200 / 3),  # precision 1, recall 1/2
        ("", "the cat sat", 0),
        ("the cat sat", "", 0),
        ("...", "...", 0),
        ("caf\u00e9 au lait", "cafe au lait", 200 / 3),  # the accent leaves "caf"
        ("\u732b\u304c\u5ea7\u3063\u305f", "\u732b\u304c\u5ea7\u3063\u305f", 0),  # no word of a-z
        ("twenty-one", "twenty one", 100),
    ],
)
def test_rouge_l_of_one_pair(response: str, reference: str, score: float) -> None:
    assert rouge_l_scores([response], [[reference]]) == [pytest.approx(score)]


def test_the_best_reference_counts_and_each_response_has_its_own() -> None:
    references = [["a b", "x y z", "x q"], ["m n"]]
    assert rouge_l_scores(["x y", "m"], references) == [pytest.approx(80), pytest.approx(200 / 3)]


def test_each_kind_takes_its_own_best_reference() -> None:
    # Against "c b a" all words are there and no pair; against "a b x y z w" one pair of 2 and 5, words 2 of 3 and 6.
    found = rouge_scores(["a b c"], [["c b a", "a b x y z w"]])
    assert {kind: value for kind, (value,) in found.items()} == {
        "rouge1": pytest.approx(100),
        "rouge2": pytest.approx(100 * 2 * 1 / (2 + 5)),
        "rougeL": pytest.approx(100 * 2 * 2 / (3 + 6)),
    }


@pytest.mark.parametrize("references", [[[]], ["a text"], [["one"], ["two"]]])
def test_references_that_do_not_fit_are_refused(references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match=r"reference|zip"):
        rouge_l_scores(["one"], references)
