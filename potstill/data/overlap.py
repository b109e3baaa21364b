"""How much of the held-out rows the train rows give away, measured."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

from potstill.data.examples import Example

WORDS = 8  # a run of words that two texts hardly share by chance
SHINGLE = 3  # words in a row; a text of fewer is one shingle
NEARLY = 0.8  # of two rows' shingles in common: nearly the same


def overlap(heldout: Sequence[Example], train: Iterable[Example]) -> dict[str, int | float]:
    """Held-out rows that are in train: whole, or by a run of eight words.

    Words are compared in lower case and without punctuation; of a prompt only the row's own words count, not the frame
    that every row shares. A text of fewer than eight words can only be a duplicate.

    Args:
        heldout: all held in memory. train: looked through once, row by row, and not held.
    Returns:
        duplicate_prompts, duplicate_rows: numbers of held-out rows whose prompt, or whole row, stands in train.
        shared_8gram_prompt_share, shared_8gram_response_share: shares of held-out rows, 0 to 1.
        near_duplicate_rows: number of held-out rows that have four fifths or more of their runs of three words, prompt
        and response together, in common with a train row (Jaccard).
    """
    wanted_prompts, wanted_rows = {row.own_words for row in heldout}, {_whole(row) for row in heldout}
    prompts, responses = _Runs([row.own_words for row in heldout]), _Runs([row.response for row in heldout])
    alike = _Alike(heldout)
    seen_prompts: set[str] = set()
    seen_rows: set[tuple[str, str]] = set()
    for row in train:
        seen_prompts |= {row.own_words} & wanted_prompts
        seen_rows |= {_whole(row)} & wanted_rows
        prompts.meet(row.own_words)
        responses.meet(row.response)
        alike.meet(row)
    return {
        "duplicate_prompts": sum(row.own_words in seen_prompts for row in heldout),
        "duplicate_rows": sum(_whole(row) in seen_rows for row in heldout),
        "shared_8gram_prompt_share": prompts.shared,
        "shared_8gram_response_share": responses.shared,
        "near_duplicate_rows": len(alike.met),
    }


def _whole(row: Example) -> tuple[str, str]:
    return row.own_words, row.response


class _Runs:
    """Runs of eight words of some texts, and which of them have been met elsewhere."""

    def __init__(self, texts: Sequence[str]):
        self._own = [set(_runs(text)) for text in texts]
        self._wanted = set().union(*self._own)
        self._met: set[int] = set()

    def meet(self, text: str) -> None:
        self._met.update(run for run in _runs(text) if run in self._wanted)

    @property
    def shared(self) -> float:
        """The share of the texts of which a run has been met."""
        return round(sum(not self._met.isdisjoint(own) for own in self._own) / len(self._own), 6) if self._own else 0.0


class _Alike:
    """Rows that are nearly the same as one met elsewhere; ``met``: their places."""

    def __init__(self, rows: Sequence[Example]):
        self._sizes = [len(shingles(row)) for row in rows]
        self._places: dict[Hashable, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            for shingle in shingles(row):
                self._places[shingle].append(place)
        self.met: set[int] = set()

    def meet(self, row: Example) -> None:
        own = shingles(row)
        common = Counter(place for shingle in own for place in self._places.get(shingle, ()))
        self.met.update(
            place for place, count in common.items() if count / (len(own) + self._sizes[place] - count) >= NEARLY
        )


def shingles(row: Example) -> frozenset[Hashable]:
    """All runs of three words of a row, prompt and response; of a shorter one all its words at once."""
    said = words(f"{row.own_words}\n{row.response}")
    if len(said) < SHINGLE:
        return frozenset([tuple(said)] if said else [])
    return frozenset(tuple(said[at : at + SHINGLE]) for at in range(len(said) - SHINGLE + 1))


def _runs(text: str) -> Iterator[int]:
    """Hashes of all runs of eight words."""
    said = words(text)
    return (hash(tuple(said[at : at + WORDS])) for at in range(len(said) - WORDS + 1))


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    return re.findall(r"[\w']+", text.lower())
