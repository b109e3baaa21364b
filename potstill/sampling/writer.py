"""Whoever writes responses to prompts: a model of this process, or an engine beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from potstill.models.decoding import CausalDecoder
from potstill.models.families import Causal, evaluating
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Policy
from potstill.sampling.sampler import Response, sample


class Writer(Protocol):
    """Writes one response to each prompt."""

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        """Responses in the prompts' order; each depends on its own prompt and seed alone.

        Raises: ValueError for a prompt without tokens.
        """


@dataclass(frozen=True)
class LocalWriter:
    """Models of this process: the student first where there are two."""

    policy: Policy
    families: Sequence[Causal]
    decoding: Decoding
    slots: int

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        if not prompts:
            return []
        if not all(prompts):
            raise ValueError("a prompt needs at least one token")
        capacity = max(len(prompt) for prompt in prompts) + self.decoding.max_new_tokens
        slots = min(self.slots, len(prompts))
        with ExitStack() as stack:
            for family in self.families:
                stack.enter_context(evaluating(family))
            decoders = [CausalDecoder(family, slots, capacity) for family in self.families]
            return sample(self.policy, decoders, prompts, self.decoding, seeds=seeds, slots=slots)
