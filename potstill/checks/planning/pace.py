"""How fast models read and write: measured on one batch, and summed over all that a run measures them on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill import recipe as schema
from potstill.bench import Bench
from potstill.checks.planning.lengths import fed
from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.evaluation.evaluator import examine
from potstill.evaluation.exposure import draw_samples, plain
from potstill.models.families import Family, evaluating
from potstill.models.layout import is_encoder_decoder
from potstill.sampling.generate import generate

FEW, MORE = 3, 15  # tokens that are written to each prompt, to tell what begins from what goes on
SLOTS = 8  # responses that the panel has written at a time


@dataclass(frozen=True)
class Writing:
    """Seconds until there is a first token, and of each token after it, of several responses at once."""

    first: float
    token: float

    def seconds(self, num_tokens: int) -> float:
        return self.first + self.token * num_tokens


@dataclass(frozen=True)
class Pace:
    """Of one model: seconds to measure a position of text, and its writing by how many answers are written at once."""

    position: float
    answers: Mapping[int, Writing] = field(default_factory=dict)
    samples: Writing | None = None

    def reading(self, rows: Sequence[Tokenised], size: int, *, joined: bool) -> float:
        """Seconds to measure rows, ``size`` at a time."""
        return self.position * sum(fed(rows, size, joined=joined))

    def answering(self, count: int, settings: schema.Evaluation) -> float:
        """Seconds to answer so many prompts, each with as many tokens as there may be."""
        sizes = batch_sizes(count, settings.batch_size)
        return sum(times * self.answers[size].seconds(settings.max_new_tokens) for size, times in sizes.items())


def batch_sizes(count: int, size: int) -> Counter[int]:
    """How many batches there are of each size."""
    sizes = Counter({size: count // size} if count >= size else {})
    return sizes + Counter({count % size: 1} if count % size else {})


def joined(family: Family) -> bool:
    """Whether prompt and response are one sequence to a model."""
    return not is_encoder_decoder(family.model.config)


def pace_of(bench: Bench, family: Family, sizes: Iterable[int], *, samples: bool) -> Pace:
    """Measure a model on the first held-out rows.

    Args:
        sizes: of batches that it answers, each of which is tried.
        samples: whether it will be measured on its own samples, too.
    """
    settings, rows = bench.recipe.stage.evaluation, bench.data.heldout
    tried = rows[: min(settings.batch_size, settings.max_examples)]
    with bench.runtime.autocast():
        examine(family, bench.examiner, [_batch(bench, tried[:1])])  # what is made when it is first needed is made now
        seconds = _timed(lambda: examine(family, bench.examiner, [_batch(bench, tried)]))
        position = seconds / sum(fed(tried, len(tried), joined=joined(family)))
        answers = {size: _answers(bench, family, rows[:size]) for size in sizes}
        drawn = _samples(bench, family, rows[: min(SLOTS, settings.generate_examples)]) if samples else None
    return Pace(position, answers, drawn)


def _answers(bench: Bench, family: Family, rows: Sequence[Tokenised]) -> Writing:
    settings, batch = bench.recipe.stage.evaluation, _batch(bench, rows).to(family.model.device)
    asked: dict[str, Any] = {"num_beams": settings.num_beams, "repetition_penalty": settings.repetition_penalty}

    def write(count: int) -> int:
        with evaluating(family):
            said = generate(
                family, batch, bench.tokenizer, max_new_tokens=count, temperature=0.0, seed=bench.recipe.seed, **asked
            )
        return min(count, 1 + max(len(ids) for ids in said))  # the end is written as well

    return _writing(write, settings.max_new_tokens)


def _samples(bench: Bench, family: Family, rows: Sequence[Tokenised]) -> Writing:
    end = bench.tokenizer.eos_token_id

    def write(count: int) -> int:
        drawn = draw_samples(family, [row.prompt_ids for row in rows], plain(count, end), seed=bench.recipe.seed)
        return max(len(ids) for ids in drawn.responses)

    return _writing(write, bench.recipe.stage.evaluation.max_new_tokens)


def _writing(write: Callable[[int], int], most: int) -> Writing:
    """What writing costs, from two lengths; ``write`` returns how many tokens the longest response has."""
    if most <= FEW:
        write(most)
        return Writing(_timed(lambda: write(most)), 0.0)
    write(1)
    begun = time.perf_counter()
    short = write(FEW)
    between = time.perf_counter()
    long = write(min(MORE, most))
    ended = time.perf_counter()
    if long <= short:  # all responses ended
        return Writing(0.0, (ended - between) / long)
    token = max(0.0, (ended - 2 * between + begun) / (long - short))
    return Writing(max(0.0, between - begun - short * token), token)


def _batch(bench: Bench, rows: Sequence[Tokenised]) -> Any:
    return collate(rows, bench.tokenizer.eos_token_id)


def _timed(what: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun
