"""A row as the model sees it: its tokens as text, and which of them the loss is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.data.examples import Tokenised


@dataclass(frozen=True)
class Piece:
    """Some tokens in a row that are alike.

    ``scored``: the loss is about them. ``special``: the tokenizer's own marks, which are no text.
    """

    text: str
    scored: bool
    special: bool


def pieces(row: Tokenised, tokenizer: Any) -> Iterator[Piece]:
    """The row from its first token to its last, in as few pieces as show what is scored and what is special."""
    special = set(tokenizer.all_special_ids)
    marked = [(token, scored, token in special) for token, scored in _tokens(row)]
    start = 0
    for at in range(1, len(marked) + 1):
        if at == len(marked) or marked[at][1:] != marked[start][1:]:
            ids = [token for token, _, _ in marked[start:at]]
            yield Piece(_text(ids, tokenizer), marked[start][1], marked[start][2])
            start = at


def _tokens(row: Tokenised) -> Sequence[tuple[int, bool]]:
    return [*((token, False) for token in row.prompt_ids), *((token, True) for token in row.response_ids)]


def _text(ids: Sequence[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
