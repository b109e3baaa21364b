"""Sequences from plain text that is read while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.data.corpus.blocks import block_row
from potstill.data.corpus.packed_stream import PackedStream
from potstill.sources.dataset import batches
from potstill.sources.source import Share
from potstill.types import Batch


class TextStreamSource:
    """Global batches of a stream's blocks in their order.

    Every process reads the stream and keeps its share, so that any number of them sees the same global batches: where
    a block begins is only known of text that has been tokenised up to there.

    Args:
        name: of the text, for messages. blocks: without end. pad_id: any token.
    """

    def __init__(self, name: str, blocks: PackedStream, *, pad_id: int):
        self._name, self._blocks, self._pad_id = name, blocks, pad_id

    def next(self, share: Share, progress: float = 0.0) -> list[Batch]:
        begin = self._blocks.counts.blocks + 1
        drawn = [next(self._blocks) for _ in range(share.batch_size)]
        rows = [block_row(self._name, begin + at, drawn[at]) for at in range(*share.own.indices(share.batch_size))]
        return list(batches(rows, share.micro_size, self._pad_id))

    def observe(self, validation: Mapping[str, float]) -> None:
        pass

    def figures(self) -> dict[str, float]:
        """Documents read so far, those that wait in the next blocks among them, and rows that were left out."""
        blocks = self._blocks
        return {"documents": float(blocks.counts.documents), "left_out_rows": float(blocks.num_left_out)}

    def held(self) -> list[Batch]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return self._blocks.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._blocks.load_state_dict(state)
