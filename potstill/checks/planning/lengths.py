"""How long the rows of coming steps are: what a step's work goes by, known before any is taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from potstill.data.examples import Tokenised
from potstill.sources.dataset import DatasetSource
from potstill.streams import Parts
from potstill.training.dropping import dropped
from potstill.training.step import LiveStream, share_of


@dataclass(frozen=True)
class Lengths:
    """Of the rows of one step. ``positions`` are what models are fed, padding included: by stream, of a causal model
    in one number, of an encoder-decoder model in two."""

    positions: tuple[float, ...]
    response_tokens: int

    @property
    def all_positions(self) -> float:
        return sum(self.positions)


def fed(rows: Sequence[Tokenised], size: int, *, joined: bool) -> tuple[float, ...]:
    """Positions of some rows, ``size`` at a time: of each batch, its rows times the longest of them.

    Args:
        joined: prompt and response are one sequence, as a causal model is fed.
    """
    cut = [rows[start : start + size] for start in range(0, len(rows), size)]
    if joined:
        return (float(sum(len(part) * max(len(r.prompt_ids) + len(r.response_ids) for r in part) for part in cut)),)
    prompts = sum(len(part) * max(len(row.prompt_ids) for row in part) for part in cut)
    return float(prompts), float(sum(len(part) * max(len(row.response_ids) for row in part) for part in cut))


def of_steps(streams: Sequence[LiveStream], parts: Parts, steps: Iterable[int]) -> list[Lengths]:
    """Of the steps with these numbers, where all streams draw rows that are there; sources stay where they are."""
    sources = [stream.source for stream in streams]
    assert all(isinstance(source, DatasetSource) for source in sources)
    before = [source.position for source in sources]  # type: ignore[attr-defined]
    found = [_of_step(streams, parts, step) for step in steps]
    for source, position in zip(sources, before, strict=True):
        source.position = position  # type: ignore[attr-defined]
    return found


def _of_step(streams: Sequence[LiveStream], parts: Parts, step: int) -> Lengths:
    positions: tuple[float, ...] = ()
    tokens, out = 0, dropped([stream.spec for stream in streams], parts.seed, step)
    move_to(streams, step, parts.stage.batch.size)
    for stream in streams:
        batches = stream.source.next(share_of(stream, parts.stage.batch, parts.runtime), 0.0)
        alone = [float(sum(of)) for of in zip(*map(parts.student.num_positions, batches), strict=True)]
        positions += tuple(0.0 for _ in alone) if stream.spec.name in out else tuple(alone)
        tokens += 0 if stream.spec.name in out else sum(batch.num_response_tokens for batch in batches)
    return Lengths(positions, tokens)


def move_to(streams: Sequence[LiveStream], step: int, batch_size: int) -> None:
    """Let what is drawn next be what a run draws at a step."""
    for stream in streams:
        if isinstance(stream.source, DatasetSource):
            stream.source.position = step * batch_size
