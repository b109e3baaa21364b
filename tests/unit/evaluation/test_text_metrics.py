"""Exact match and length in words."""

from __future__ import annotations

import pytest

from potstill.evaluation.metrics.text import exact_match, exact_matches, normalised, num_words


@pytest.mark.parametrize(
    ("response", "references", "same"),
    [
        ("Paris", ["paris"], True),
        ("  Paris.\n", ["paris"], True),
        ("New\t York", ["new york!"], True),
        ("the Seine", ["Seine"], False),  # articles are kept
        ("well-known", ["well known"], False),  # punctuation leaves no space behind
        ("well-known", ["wellknown"], True),
        ("London", ["Paris", "London"], True),
        ("", ["Paris"], False),
        ("caf\u00e9", ["cafe"], False),
    ],
)
def test_exact_match(response: str, references: list[str], same: bool) -> None:
    assert exact_match(response, references) is same


def test_exact_match_of_each() -> None:
    assert exact_matches(["a", "b"], [["A."], ["a"]]) == [True, False]
    with pytest.raises(ValueError, match="zip"):
        exact_matches(["a", "b"], [["a"]])


@pytest.mark.parametrize("references", [[], "paris"])
def test_a_missing_reference_is_refused(references: list[str]) -> None:
    with pytest.raises(ValueError, match="references"):
        exact_match("paris", references)


def test_only_ascii_punctuation_is_removed() -> None:
    assert normalised("\u201cIt's  A-B\u201d,") == "\u201cits ab\u201d"


@pytest.mark.parametrize(("text", "count"), [("", 0), (" \n", 0), ("one", 1), ("one, two\nthree", 3)])
def test_words_are_what_white_space_separates(text: str, count: int) -> None:
    assert num_words(text) == count
