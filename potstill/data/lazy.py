"""Rows that are made when they are asked for: memory holds none of them."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from potstill.data.examples import Tokenised


class LazyRows(Sequence[Tokenised]):
    """A sequence whose rows come from somewhere else; a slice of it is a tuple."""

    @abstractmethod
    def row(self, index: int) -> Tokenised:
        """The row at an index from 0 to below the length."""

    @overload
    def __getitem__(self, index: int) -> Tokenised: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tokenised, ...]: ...
    def __getitem__(self, index: int | slice) -> Tokenised | tuple[Tokenised, ...]:
        if isinstance(index, slice):
            return tuple(self.row(at) for at in range(*index.indices(len(self))))
        wanted = operator.index(index)
        wanted += len(self) if wanted < 0 else 0
        if not 0 <= wanted < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(wanted)
