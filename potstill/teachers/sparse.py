"""A teacher that says only what a cache or a server would: its top k, or tokens drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from hashlib import blake2b

import torch
from torch import Tensor

from potstill import recipe
from potstill.objectives import sparse
from potstill.objectives.chunked import block_size, select
from potstill.teachers.digests import digests_of
from potstill.teachers.local import LocalTeacher
from potstill.types import Batch, Sampled, StudentOutput, TopK


class SparseTeacher:
    """A local teacher whose logits are cut down, a chunk at a time, before anybody sees them.

    Draws belong to the row's tokens and not to the step, as a cache's do: the same every epoch, in every batch and on
    every process.
    """

    def __init__(self, teacher: LocalTeacher, form: recipe.TopKSignal | recipe.SampledSignal, seed: int):
        self._teacher = teacher
        self._form = form
        self._seed = seed

    def signal(self, batch: Batch) -> TopK | Sampled:
        """What the teacher says about each response token; zeros at padding. Constant."""
        live = self._teacher.signal(batch)
        mask = batch.response_mask
        positions = select(StudentOutput(live.hidden, live.head), None, batch, mask, by_response=True)
        seeds = self._seeds(batch)
        said = [
            part
            for _, chunk in positions.chunks()
            for part in self._say(chunk.student_logits, seeds[int(chunk.places[0][0])])
        ]
        return _spread(said or self._say(live.head(live.hidden[mask]), 0), mask)

    def _seeds(self, batch: Batch) -> list[int]:
        """Of each row's draws; nothing is drawn for a top k."""
        if isinstance(self._form, recipe.TopKSignal):
            return [0] * len(batch)
        told = (blake2b(digest, digest_size=7, key=str(self._seed).encode()) for digest in digests_of(batch))
        return [int.from_bytes(digest.digest(), "big") for digest in told]

    def _say(self, logits: Tensor, seed: int) -> list[TopK | Sampled]:
        """What is said of a response, in blocks that stay in a processor's cache."""
        form, blocks = self._form, logits.split(block_size(logits.shape[-1], logits.device))
        if isinstance(form, recipe.TopKSignal):
            return [sparse.top_k(block, form.k, temperature=form.temperature) for block in blocks]
        generator = torch.Generator(logits.device).manual_seed(seed)
        return [sparse.draw(block, form.draws, temperature=form.temperature, generator=generator) for block in blocks]


def _spread(said: Sequence[TopK | Sampled], mask: Tensor) -> TopK | Sampled:
    """What was said of each response, put where its tokens are in the batch."""

    def at_tokens(parts: list[Tensor]) -> Tensor:
        whole = parts[0].new_zeros((*mask.shape, *parts[0].shape[1:]))
        whole[mask] = torch.cat(parts)
        return whole

    first = said[0]
    tensors = [field.name for field in fields(first) if field.name != "temperature"]
    spread = {name: at_tokens([getattr(part, name) for part in said]) for name in tensors}
    return type(first)(**spread, temperature=first.temperature)
