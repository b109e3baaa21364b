"""What a row becomes: first an example of text, then one of token ids."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256


class Unusable(ValueError):
    """A row that cannot be trained on. Its text is the reason, on one line."""


@dataclass(frozen=True)
class Example:
    """A prompt and its response as text.

    ``prompt`` is the prompt as a person reads it, before any chat template. ``messages`` are the prompt's (role,
    content) pairs where the row was a chat. ``content`` is the row's own part of the prompt, without the words that
    every row shares (Alpaca's frame, a system turn): what overlap is measured on; None where that is all of it.
    ``input_span`` is (start, end) of the part of ``prompt`` that may lose its middle where it is too long; None where
    the row does not say which part that is, and empty where there is none: an instruction is never cut.
    """

    prompt: str
    response: str
    id: str
    messages: tuple[tuple[str, str], ...] | None = None
    content: str | None = None
    input_span: tuple[int, int] | None = None
    rationale: str | None = None
    llm_label: str | None = None
    group: str | None = None  # what a stream may choose its rows by

    @property
    def own_words(self) -> str:
        return self.prompt if self.content is None else self.content


@dataclass(frozen=True)
class Tokenised:
    """An example as token ids.

    ``prompt_ids`` are what inference feeds; they are never empty. ``response_ids`` end in the end-of-sequence id, once,
    unless ``truncated``: then at least that id was cut. ``prompt`` and ``response`` are the raw text, uncut, but for a
    prompt that was shortened before it was tokenised.
    """

    example_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    prompt: str
    response: str
    truncated: bool
    group: str | None = None


def prompt_sha256(prompt: str) -> str:
    """What an annotation knows its row by, beside the id: the hash of the prompt as a person reads it."""
    return sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
