"""A model of this process as an annotator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from potstill.annotation.annotator import Asked, Written
from potstill.annotation.beams import Search, searched
from potstill.annotation.templates import BETWEEN, plain_text
from potstill.data.examples import Example, Tokenised
from potstill.data.tokenise import Skip, tokenise
from potstill.errors import PotstillError
from potstill.evaluation.suites.subject import NO_TEXT, UNLIMITED, Subject
from potstill.models.positions import check_positions
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.writer import LocalWriter

SLOTFULS = 2  # answered together: more would leave fewer slots empty, and lose more by a crash


@dataclass(frozen=True)
class LocalAnnotator:
    """The batched sampler on a model of this process, or transformers' search where beams or penalties are asked for.

    Args:
        subject: the model. decoding: how tokens are chosen. search: instead of the sampler.
    """

    subject: Subject
    decoding: Decoding
    search: Search | None = None

    @property
    def at_a_time(self) -> int | None:
        return SLOTFULS * self.subject.batch_size

    @property
    def scores(self) -> bool:
        return True

    def write(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Written | str]]:
        """As the protocol says; a question that is too long for the model has a problem in place of a text."""
        limits = {"max_prompt_tokens": UNLIMITED, "max_response_tokens": UNLIMITED}
        asked_about = _examples(asked, [NO_TEXT] * len(asked))
        rows = tokenise(asked_about, self.subject.tokenizer, template=self.subject.template, **limits)
        problems = [self._problem(row, self.decoding.max_new_tokens) for row in rows]
        fit = [(one, row) for one, row, problem in zip(asked, rows, problems, strict=True) if problem is None]
        yield from ((one, Written("", False, why)) for one, why in zip(asked, problems, strict=True) if why)
        written = self._written([row for _, row in fit if isinstance(row, Tokenised)], [one.seed for one, _ in fit])
        for (one, _), (ids, finished) in zip(fit, written, strict=True):
            yield one, self._read(ids, finished)

    def nats(self, asked: Sequence[Asked], texts: Sequence[str]) -> list[float | None]:
        """As the protocol says."""
        rows = self.subject.to_score(_examples(asked, texts))
        problems = [self._problem(row, len(row.response_ids) if isinstance(row, Tokenised) else 0) for row in rows]
        fit = [row for row, why in zip(rows, problems, strict=True) if why is None and isinstance(row, Tokenised)]
        found = iter(self.subject.nats_of(fit, skip=self.subject.num_before_target))
        return [next(found)[0] if why is None else None for why in problems]

    def _problem(self, row: Tokenised | Skip, num_new: int) -> str | None:
        if not isinstance(row, Tokenised):
            return row.replace("_", " ")
        try:
            check_positions(
                self.subject.family.model.config.get_text_config(), len(row.prompt_ids), num_new, "the question"
            )
        except PotstillError as error:
            return f"too long: {error.cause}"
        return None

    def _written(self, rows: Sequence[Tokenised], seeds: Sequence[int]) -> Sequence[tuple[Sequence[int], bool]]:
        if not rows:
            return []
        subject = self.subject
        if self.search is not None:
            return searched(subject.family, subject.tokenizer, rows, self.search, seeds, subject.batch_size)
        writer = LocalWriter(Single(), [subject.family], self.decoding, subject.batch_size)
        found = writer.write([row.prompt_ids for row in rows], seeds=seeds)
        return [(response.ids, response.finished) for response in found]

    def _read(self, ids: Sequence[int], finished: bool) -> Written:
        """The text; a plain one ends where it begins a further example of its own."""
        text = str(self.subject.tokenizer.decode(list(ids), skip_special_tokens=True))
        if self.subject.template != "chat":
            text, between, _ = text.partition(BETWEEN.rstrip())
            finished = finished or bool(between)
        return Written(text.strip(), finished)


def _examples(asked: Sequence[Asked], texts: Sequence[str]) -> list[Example]:
    """The conversations, each with a text after it."""
    return [
        Example(plain_text(one.turns), text, one.id, messages=one.turns) for one, text in zip(asked, texts, strict=True)
    ]
