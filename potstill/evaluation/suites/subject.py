"""A model that is asked: what it writes to a prompt, and how likely it finds a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from potstill import weighting
from potstill.data.examples import Example, Tokenised
from potstill.data.order import seed_of
from potstill.data.tokenise import Skip, Template, choose_template, encodes_pairs, num_prompt_tokens, tokenise
from potstill.errors import DataError, ModelError
from potstill.models.families import Family, check_projection, evaluating, family_of, pack
from potstill.models.fingerprint import fingerprint_of
from potstill.models.loading import load
from potstill.models.positions import check_positions, positions_of, room_for_prompt
from potstill.recipe import Data
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.writer import LocalWriter
from potstill.sources.dataset import batches

UNLIMITED = 1_000_000  # tokens
# Files that say, beside the weights, what a model is.
NO_TEXT = "-"  # where an example wants a response and none is looked at


@dataclass(frozen=True)
class Subject:
    """A model with all that a protocol needs of it.

    Args:
        name: as the user gave it. family: the model. tokenizer: its own.
        template: how its prompts are framed.
        fingerprint: of its weights, config and tokenizer; two models with one are the same model.
        batch_size: texts at a time; changes nothing but time and memory.
    """

    name: str
    family: Family
    tokenizer: Any
    template: Template
    fingerprint: str
    batch_size: int = 8

    def with_template(self, wanted: str) -> Subject:
        """The same with its prompts framed otherwise; auto is its chat template where it has one. Raises: DataError."""
        return replace(self, template=choose_template(Data.model_validate({"template": wanted}), self.tokenizer))

    def write(self, prompts: Sequence[str], ids: Sequence[str], decoding: Decoding, *, seed: int) -> list[str]:
        """A response to each prompt, without the end.

        Args:
            prompts: as a person reads them. ids: of the examples; a draw depends on its id and the seed alone.
            decoding: how tokens are chosen; its stop token is the tokenizer's end.
            seed: of the draws.
        Raises: ModelError where a prompt and its response are longer than the model sees.
        """
        rows = self._tokenised([Example(prompt, NO_TEXT, id) for prompt, id in zip(prompts, ids, strict=True)])
        writer = LocalWriter(Single(), [self.family], decoding, self.batch_size)
        seeds = [seed_of("evaluation", seed, id) for id in ids]
        responses = writer.write([row.prompt_ids for row in rows], seeds=seeds)
        return [self.tokenizer.decode(list(r.ids), skip_special_tokens=True).strip() for r in responses]

    def room_for_prompt(self, wanted: int, max_new_tokens: int, *, around: int = 0) -> int:
        """Tokens a prompt may have: as many as are wanted, or as the model's positions leave.

        Args:
            wanted: of the prompt by itself. max_new_tokens: to be written. around: of the frame around the prompt.
        Raises: ModelError where not one is left.
        """
        config = self.family.model.config.get_text_config()
        room = room_for_prompt(config, wanted + around, max_new_tokens) - around
        if room < 1:
            frame = f", beside a frame of {around}" if around else ""
            positions = positions_of(config)
            cause = f"{self.name} has {positions} positions, and {max_new_tokens} tokens are to be written{frame}"
            raise ModelError(cause, "give a smaller --max-new-tokens, or leave the suite out for this model")
        return room

    def num_prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt as it is asked."""
        return num_prompt_tokens(Example(prompt, NO_TEXT, ""), self.tokenizer, self.template)

    def decoding(self, max_new_tokens: int, **settings: Any) -> Decoding:
        """How tokens are chosen, up to the tokenizer's end token."""
        return Decoding(max_new_tokens, frozenset({self.tokenizer.eos_token_id}), **settings)

    @torch.no_grad()
    def nats(self, prompts: Sequence[str], responses: Sequence[str]) -> list[tuple[float, int]]:
        """How unlikely each response is after its prompt: nats in all, and tokens; see ``to_score``.

        Raises: ModelError where either is longer than the model sees.
        """
        examples = [Example(p, r, str(at)) for at, (p, r) in enumerate(zip(prompts, responses, strict=True))]
        rows = [_there(row, example) for row, example in zip(self.to_score(examples), examples, strict=True)]
        return self.nats_of(rows, skip=self.num_before_target)

    def to_score(self, examples: Sequence[Example]) -> list[Tokenised | Skip]:
        """Responses behind their prompts as they are scored, without their end, which is not asked for.

        Without a chat template a response that does not begin with a space gets one, as it would stand in text. An
        encoder-decoder model's response continues nothing: it gets none, its source is asked as it is, and what the
        tokenizer puts before every target (``num_before_target``) is not asked for either.
        """
        pairs, end = encodes_pairs(self.tokenizer), self.tokenizer.eos_token_id
        apart = self.template == "chat" or pairs
        framed = [
            replace(
                row,
                prompt=row.prompt if pairs else row.prompt.rstrip(),
                response=row.response if apart or row.response[:1].isspace() else f" {row.response}",
            )
            for row in examples
        ]
        return [_without_end(row, end) if isinstance(row, Tokenised) else row for row in self._ids(framed)]

    @property
    def num_before_target(self) -> int:
        """Tokens that stand before every target text, as BART's beginning does; none of T5, and of a causal model."""
        if not encodes_pairs(self.tokenizer):
            return 0
        added = self.tokenizer(text_target="")["input_ids"]
        return added.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in added else 0

    @torch.no_grad()
    def nats_of(self, rows: Sequence[Tokenised], *, skip: int = 0) -> list[tuple[float, int]]:
        """Nats of each row's response tokens, and how many there are, without the first ``skip``.

        Raises: ModelError where a row is longer than the model sees.
        """
        self._check_room(rows)
        found: list[tuple[float, int]] = []
        with evaluating(self.family):
            for batch in batches(rows, self.batch_size, self.tokenizer.eos_token_id):
                placed = batch.to(self.family.model.device)
                losses = weighting.scores("student_loss", self.family.output(placed), None, placed)
                counted = batch.response_mask[:, skip:]
                found += zip(losses[:, skip:].sum(1).tolist(), counted.sum(1).tolist(), strict=True)
        return found

    def _check_room(self, rows: Sequence[Tokenised]) -> None:
        config = self.family.model.config.get_text_config()
        for row in rows:
            check_positions(config, len(row.prompt_ids), len(row.response_ids), "a prompt with an option")

    def _tokenised(self, examples: Sequence[Example]) -> list[Tokenised]:
        return [_there(row, example) for row, example in zip(self._ids(examples), examples, strict=True)]

    def _ids(self, examples: Sequence[Example]) -> list[Tokenised | Skip]:
        limits = {"max_prompt_tokens": UNLIMITED, "max_response_tokens": UNLIMITED}
        return tokenise(examples, self.tokenizer, template=self.template, **limits)


def open_subject(
    name: str,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    allow_remote_code: bool = False,
) -> Subject:
    """Load a model to be asked.

    Args:
        name: an embedded name, a folder, a .gguf file or a hub id.
        device: where it runs.
        batch_size: texts at a time.
        allow_remote_code: let the model run Python that comes with it.
    Raises: ModelError.
    """
    loaded = load(name, device=device, allow_remote_code=allow_remote_code)
    family = family_of(loaded.model)
    check_projection(family, name)
    pack(family)
    chosen = choose_template(Data(), loaded.tokenizer)
    return Subject(name, family, loaded.tokenizer, chosen, fingerprint_of(name), batch_size)


def _without_end(row: Tokenised, end: int) -> Tokenised:
    return replace(row, response_ids=row.response_ids[:-1]) if row.response_ids[-1] == end else row


def _there(row: Tokenised | Skip, example: Example) -> Tokenised:
    """The row. Raises: DataError with the reason where it is none."""
    if not isinstance(row, Tokenised):
        raise DataError(f"{example.id}: {row.replace('_', ' ')}", "mend the row, or leave it out")
    return row
