"""What a rollout asks for responses: a writer, here with the models at hand, elsewhere with an engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from potstill.errors import ConfigError
from potstill.models.decoding import check_decoding, decoder_of
from potstill.models.families import Family, evaluating
from potstill.models.slots import beside
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Policy
from potstill.sampling.sampler import Response, sample


class Writer(Protocol):
    """Writes responses. How tokens are chosen, and by which models, is settled when it is made."""

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        """One response to each prompt, in the prompts' order; none for no prompts.

        Args:
            prompts: token ids, at least one each.
            seeds: one for each prompt: a response depends on its prompt and seed, not on those beside it.
        Raises: ValueError for an empty prompt, or where there are not as many seeds as prompts.
        """


@dataclass(frozen=True)
class LocalWriter:
    """The batched sampler on the models of this process.

    Args:
        policy: who writes.
        families: its models, the student first where there are two. Their weights are read anew at every call.
        decoding: how tokens are chosen.
        slots: responses at a time.
    Raises: ConfigError where there are not as many models as the policy takes, or no slot; ModelError for a model that
        the sampler does not suit, and by ``write`` where a prompt and its response are longer than a model sees.
    """

    policy: Policy
    families: Sequence[Family]
    decoding: Decoding
    slots: int

    def __post_init__(self) -> None:
        if len(self.families) != self.policy.num_models:
            raise ConfigError(
                f"{len(self.families)} models for {type(self.policy).__name__}, which takes {self.policy.num_models}",
                "give the student, and the teacher behind it where both write",
            )
        if self.slots < 1:
            raise ConfigError(f"slots is {self.slots}", "give at least 1")
        for family in self.families:
            check_decoding(family)

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        check_prompts(prompts, seeds)
        if not prompts:
            return []
        longest, most = max(map(len, prompts)), self.decoding.max_new_tokens
        slots = min(self.slots, len(prompts))
        with ExitStack() as stack:
            for family in self.families:
                stack.enter_context(evaluating(family))
            home = self.families[0].model.device
            decoders = [
                beside(decoder_of(family, slots, longest, most), family.model.device, home) for family in self.families
            ]
            return sample(self.policy, decoders, prompts, self.decoding, seeds=seeds, slots=slots)


def check_prompts(prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> None:
    """Refuse what no writer can answer. Raises: ValueError."""
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty: there is nothing to continue")
