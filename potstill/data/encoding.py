"""Examples to token ids in batches, those with long prompts shortened where that is asked for."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from potstill.data.examples import Example, Tokenised
from potstill.data.parallel import in_order
from potstill.data.shorten import shortened
from potstill.data.tokenise import Skip, Template, tokenise
from potstill.recipe import Data

BATCH_EXAMPLES, BATCH_CHARS = 256, 1_000_000


@dataclass(frozen=True)
class Encoded:
    """Token ids of an example, or why it is left out; and how many tokens its prompt lost before."""

    ids: Tokenised | Skip
    left_out: int = 0


@dataclass(frozen=True)
class Encoder:
    """What makes token ids of examples; each of them by itself, so that batches change nothing."""

    tokenizer: Any
    template: Template
    max_prompt_tokens: int
    max_response_tokens: int
    shortens: bool

    @classmethod
    def of(cls, config: Data, tokenizer: Any, template: Template) -> Encoder:
        shortens = config.long_prompts == "shorten"
        return cls(tokenizer, template, config.max_prompt_tokens, config.max_response_tokens, shortens)

    def __call__(self, examples: Sequence[Example]) -> list[Encoded]:
        return [self._again(example, ids) for example, ids in zip(examples, self._ids(examples), strict=True)]

    def _again(self, example: Example, ids: Tokenised | Skip) -> Encoded:
        """What is too long is shortened and tokenised once more."""
        if ids != "long_prompt" or not self.shortens:
            return Encoded(ids)
        short, left_out = shortened(example, self.tokenizer, self.template, self.max_prompt_tokens)
        return Encoded(self._ids([short])[0], left_out) if left_out else Encoded(ids)

    def _ids(self, examples: Sequence[Example]) -> list[Tokenised | Skip]:
        return tokenise(
            examples,
            self.tokenizer,
            template=self.template,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )


def encoded(examples: Iterable[Example], encoder: Encoder, workers: int) -> Generator[Encoded]:
    """Each example encoded, in order, whatever the number of ``workers``; batches are read as they are needed."""
    with closing(in_order(encoder, _batches(examples), workers)) as batches:
        for batch in batches:
            yield from batch


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    chars = 0
    for example in examples:
        batch.append(example)
        chars += len(example.prompt) + len(example.response)
        if len(batch) == BATCH_EXAMPLES or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
