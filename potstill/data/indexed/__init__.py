"""Records of token ids in Megatron's .bin and .idx files, as MiniLLM writes and reads them."""

from __future__ import annotations

from potstill.data.indexed.reader import IndexedTokens
from potstill.data.indexed.writer import Written, dtype_for, write_indexed

__all__ = ["IndexedTokens", "Written", "dtype_for", "write_indexed"]
