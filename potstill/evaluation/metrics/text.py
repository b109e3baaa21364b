"""Whether a response is one of its references, and how long it is."""

from __future__ import annotations

import string
from collections.abc import Sequence

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(response: str, references: Sequence[str]) -> bool:
    """Whether a response equals any of its references once both are ``normalised``.

    Two texts of nothing but punctuation are equal: both are empty then.

    Raises: ValueError without references.
    Source: Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250; as in MiniLLM, articles are kept.
    """
    if isinstance(references, str) or not references:
        raise ValueError("exact match: give a list of one or more references")
    return normalised(response) in {normalised(reference) for reference in references}


def exact_matches(responses: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool]:
    """``exact_match`` of each response with its references."""
    return [exact_match(response, allowed) for response, allowed in zip(responses, references, strict=True)]


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, each run of white space one space and none at the ends.

    Other punctuation, a curly quote for instance, stays: the figures of the field are computed so.
    """
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def num_words(text: str) -> int:
    """Words of a text: what white space separates."""
    return len(text.split())
