"""Plain text as blocks of tokens: documents one after another, each ended, cut to one length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.data.corpus import Counts, documents, packed
from potstill.data.examples import Tokenised
from potstill.errors import DataError


def plain_text_blocks(path: str, tokenizer: Any, block_tokens: int) -> tuple[Tokenised, ...]:
    """The text of a file in blocks, all of whose tokens but the first are predicted.

    Args:
        path: a .txt file, a document on each line; or a .jsonl, .csv or .parquet file with a field "text".
        tokenizer: a transformers tokenizer.
        block_tokens: tokens in each block, at least 2; what is left at the end is dropped.
    Raises: DataError for a file that is not there, has no text, or too little for one block.
    """
    file, counts = Path(path), Counts()
    if not file.is_file():
        fix = "set plain_text, or source.path of the stream, to a .txt, .jsonl, .csv or .parquet file"
        raise DataError(f"there is no text file {path}", fix)
    texts = (document.strip() for document in documents(file))
    blocks = [block.tolist() for block in packed(texts, tokenizer, block_tokens, counts=counts)]
    if not blocks:
        there = f"{counts.tokens} tokens of text, less than one block of {block_tokens}"
        fix = "give more text, or lower source.block_tokens of the stream"
        raise DataError(f"{path} has {there if counts.tokens else 'no text in it'}", fix)
    return tuple(
        Tokenised(f"{file.name}, block {number}", (first,), tuple(rest), "", "", truncated=True)
        for number, (first, *rest) in enumerate(blocks, 1)
    )
