"""Long inputs: the middle goes, and the beginning, the end, and the instruction around it stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from potstill.data.catalogue.item import Item
from potstill.data.examples import Example
from potstill.data.tokenise import Template, num_prompt_tokens
from potstill.errors import DataError

Span: TypeAlias = tuple[int, int]
GAP = "\n[...]\n"  # stands where text was left out, so that a model is not shown a sentence that nobody wrote
# A piece of a word; where there are no spaces, as in some scripts, the cut stays where it is.
LAST_PIECE, FIRST_PIECE = re.compile(r"(?<=\s)\S{1,40}$"), re.compile(r"^\S{1,40}(?=\s)")


@dataclass(frozen=True)
class Cut:
    """A prompt that lost the middle of a part of it.

    ``text`` is what the part became, ``left_out`` the tokens it lost, ``fits`` whether that was enough, with something
    of the part still there.
    """

    prompt: str
    text: str
    left_out: int
    fits: bool


def shortened(example: Example, tokenizer: Any, template: Template, max_prompt_tokens: int) -> tuple[Example, int]:
    """The example with a prompt of at most ``max_prompt_tokens``, and how many tokens were left out for it.

    Only ``example.input_span`` loses anything, and keeps something; the whole prompt where the row does not say what
    its input is. Where that is not enough, and for a chat, the example comes back as it is, with 0.

    Raises: DataError for a tokenizer that cannot say where its tokens stand in a text.
    """
    start, end = example.input_span or (0, len(example.prompt))
    cut = _cut(example.prompt, (start, end), tokenizer, template, max_prompt_tokens)
    if cut is None or not cut.fits:
        return example, 0
    content = example.content and _with_last(example.content, example.prompt[start:end], cut.text)
    span = example.input_span and (start, start + len(cut.text))
    return replace(example, prompt=cut.prompt, content=content, input_span=span), cut.left_out


def fitted(item: Item, tokenizer: Any, template: Template, max_prompt_tokens: int) -> tuple[Item, int]:
    """The item with a prompt of at most ``max_prompt_tokens``, and how many tokens of its own words were left out.

    Its input loses as many from its middle as must be; where it has none, or one too short, its own words do, because
    an item that is measured has to be asked: a task's frame stays whole. Where the frame alone is too long the item
    comes back as short as it gets, which the caller sees by its length.

    Raises: DataError as ``shortened``.
    """
    own = item.prompt if item.content is None else item.content
    start, end = item.input_span or (0, 0)
    cut = _cut(item.prompt, (start, end), tokenizer, template, max_prompt_tokens) if start < end else None
    if cut is not None and cut.fits:
        content = item.content and _with_last(item.content, item.prompt[start:end], cut.text)
        span = (start, start + len(cut.text))
        return replace(item, prompt=cut.prompt, content=content, input_span=span), cut.left_out
    place = item.prompt.find(own)
    cut = _cut(item.prompt, (place, place + len(own)), tokenizer, template, max_prompt_tokens) if place >= 0 else None
    if cut is None:
        return item, 0
    content = None if item.content is None else cut.text
    return replace(item, prompt=cut.prompt, content=content, input_span=None), cut.left_out


def _cut(prompt: str, span: Span, tokenizer: Any, template: Template, limit: int) -> Cut | None:
    """The prompt with less of ``span``; None where it is short enough, or there is nothing to cut."""
    part = prompt[span[0] : span[1]]
    excess = _length(prompt, tokenizer, template) - limit
    if excess <= 0 or not part:
        return None
    places = _places(part, tokenizer)
    kept = len(places) - excess
    while True:
        # Cut text may tokenise into more tokens than it had: take a little more until it fits.
        text, left_out = _ends(part, places, max(kept, 0))
        short = prompt[: span[0]] + text + prompt[span[1] :]
        excess = _length(short, tokenizer, template) - limit
        if excess <= 0 or kept <= 0:
            return Cut(short, text, left_out, fits=excess <= 0 and left_out < len(places))
        kept -= excess


def _length(prompt: str, tokenizer: Any, template: Template) -> int:
    return num_prompt_tokens(Example(prompt, "", ""), tokenizer, template)


def _places(text: str, tokenizer: Any) -> list[Span]:
    """Where each token of a text stands in it."""
    try:
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        return list(tokenizer(text, **options)["offset_mapping"])
    except NotImplementedError:
        cause = "the tokenizer cannot say where its tokens stand in a text, so long prompts cannot be shortened with it"
        raise DataError(cause, "set data.long_prompts=skip, or use the fast tokenizer (tokenizer.json)") from None


def _ends(text: str, places: Sequence[Span], kept: int) -> tuple[str, int]:
    """The first and the last tokens of a text, at most ``kept``, without the pieces of words at the cut; and how many
    are not among them.
    """
    head, tail = (kept + 1) // 2, kept // 2
    end = places[head - 1][1] if head else 0
    start = places[len(places) - tail][0] if tail else len(text)
    first = LAST_PIECE.sub("", text[:end]) if end < len(text) and not text[end].isspace() else text[:end]
    last = FIRST_PIECE.sub("", text[start:]) if start and not text[start - 1].isspace() else text[start:]
    there = sum(stop <= len(first) or begin >= len(text) - len(last) for begin, stop in places)
    return f"{first.rstrip()}{GAP}{last.lstrip()}", len(places) - there


def _with_last(text: str, old: str, new: str) -> str:
    """The text with the last ``old`` in it replaced: an instruction before the input may quote it."""
    before, found, after = text.rpartition(old)
    return before + new + after if found else text
