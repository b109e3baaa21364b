"""How much of the held-out rows the train rows give away, measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from potstill.data.examples import Example

WORDS = 8  # a run of words that two texts hardly share by chance


def overlap(heldout: Sequence[Example], train: Sequence[Example]) -> dict[str, int | float]:
    """Held-out rows that are in train: whole, or by a run of eight words.

    Words are compared in lower case and without punctuation; of a prompt only the row's own words count, not the frame
    that every row shares. A text of fewer than eight words can only be a duplicate.

    Returns:
        duplicate_prompts, duplicate_rows: numbers of held-out rows whose prompt, or whole row, stands in train.
        shared_8gram_prompt_share, shared_8gram_response_share: shares of held-out rows, 0 to 1.
    """
    prompts = {example.own_words for example in train}
    rows = {(example.own_words, example.response) for example in train}
    return {
        "duplicate_prompts": sum(example.own_words in prompts for example in heldout),
        "duplicate_rows": sum((example.own_words, example.response) in rows for example in heldout),
        "shared_8gram_prompt_share": _shared(heldout, train, lambda example: example.own_words),
        "shared_8gram_response_share": _shared(heldout, train, lambda example: example.response),
    }


def _shared(heldout: Sequence[Example], train: Sequence[Example], text_of: Callable[[Example], str]) -> float:
    """Memory grows with the held-out rows only: train rows are looked through one by one."""
    runs = [set(_runs(text_of(example))) for example in heldout]
    wanted = set().union(*runs)
    found = {run for example in train for run in _runs(text_of(example)) if run in wanted}
    return round(sum(not found.isdisjoint(own) for own in runs) / len(heldout), 6) if heldout else 0.0


def _runs(text: str) -> Iterator[int]:
    """Hashes of all runs of eight words."""
    said = words(text)
    return (hash(tuple(said[at : at + WORDS])) for at in range(len(said) - WORDS + 1))


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    return re.findall(r"[\w']+", text.lower())
