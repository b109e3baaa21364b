"""Whether two models mean the same tokens."""

from __future__ import annotations

import pytest

from potstill.errors import TeacherError
from potstill.teachers.align import shared_vocabulary, tokenizer_difference
from tests import tiny


def test_one_tokenizer_shares_everything() -> None:
    shared = shared_vocabulary(tiny.tokenizer(), 300, tiny.tokenizer(), 300)
    assert (shared.size, shared.note) == (300, "")


def test_padded_rows_are_left_out_with_a_note() -> None:
    """Qwen2.5 has 151,936 rows in small models and 152,064 in large ones, with one tokenizer."""
    shared = shared_vocabulary(tiny.tokenizer(), 320, tiny.tokenizer(), 304)
    assert shared.size == 304
    assert "304" in shared.note


def test_another_tokenizer_of_the_same_size_is_refused_with_the_way_out() -> None:
    other = tiny.tokenizer()
    vocabulary = other.get_vocab()
    swapped = {"a": vocabulary["b"], "b": vocabulary["a"]}
    other.get_vocab = lambda: vocabulary | swapped  # type: ignore[method-assign]
    with pytest.raises(
        TeacherError, match=r"2 tokens differ, for instance 'a' is \d+ in one(.|\n)*fix: choose a student"
    ):
        shared_vocabulary(tiny.tokenizer(), 300, other, 300)


def test_added_special_tokens_are_a_difference() -> None:
    other = tiny.tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    assert "<extra>" in tokenizer_difference(tiny.tokenizer(), other)


def test_another_end_of_sequence_is_a_difference() -> None:
    other = tiny.tokenizer()
    other.eos_token = "a"
    assert "end-of-sequence" in tokenizer_difference(tiny.tokenizer(), other)


def test_the_same_tokens_cut_differently_are_a_difference() -> None:
    other = tiny.tokenizer()
    other.encode = lambda text, **_: list(text.encode())  # type: ignore[method-assign]
    assert "cut text differently" in tokenizer_difference(tiny.tokenizer(), other)


def test_an_embedding_smaller_than_its_tokenizer_is_refused() -> None:
    with pytest.raises(TeacherError, match="the student's output embedding has 200 rows"):
        shared_vocabulary(tiny.tokenizer(), 300, tiny.tokenizer(), 200)
