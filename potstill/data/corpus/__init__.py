"""Plain text: documents one a line, packed into blocks of token ids, or streamed row by row."""

from __future__ import annotations

from potstill.data.corpus.building import build_corpus
from potstill.data.corpus.lines import MARKER, from_line, to_line, write_lines
from potstill.data.corpus.packing import Counts, packed
from potstill.data.corpus.reading import documents
from potstill.data.corpus.streamed import Streamed

__all__ = ["MARKER", "Counts", "Streamed", "build_corpus", "documents", "from_line", "packed", "to_line", "write_lines"]
