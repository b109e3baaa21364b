"""Plain text as blocks of tokens, from what a recipe names: held, mapped from a folder, or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from potstill import recipe as schema
from potstill.data.corpus import Counts, Streamed, documents, packed
from potstill.data.corpus.blocks import CorpusBlocks, block_row, holds_blocks
from potstill.data.corpus.hub import PREFIX, HubRows
from potstill.data.corpus.packed_stream import PackedStream
from potstill.data.corpus.shards import Files, Shards, Texts, text_files
from potstill.data.examples import Tokenised
from potstill.errors import ConfigError, DataError

NAMES = "a .txt, .jsonl, .csv or .parquet file, a folder of these or of blocks, or datasets:NAME"
MAX_BAD_SHARE = 0.01  # of a stream's rows, which are left out; text that is held is refused at the first


@dataclass(frozen=True)
class StreamedText:
    """Text that is read while training goes on. Each training has its own reading of it, from its beginning."""

    name: str
    shards: Shards
    tokenizer: Any
    block_tokens: int
    field: str
    buffer_rows: int

    def blocks(self, seed: int | None) -> PackedStream:
        """Blocks without end, of documents shuffled with a seed, or in order. Raises: as ``Streamed``."""
        rows = Streamed(
            Texts(self.shards, self.field),
            seed=seed,
            buffer_rows=self.buffer_rows,
            repeat=True,
            max_bad_share=MAX_BAD_SHARE,
        )
        return PackedStream(rows, self.tokenizer, self.block_tokens)


PlainText: TypeAlias = Sequence[Tokenised] | StreamedText


def plain_text(source: schema.DatasetSource, tokenizer: Any) -> PlainText:
    """The text that a stream of a recipe names.

    Args:
        source: with a path; .txt, .jsonl, .csv or .parquet, a folder of these, a folder of blocks, or datasets:NAME.
        tokenizer: a transformers tokenizer.
    Raises: DataError for what is not there, is broken or is of another tokenizer; ConfigError for settings that do not
        fit what is there, or a library that is not.
    """
    assert source.path is not None
    path, settings = Path(source.path), (tokenizer, source.block_tokens)
    if source.path.startswith(PREFIX):
        rows = HubRows(source.path, source.field, subset=source.subset, revision=source.revision)
        return StreamedText(source.path, rows, *settings, source.field, source.buffer_rows)
    if holds_blocks(path):
        _check_settings(source)
        return CorpusBlocks(path, *settings)
    if source.streamed:
        files = Files(text_files(path), source.field)
        return StreamedText(path.name, files, *settings, source.field, source.buffer_rows)
    return plain_text_blocks(source.path, *settings, source.field)


def a_block(text: PlainText) -> Tokenised:
    """One block, which is as long as all others: of a stream the first in order, so that a faulty one shows at once."""
    return block_row(text.name, 1, next(text.blocks(None))) if isinstance(text, StreamedText) else text[0]


def plain_text_blocks(path: str, tokenizer: Any, block_tokens: int, field: str = "text") -> tuple[Tokenised, ...]:
    """The text of a file, or of the files in a folder, in blocks, all of whose tokens but the first are predicted.

    Args:
        path: a .txt file, a document on each line; or a .jsonl, .csv or .parquet file.
        tokenizer: a transformers tokenizer.
        block_tokens: tokens in each block, at least 2; what is left at the end is dropped.
        field: of the text; not asked of .txt files.
    Raises: DataError for a file that is not there, has no text, or too little for one block.
    """
    file, counts = Path(path), Counts()
    if not file.exists():
        raise DataError(f"there is no text file {path}", f"set plain_text, or source.path of the stream, to {NAMES}")
    texts = (document.strip() for document in documents(text_files(file), field))
    rows = tuple(
        block_row(file.name, number, block)
        for number, block in enumerate(packed(texts, tokenizer, block_tokens, counts=counts), 1)
    )
    if not rows:
        there = f"{counts.tokens} tokens of text, less than one block of {block_tokens}"
        fix = "give more text, or lower source.block_tokens of the stream"
        raise DataError(f"{path} has {there if counts.tokens else 'no text in it'}", fix)
    return rows


def _check_settings(source: schema.DatasetSource) -> None:
    """Refuse what is not asked of blocks that are made already."""
    fields = type(source).model_fields
    for name in ("field", "streamed", "buffer_rows"):
        if getattr(source, name) != fields[name].default:
            cause = f"source.{name} is {getattr(source, name)}, and {source.path} is a folder of blocks"
            raise ConfigError(f"{cause}: they are read from disk as they are asked for", f"leave source.{name} out")
