"""The order is a pure function of the position: epochs of permutations, however they are drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.order import indices

sizes, seeds = st.integers(1, 20), st.integers(0, 2**40)


@given(sizes, seeds, st.integers(0, 5))
def test_every_epoch_is_a_permutation(num_examples, seed, epoch):
    assert sorted(indices(epoch * num_examples, num_examples, num_examples, seed)) == list(range(num_examples))


@given(sizes, seeds, st.integers(0, 30), st.lists(st.integers(0, 25), max_size=6))
def test_any_chunks_give_the_same_stream(num_examples, seed, start, chunks):
    whole = indices(start, sum(chunks), num_examples, seed)
    drawn, position = [], start
    for count in chunks:
        drawn += indices(position, count, num_examples, seed)
        position += count
    assert drawn == whole


def test_an_epoch_is_torchs_permutation_of_its_seed():
    expected = [torch.randperm(50, generator=torch.Generator().manual_seed(7 + e)).tolist() for e in range(3)]
    assert indices(0, 150, 50, 7) == [index for epoch in expected for index in epoch]


def test_epochs_and_seeds_differ():
    first, second = indices(0, 50, 50, 7), indices(50, 50, 50, 7)
    assert first != second
    assert first != indices(0, 50, 50, 8)
    assert first != list(range(50))


def test_epochs_before_the_first_shuffled_one_keep_the_order_and_the_others_are_as_ever():
    whole = indices(0, 200, 50, 7)
    assert indices(0, 200, 50, 7, shuffled_from=2) == [*range(50), *range(50), *whole[100:]]
    assert indices(70, 60, 50, 7, shuffled_from=1) == whole[70:130]


def test_the_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    indices(0, 1000, 999, 12345)
    assert torch.equal(torch.rand(1), expected)


def test_what_a_caller_does_to_its_list_is_its_own_business():
    indices(0, 5, 5, 3).clear()
    assert len(indices(0, 5, 5, 3)) == 5


@pytest.mark.parametrize("bad", [(-1, 1, 5), (0, -1, 5), (0, 1, 0)])
def test_impossible_draws_are_refused(bad):
    with pytest.raises(ValueError, match="cannot draw"):
        indices(*bad, seed=1)
