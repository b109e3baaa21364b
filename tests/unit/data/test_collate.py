"""Rectangles: every token is where it belongs, and the masks know lengths, not ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.collate import collate
from potstill.data.examples import Tokenised

ids = st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple)  # few ids, so that pad ids stand in the text
examples = st.lists(
    st.builds(Tokenised, st.text(), ids, ids, st.just(""), st.just(""), st.booleans()), min_size=1, max_size=6
)


@given(examples, st.integers(0, 3))
def test_unmasked_tokens_are_the_examples_and_all_others_are_padding(rows, pad_id):
    batch = collate(rows, pad_id)
    for index, row in enumerate(rows):
        prompt_mask, response_mask = batch.prompt_mask[index], batch.response_mask[index]
        assert tuple(batch.prompt_ids[index][prompt_mask].tolist()) == row.prompt_ids
        assert tuple(batch.response_ids[index][response_mask].tolist()) == row.response_ids
        assert (batch.prompt_ids[index][~prompt_mask] == pad_id).all()
        assert (batch.response_ids[index][~response_mask] == pad_id).all()
    assert batch.example_ids == tuple(row.example_id for row in rows)


@given(examples, st.integers(0, 3))
def test_prompts_end_and_responses_begin_at_the_boundary_without_a_column_to_spare(rows, pad_id):
    batch = collate(rows, pad_id)
    assert batch.prompt_mask[:, -1].all()
    assert batch.response_mask[:, 0].all()
    assert (batch.prompt_mask.int().diff(dim=1) >= 0).all()  # padding, then text
    assert (batch.response_mask.int().diff(dim=1) <= 0).all()  # text, then padding
    assert batch.prompt_mask[:, 0].any()
    assert batch.response_mask[:, -1].any()


@given(examples)
def test_the_masks_do_not_depend_on_the_pad_id(rows):
    masks = [(batch.prompt_mask, batch.response_mask) for batch in (collate(rows, 0), collate(rows, 99))]
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_types_and_counts():
    batch = collate([Tokenised("a", (5,), (6, 7), "", "", False), Tokenised("b", (1, 2, 3), (4,), "", "", False)], 0)
    assert batch.prompt_ids.tolist() == [[0, 0, 5], [1, 2, 3]]
    assert batch.response_ids.tolist() == [[6, 7], [4, 0]]
    assert batch.prompt_ids.dtype == torch.int64
    assert batch.prompt_mask.dtype == torch.bool
    assert (batch.num_response_tokens, batch.num_tokens) == (3, 7)


def test_no_examples_make_no_batch():
    with pytest.raises(ValueError, match="at least one"):
        collate([], 0)
