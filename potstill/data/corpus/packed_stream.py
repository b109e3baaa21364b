"""Blocks packed from a stream of rows while they are asked for, gone on with at the exact token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from potstill.data.corpus.packing import Counts, check_tokenizer, ended, refuse
from potstill.data.corpus.reading import text_in
from potstill.data.corpus.streamed import Streamed
from potstill.data.corpus.tokenising import encode, next_batch
from potstill.data.indexed.layout import Ids
from potstill.data.reader import BadRow
from potstill.errors import DataError


class PackedStream:
    """An iterator of blocks, int64 of shape (block_size,): each document's ids and the end-of-sequence id, cut.

    What a block leaves of a document begins the next one, also from the last document of a pass to the first of the
    next. The state is the place of the next row and the ids that are in no block yet.

    Args:
        rows: documents in a field "text"; with ``repeat`` there is no end.
        tokenizer: a transformers tokenizer; it adds no special tokens.
        block_size: ids in a block, at least 2.
    Raises: DataError for a row without the field (``Texts`` takes those out), or where a whole pass gives no text.
    """

    def __init__(self, rows: Streamed, tokenizer: Any, block_size: int):
        check_tokenizer(tokenizer)
        if block_size < 2:
            raise DataError(f"blocks of {block_size} tokens cannot be made", "give a block_size of at least 2")
        self._rows, self._tokenizer, self._size = rows, tokenizer, block_size
        self._rest: Ids = np.empty(0, np.int64)
        self.counts = Counts()

    def __iter__(self) -> PackedStream:
        return self

    def __next__(self) -> Ids:
        while len(self._rest) < self._size:
            self._read()
        block, self._rest = self._rest[: self._size], self._rest[self._size :]
        self.counts.blocks += 1
        return block

    @property
    def num_left_out(self) -> int:
        """Rows left out so far: bad ones, and documents with an end of sequence inside."""
        return self._rows.num_bad + self.counts.documents_with_eos

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint can hold: numbers, names, and a tensor of at most one batch of documents."""
        return {
            "rows": self._rows.state_dict(),
            "rest": torch.tensor(self._rest, dtype=torch.long),
            "counts": asdict(self.counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises: DataError where it is of other files or another order."""
        self._rows.load_state_dict(state["rows"])
        self._rest = state["rest"].numpy().copy()
        self.counts = Counts(**state["counts"])

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Tokenise the next documents. Raises: StopIteration where there are none."""
        batch = next_batch(self._texts())
        if not batch:
            raise StopIteration
        found = ended(encode(batch, self._tokenizer), self._tokenizer.eos_token_id, self.counts, refuse)
        self._rest = np.concatenate([self._rest, *found])
        if self._rows.num_passes and not self.counts.tokens:
            self._refuse_nothing()

    def _texts(self) -> Iterator[str | BadRow]:
        for row in self._rows:
            yield text_in(row, "text")

    def _refuse_nothing(self) -> None:
        ends = self.counts.documents_with_eos
        why = f"{ends} documents hold the end-of-sequence token, which ends them" if ends else "every row is empty"
        raise DataError(f"there is no text to train on: {why}", "give files with text in them")
