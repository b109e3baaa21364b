"""Long inputs: the middle goes, and the beginning, the end, and the instruction around it stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from potstill.data.catalogue.item import Item
from potstill.data.examples import Example
from potstill.data.tokenise import Template, num_prompt_tokens

GAP = "\n[...]\n"  # stands where text was left out, so that a model is not shown a sentence that nobody wrote
# A piece of a word; where there are no spaces, as in some scripts, the cut stays where it is.
LAST_PIECE, FIRST_PIECE = re.compile(r"(?<=\s)\S{1,40}$"), re.compile(r"^\S{1,40}(?=\s)")


def fitted(item: Item, tokenizer: Any, template: Template, max_prompt_tokens: int) -> tuple[Item, int]:
    """The item with a prompt of at most ``max_prompt_tokens``, and how many tokens of its own words were left out.

    Only the item's own words lose anything, as many from its middle as must be: a task's frame stays whole. Where the
    frame alone is too long the item comes back as short as it gets, which the caller sees by its length.
    """
    own = item.prompt if item.content is None else item.content
    length = num_prompt_tokens(Example(item.prompt, "", item.id), tokenizer, template)
    if length <= max_prompt_tokens or not own or own not in item.prompt:
        return item, 0
    spans = tokenizer(own, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kept = len(spans) - (length - max_prompt_tokens)
    while True:
        # Cut text may tokenise into more tokens than it had: take a little more until it fits.
        text = _ends(own, spans, max(kept, 0))
        short = replace(item, prompt=item.prompt.replace(own, text, 1), content=None if item.content is None else text)
        excess = num_prompt_tokens(Example(short.prompt, "", item.id), tokenizer, template) - max_prompt_tokens
        if excess <= 0 or kept <= 0:
            return short, len(spans) - max(kept, 0)
        kept -= excess


def _ends(text: str, spans: Sequence[tuple[int, int]], kept: int) -> str:
    """The first and the last tokens of a text, ``kept`` of them, without the pieces of words at the cut."""
    head, tail = (kept + 1) // 2, kept // 2
    end = spans[head - 1][1] if head else 0
    start = spans[len(spans) - tail][0] if tail else len(text)
    first = LAST_PIECE.sub("", text[:end]) if end < len(text) and not text[end].isspace() else text[:end]
    last = FIRST_PIECE.sub("", text[start:]) if start and not text[start - 1].isspace() else text[start:]
    return f"{first.rstrip()}{GAP}{last.lstrip()}"
