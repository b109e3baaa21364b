"""What is written as .bin and .idx is what is read, and written again it is the same bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from potstill.data.indexed import IndexedTokens, write_indexed

vocabularies = st.sampled_from([2, 300, 65_499, 65_500, 65_536, 151_936, 2**31 - 1])


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[int, list[list[list[int]]]]:
    """A vocabulary, and records of one to three parts, of which some are empty and the first is not."""
    vocab = draw(vocabularies)
    ids = st.one_of(st.integers(0, vocab - 1), st.sampled_from([0, vocab - 1, min(vocab - 1, 65_535)]))
    record = st.tuples(st.lists(ids, min_size=1, max_size=6), st.lists(st.lists(ids, max_size=6), max_size=2))
    return vocab, [[first, *rest] for first, rest in draw(st.lists(record, min_size=1, max_size=7))]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@given(data_sets(), st.integers(1, 8))
@example((151_936, [[[65_535], [65_535, 0]]]), 1)  # the smaller separator is a token of a large vocabulary
@example((65_500, [[[65_499], []], [[0]]]), 5)
@settings(max_examples=30, deadline=None)
def test_records_come_back_and_their_bytes_too(data: tuple[int, list[list[list[int]]]], shard: int) -> None:
    vocab, records = data
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first"), Path(folder, "second")
        written = write_indexed(first / "train", records, vocab, max_records_per_shard=shard)
        tokens = IndexedTokens(first, "train", vocab_size=vocab)
        read = [tokens.parts(index) for index in range(len(tokens))]
        assert [[part.tolist() for part in parts] for parts in read] == records
        assert all(part.dtype == np.int64 for parts in read for part in parts)
        assert (written.num_records, len(written.files)) == (len(records), -(-len(records) // shard))
        assert written.num_ids == sum(len(ids) for ids in tokens)
        write_indexed(second / "train", read, vocab, max_records_per_shard=shard)
        assert contents(first) == contents(second)
        assert sorted(contents(first)) == sorted(
            f"train_{k}.{s}" for k in range(len(written.files)) for s in ("bin", "idx")
        )
