"""Beam search, a penalty on repeats and a least length: through transformers, which has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.data.examples import Tokenised
from potstill.errors import ConfigError
from potstill.models.families import Family, evaluating
from potstill.sampling.generate import written
from potstill.sources.dataset import batches


@dataclass(frozen=True)
class Search:
    """How ``generate`` searches, and how far and how warm the sampler writes where there is nothing to search for.

    Klinge's reasons for ANLI (MiniLLM_Seq2Seq) are of 3 beams, a penalty of 1.15, and 20 to 100 tokens.

    Raises: ConfigError.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if self.num_beams < 1 or not self.repetition_penalty > 0:
            raise ConfigError(
                f"num_beams is {self.num_beams}, repetition_penalty {self.repetition_penalty:g}",
                "give at least one beam, and a penalty above 0 (1 is none)",
            )
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(
                f"--min-new-tokens is {self.min_new_tokens}, and --max-new-tokens {self.max_new_tokens}",
                "give a least length from 0 to the greatest",
            )

    @property
    def is_plain(self) -> bool:
        """Whether the sampler writes the same: no beams, no penalty, no least length."""
        return self == Search(self.max_new_tokens, self.temperature, self.top_p)

    def settings(self) -> dict[str, Any]:
        """As ``written`` takes them."""
        return asdict(self) | {"min_new_tokens": self.min_new_tokens or None}


def searched(
    family: Family, tokenizer: Any, rows: Sequence[Tokenised], search: Search, seeds: Sequence[int], batch_size: int
) -> list[tuple[list[int], bool]]:
    """The token ids written to each row's prompt without the end, and whether the end was written.

    Drawn texts are written one at a time: the library has one stream of random numbers for a batch, and a draw must
    not depend on its neighbours.
    """
    end = tokenizer.eos_token_id
    size = 1 if search.temperature else batch_size
    found: list[tuple[list[int], bool]] = []
    with evaluating(family):
        for index, batch in enumerate(batches(rows, size, end)):
            placed = batch.to(family.model.device)
            ids = written(family, placed, end, seed=seeds[index * size], **search.settings())
            found += [_until(row, end) for row in ids.tolist()]
    return found


def _until(ids: list[int], end: int) -> tuple[list[int], bool]:
    return (ids[: ids.index(end)], True) if end in ids else (ids, False)
