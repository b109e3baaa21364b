"""Plain text as blocks of tokens: documents one after another, each ended, cut to one length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.data.examples import Tokenised
from potstill.data.reader import BadRow, read_rows
from potstill.errors import DataError


def plain_text_blocks(path: str, tokenizer: Any, block_tokens: int) -> tuple[Tokenised, ...]:
    """The text of a file in blocks, all of whose tokens but the first are predicted.

    Args:
        path: a .txt file, a document on each line; or a .jsonl, .csv or .parquet file with a field "text".
        tokenizer: a transformers tokenizer.
        block_tokens: tokens in each block, at least 2; what is left at the end is dropped.
    Raises: DataError for a file that is not there, has no text, or too little for one block.
    """
    file = Path(path)
    if not file.is_file():
        fix = "set plain_text, or source.path of the stream, to a .txt, .jsonl, .csv or .parquet file"
        raise DataError(f"there is no text file {path}", fix)
    ids: list[int] = []
    for document in _documents(file):
        ids += [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if len(ids) < block_tokens:
        has = f"{len(ids)} tokens of text, less than one block of {block_tokens}" if ids else "no text in it"
        raise DataError(f"{path} has {has}", "give more text, or lower source.block_tokens of the stream")
    starts = range(0, len(ids) - block_tokens + 1, block_tokens)
    return tuple(_block(file.name, number, ids[at : at + block_tokens]) for number, at in enumerate(starts, 1))


def _documents(file: Path) -> Iterator[str]:
    """Each document that is not empty."""
    if file.suffix == ".txt":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            cause = f"{file}: it is not UTF-8 ({error.reason} at byte {error.start})"
            raise DataError(cause, "save it as UTF-8") from None
        yield from (line.strip() for line in lines if line.strip())
        return
    for row in read_rows(file):
        if isinstance(row, BadRow):
            raise DataError(f"{row.where}: {row.reason}", "mend or remove the row")
        text = row.values.get("text")
        if not isinstance(text, str):
            raise DataError(f"{row.where}: it has no text in a field called text", 'give each row a field "text"')
        if text.strip():
            yield text.strip()


def _block(name: str, number: int, ids: list[int]) -> Tokenised:
    return Tokenised(f"{name}, block {number}", (ids[0],), tuple(ids[1:]), "", "", truncated=True)
