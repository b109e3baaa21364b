"""Whether two models mean the same tokens."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.errors import TeacherError
from potstill.teachers.align import shared_vocabulary, tokenizer_difference
from potstill.types import PAIR_MARK
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


def marked(kind: str) -> Any:
    """A tokenizer as it is loaded with an encoder-decoder model."""
    made = tiny.tokenizer(kind=kind)
    setattr(made, PAIR_MARK, True)
    return made


def test_another_tokenizer_is_told_that_text_goes_across() -> None:
    other = tiny.tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    with pytest.raises(TeacherError, match=r"(?s)`potstill annotate` with the teacher.*`sft` or `step_by_step`"):
        shared_vocabulary(tiny.tokenizer(), 300, other, 301)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_models_of_two_kinds_are_refused_where_their_tokenizer_frames_texts_for_one(kind: str) -> None:
    causal = tiny.tokenizer(kind=kind)
    way_out = r".*fix: let text go across.*`potstill annotate`"
    with pytest.raises(TeacherError, match="(?s)the teacher is causal and the student encoder-decoder" + way_out):
        shared_vocabulary(causal, 300, marked(kind), 300)
    with pytest.raises(TeacherError, match="(?s)the teacher is encoder-decoder and the student causal" + way_out):
        shared_vocabulary(marked(kind), 300, causal, 300)
    assert shared_vocabulary(marked(kind), 300, marked(kind), 300).size == 300


def test_models_of_two_kinds_are_compared_where_texts_have_no_frame() -> None:
    assert shared_vocabulary(tiny.tokenizer(), 300, marked("causal"), 300).size == 300
    assert shared_vocabulary(marked("causal"), 300, tiny.tokenizer(), 300).size == 300
