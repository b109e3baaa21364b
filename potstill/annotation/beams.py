"""Beam search, a penalty on repeats and a least length: through transformers, which has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from potstill.data.examples import Tokenised
from potstill.errors import ConfigError
from potstill.models.families import Family, evaluating
from potstill.sources.dataset import batches


@dataclass(frozen=True)
class Search:
    """How ``generate`` searches.

    Klinge's reasons for ANLI (MiniLLM_Seq2Seq) are of 3 beams, a penalty of 1.15, and 20 to 100 tokens.

    Raises: ConfigError.
    """

    max_new_tokens: int
    num_beams: int = 1
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0

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


@torch.no_grad()
def searched(
    family: Family, tokenizer: Any, rows: Sequence[Tokenised], search: Search, seeds: Sequence[int], batch_size: int
) -> list[tuple[list[int], bool]]:
    """The token ids written to each row's prompt without the end, and whether the end was written.

    Drawn texts are written one at a time: the library has one stream of random numbers for a batch, and a draw must
    not depend on its neighbours.
    """
    end = tokenizer.eos_token_id
    size = 1 if search.temperature else batch_size
    devices = [family.model.device.index or 0] if family.model.device.type == "cuda" else []
    found: list[tuple[list[int], bool]] = []
    with torch.random.fork_rng(devices), evaluating(family), _settings(family.model, search, end):
        for index, batch in enumerate(batches(rows, size, end)):
            torch.manual_seed(seeds[index * size])
            placed = batch.to(family.model.device)
            sequences = family.model.generate(**family.generation_inputs(placed))
            found += [_until(ids, end) for ids in family.written(sequences, placed).tolist()]
    return found


@contextmanager
def _settings(model: Any, search: Search, end: int) -> Iterator[None]:
    """These settings and no others: ``generate`` fills what is left open from the model's own folder."""
    from transformers import GenerationConfig

    own = model.generation_config
    drawn = {"do_sample": True, "temperature": search.temperature, "top_k": 0, "top_p": search.top_p}
    model.generation_config = GenerationConfig(
        max_new_tokens=search.max_new_tokens,
        min_new_tokens=search.min_new_tokens or None,
        num_beams=search.num_beams,
        repetition_penalty=search.repetition_penalty,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
        **(drawn if search.temperature else {}),
    )
    try:
        yield
    finally:
        model.generation_config = own


def _until(ids: list[int], end: int) -> tuple[list[int], bool]:
    return (ids[: ids.index(end)], True) if end in ids else (ids, False)
