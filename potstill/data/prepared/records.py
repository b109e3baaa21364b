"""Records of prompts and responses in .bin and .idx files, as rows that are read through a memory map."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.examples import Tokenised
from potstill.data.indexed import IndexedTokens
from potstill.data.indexed.layout import Ids
from potstill.data.indexed.reader import find_shards, named
from potstill.data.lazy import LazyRows
from potstill.data.reader import EXCERPT_CHARS, BadRow
from potstill.data.tally import SKIPS
from potstill.data.tokenise import Skip
from potstill.errors import DataError
from potstill.hashes import file_sha256
from potstill.recipe import Data

KINDS: tuple[Skip | None, ...] = (None, *SKIPS)  # what a record is: used, or why it is left out
BAD = len(KINDS)


@dataclass(frozen=True)
class Read:
    """What one pass over a set of records found.

    ``kind`` is uint8 of shape (records,): a place in ``KINDS``, or ``BAD``. ``sizes`` is int32 of shape (records, 2):
    tokens of the prompt and of the response with its end.
    """

    name: str
    tokens: IndexedTokens
    sha256: str
    kind: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    bad: tuple[BadRow, ...]

    @property
    def good(self) -> NDArray[np.int64]:
        """The records that are not bad: int64 of shape (good records,)."""
        return np.flatnonzero(self.kind != BAD)


class RecordRows(LazyRows):
    """Some records of a set as rows, read and decoded as they are asked for.

    Args:
        read: the set. places: which records, int64 of shape (rows,).
        max_response_tokens: of a response with its end; a longer one is cut.
    """

    def __init__(self, read: Read, places: NDArray[np.int64], tokenizer: Any, max_response_tokens: int):
        self._read, self._places = read, places
        self._tokenizer, self._limit = tokenizer, max_response_tokens

    def __len__(self) -> int:
        return len(self._places)

    def row(self, index: int) -> Tokenised:
        place = int(self._places[index])
        prompt, response = parts_of(self._read.tokens, self._read.name, place)
        body = _without_end(response, self._tokenizer.eos_token_id)
        return Tokenised(
            example_id=f"{self._read.name}:{place}",
            prompt_ids=tuple(prompt.tolist()),
            response_ids=(*body.tolist(), self._tokenizer.eos_token_id)[: self._limit],
            prompt=_text(prompt, self._tokenizer),
            response=_text(body, self._tokenizer),
            truncated=len(body) + 1 > self._limit,
        )


def read_set(folder: Path, name: str, config: Data, tokenizer: Any) -> Read:
    """Look at every record of a set once."""
    tokens = IndexedTokens(folder, name, vocab_size=len(tokenizer))
    kind = np.zeros(len(tokens), np.uint8)
    sizes = np.zeros((len(tokens), 2), np.int32)
    bad: list[BadRow] = []
    for place in range(len(tokens)):
        prompt, response = parts_of(tokens, name, place)
        body = _without_end(response, tokenizer.eos_token_id)
        if tokenizer.eos_token_id in body:
            kind[place] = BAD
            reason = f"the response holds {tokenizer.eos_token!r}, the end of a sequence, before its end"
            bad.append(BadRow(f"{name}:{place}", reason, _text(prompt, tokenizer)[:EXCERPT_CHARS]))
        else:
            kind[place] = KINDS.index(_skip(prompt, body, config))
            sizes[place] = len(prompt), len(body) + 1
    found = Read(name, tokens, _hash(folder, name), kind, sizes, tuple(bad))
    tokens.expect_random_reads()  # from here on in the order of training
    return found


def parts_of(tokens: IndexedTokens, name: str, place: int) -> tuple[Ids, Ids]:
    """The ids of a record's prompt and of its response. Raises: DataError, naming the record, where it has not both."""
    parts = tokens.parts(place)
    if len(parts) == 2:
        return parts[0], parts[1]
    if len(parts) == 1:
        cause = f"{name}: record {place} has no separator {tokens.separator}: it is a block of text, or a prompt alone"
        raise DataError(cause, "set plain_text to the folder of a corpus, and data to one of prompts and responses")
    cause = f"{name}: record {place} has {len(parts) - 1} separators {tokens.separator}, and one is between two parts"
    raise DataError(cause, "process the data again")


def _without_end(response: Ids, eos_id: int) -> Ids:
    """The response before its end-of-sequence ids, however many there are: rows get one of them."""
    others = np.flatnonzero(response != eos_id)
    return response[: others[-1] + 1] if len(others) else response[:0]


def _skip(prompt: Ids, body: Ids, config: Data) -> Skip | None:
    if not len(prompt):
        return "empty_prompt"
    if len(prompt) > config.max_prompt_tokens:
        return "long_prompt"
    return None if len(body) else "empty_response"


def _text(ids: Ids, tokenizer: Any) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _hash(folder: Path, name: str) -> str:
    """The hash of the hashes of a set's files, in the order of their numbers."""
    prefixes = find_shards(folder, name)
    files = chain.from_iterable((named(prefix, ".bin"), named(prefix, ".idx")) for prefix in prefixes)
    return sha256("".join(map(file_sha256, files)).encode()).hexdigest()
