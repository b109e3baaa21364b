"""Responses that the student writes itself, alone or with the teacher's help: many at once, then trained on in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from potstill import recipe
from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.data.order import seed_of
from potstill.sampling.sampler import Response
from potstill.sampling.writer import Writer
from potstill.sources.dataset import DatasetSource
from potstill.sources.source import Share
from potstill.types import Batch, Credit


class Judge(Protocol):
    """Gives the tokens of a whole rollout their credit. ``figures`` are what is worth logging of the last one."""

    figures: dict[str, float]

    def __call__(self, rollout: Sequence[Batch]) -> list[Batch]: ...


class RolloutSource:
    """Batches of a rollout, one after another; each rollout is written by the student of its time.

    A response depends on the models, its prompt and its place in the order of all prompts, so any number of processes
    writes the same. Batches that are written and not used up are part of the state.

    Args:
        prompts: whose prompts are answered; their own responses are not looked at.
        writer: who answers.
        spec: how many at once, and how often each is used.
        seed: of the draws.
        judge: gives credit to the sampled tokens; None where no term asks for it.
        dtype: of the importance weights: float64 where the models are.
    """

    def __init__(
        self,
        prompts: DatasetSource,
        writer: Writer,
        spec: recipe.RolloutSource,
        *,
        seed: int,
        judge: Judge | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self._prompts, self._writer, self._spec, self._seed, self._judge = prompts, writer, spec, seed, judge
        self._dtype = dtype
        self._figures: dict[str, float] = {}
        self._rollout: list[list[Batch]] = []
        self._turns: list[int] = []  # which batches of the rollout come next
        self._num_rollouts = 0

    def next(self, share: Share, progress: float) -> list[Batch]:
        if not self._turns:
            self._collect(share)
        return self._rollout[self._turns.pop(0)]

    def write(self, share: Share, num_batches: int = 1) -> list[tuple[Tokenised, Response]]:
        """This process's share of some global batches of new responses, all written at once."""
        asked: list[tuple[int, Tokenised]] = []
        for _ in range(num_batches):
            place = self._prompts.position
            places = range(place, place + share.batch_size)[share.own]
            asked += zip(places, self._prompts.draw(share), strict=True)
        seeds = [seed_of(self._seed, "row", place) for place, _ in asked]
        responses = self._writer.write([row.prompt_ids for _, row in asked], seeds=seeds)
        written = zip(asked, responses, strict=True)
        return [(answered(row, response, place), response) for (place, row), response in written]

    def _collect(self, share: Share) -> None:
        """Write a rollout, and settle in which order its batches are used."""
        begun = time.perf_counter()
        written = self.write(share, self._spec.batches_per_rollout)
        micro_batches = [
            _sampled_batch(written[at : at + share.micro_size], self._prompts.pad_id, self._dtype)
            for start in range(0, len(written), share.size)
            for at in range(start, start + share.size, share.micro_size)
        ]
        judged = self._judge(micro_batches) if self._judge else micro_batches
        per_batch = len(judged) // self._spec.batches_per_rollout
        self._rollout = [judged[at : at + per_batch] for at in range(0, len(judged), per_batch)]
        self._turns = [turn for update in range(self._spec.num_updates_per_batch) for turn in self._order(update)]
        self._num_rollouts += 1
        self._figures = self._told([response for _, response in written]) | {"writing_s": time.perf_counter() - begun}
        self._figures |= self._judge.figures if self._judge else {}

    def _told(self, responses: Sequence[Response]) -> dict[str, float]:
        """What is worth logging of a rollout."""
        num_tokens = sum(len(response.ids) for response in responses)
        told = {
            "response_tokens": num_tokens / len(responses),
            "finished_share": sum(response.finished for response in responses) / len(responses),
        }
        if self._spec.policy.name == "speculative":
            told["corrected_share"] = sum(response.num_corrected for response in responses) / num_tokens
        return told

    def _order(self, update: int) -> list[int]:
        """As they were written at first, then in a new order each time."""
        count = self._spec.batches_per_rollout
        if update == 0:
            return list(range(count))
        generator = torch.Generator().manual_seed(seed_of(self._seed, "order", self._num_rollouts, update))
        return torch.randperm(count, generator=generator).tolist()

    def observe(self, validation: Mapping[str, float]) -> None:
        pass

    def figures(self) -> dict[str, float]:
        """Of the rollout that the last batch is from; ``age``: batches trained on since it was written.

        The time it took to write is told once, so that times add up.
        """
        used = self._spec.batches_per_rollout * self._spec.num_updates_per_batch - len(self._turns)
        told = {name: value for name, value in self._figures.items() if used <= 1 or name != "writing_s"}
        return told | {"age": float(used - 1)}

    def held(self) -> list[Batch]:
        return [batch for written in self._rollout for batch in written] if self._turns else []

    def state_dict(self) -> dict[str, Any]:
        return {
            "prompts": self._prompts.state_dict(),
            "num_rollouts": self._num_rollouts,
            "turns": list(self._turns),
            "figures": self._figures,
            "rollout": [[packed(batch) for batch in written] for written in self._rollout] if self._turns else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._prompts.load_state_dict(state["prompts"])
        self._num_rollouts, self._turns, self._figures = state["num_rollouts"], list(state["turns"]), state["figures"]
        self._rollout = [[unpacked(batch) for batch in written] for written in state["rollout"]]


def answered(asked: Tokenised, response: Response, place: int) -> Tokenised:
    """The example with another response; the place keeps the id its own when the prompt comes again."""
    return replace(
        asked,
        example_id=f"{asked.example_id}#{place}",
        response_ids=response.ids,
        response="",
        truncated=not response.finished,
    )


def _sampled_batch(written: Sequence[tuple[Tokenised, Response]], pad_id: int, dtype: torch.dtype) -> Batch:
    """A batch of responses with their importance weights, 1 at padding."""
    batch = collate([row for row, _ in written], pad_id)
    weights = torch.ones(batch.response_ids.shape, dtype=dtype)
    for row, (_, response) in zip(weights, written, strict=True):
        row[: len(response.ids)] = torch.tensor(response.importance_weights, dtype=dtype)
    return replace(batch, importance_weights=weights, again="never")


def packed(batch: Batch) -> dict[str, Any]:
    """A batch as a checkpoint holds it."""
    credit = {"credit": {name: value.cpu() for name, value in vars(batch.credit).items()}} if batch.credit else {}
    return vars(batch.to(torch.device("cpu"))) | {"example_ids": list(batch.example_ids), "credit": None} | credit


def unpacked(state: dict[str, Any]) -> Batch:
    """A batch as it was packed."""
    credit = Credit(**state["credit"]) if state["credit"] else None
    return Batch(**state | {"example_ids": tuple(state["example_ids"]), "credit": credit})
