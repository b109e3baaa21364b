"""What decoders of every family share: their interface, and keys and values in slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

EAGER = "eager"  # attention that adds its mask to the scores; all other reads where it is true


class Decoder(Protocol):
    """One model at work on several sequences. Sequences are known by their place, 0 to the number of them - 1.

    ``start``: the token that what it writes begins behind; None where that continues the prompt, in one sequence.
    """

    @property
    def start(self) -> int | None: ...

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "new vocab"]:
        """Take in sequences behind those that are there, and return the logits of their first tokens."""

    def step(self, tokens: Int[Tensor, " active"]) -> Float[Tensor, "active vocab"]:
        """Append a token to every sequence, and return the logits of the next."""

    def leave(self, place: int) -> None:
        """Let a sequence go; the last one takes its place."""


@dataclass(frozen=True)
class Elsewhere:
    """A decoder whose model is on another device, ``there``, than the tokens that are chosen, ``here``.

    Of a single position per sequence, logits are moved as they are: a copy of the head would gain nothing.
    """

    decoder: Decoder
    there: torch.device
    here: torch.device

    @property
    def start(self) -> int | None:
        return self.decoder.start

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "new vocab"]:
        return self.decoder.admit(prompts).to(self.here)

    def step(self, tokens: Int[Tensor, " active"]) -> Float[Tensor, "active vocab"]:
        return self.decoder.step(tokens.to(self.there)).to(self.here)

    def leave(self, place: int) -> None:
        self.decoder.leave(place)


def beside(decoder: Decoder, there: torch.device, here: torch.device) -> Decoder:
    """A decoder that tells its logits on a device: itself where its model is there."""
    return decoder if there == here else Elsewhere(decoder, there, here)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, ``[slot, heads, token, dim]``: each sequence's own from column 0 on.

    ``begin`` says which slots the coming forward writes, and where; ``show`` what one reads that writes nothing.
    """

    def __init__(self, slots: int, capacity: int):
        super().__init__()
        self._slots, self._capacity = slots, capacity
        self._first, self._width = 0, 0
        self._at: tuple[Tensor, Tensor] | None = None
        self._kept: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._kept = tuple(
            states.new_zeros(self._slots, states.shape[1], self._capacity, states.shape[-1])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def begin(self, first: int, width: int, at: tuple[Tensor, Tensor] | None) -> None:
        """A token goes to each slot and column of ``at``; prompts, where it is None, into slots from ``first`` on."""
        self._first, self._width, self._at = first, width, at

    def show(self, count: int, width: int) -> tuple[Tensor, Tensor]:
        """Let ``keys`` and ``values`` be the first columns of the first slots."""
        self.keys, self.values = (states[:count, :, :width] for states in self._kept)
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count, _, length, _ = key_states.shape
        new = (key_states, value_states)
        if self._at is None:
            for kept, states in zip(self._kept, new, strict=True):
                kept[self._first : self._first + count, :, :length] = states
            return new
        slots, columns = (index.to(key_states.device) for index in self._at)  # layers may be on several devices
        for kept, states in zip(self._kept, new, strict=True):
            kept[slots, :, columns] = states[:, :, 0]
        return self.show(count, self._width)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence to another slot."""
        for states in self._kept:
            states[target, :, :length] = states[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0  # of a prompt, which is all that asks: single tokens bring their mask and positions

    def get_max_length(self) -> int:
        return self._capacity


def distinct_of(prompts: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Each prompt once, in the order in which they come, and which of them each one is."""
    places: dict[tuple[int, ...], int] = {}
    which = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    return list(places), which
