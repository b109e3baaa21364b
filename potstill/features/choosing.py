"""From a model and rows to a selection of channels, with what one has to know to trust it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.data.examples import Tokenised
from potstill.environment import versions
from potstill.errors import DataError
from potstill.features.attribution import Attribution, batch_sums, check, random_scores
from potstill.features.selection import Model, Rows, Selection, Spread, Stability, Wanted
from potstill.features.stability import chance_overlap, half_overlaps, overlap, select
from potstill.models import taps
from potstill.models.families import Family
from potstill.sources.dataset import batches
from potstill.types import Batch, Tap

PARTS = 16  # of the sample, scored apart, so that halves can be drawn of them
Numbered: TypeAlias = tuple[int, Batch]  # a batch and the part it is of
Watch: TypeAlias = Callable[[Sequence[Numbered]], Iterable[Numbered]]


def choose(
    family: Family,
    rows: Sequence[Tokenised],
    wanted: Wanted,
    *,
    model: Model,
    source: str,
    batch_size: int = 8,
    pad_id: int = 0,
    watch: Watch = iter,
) -> Selection:
    """Score the channels on rows and select.

    Args:
        rows: of the task; better not those the result is reported on.
        model: what the family is of, for the record. source: of the rows, likewise.
        batch_size: rows at a time. pad_id: any token.
        watch: given the batches, hands them on one by one; for a progress bar.
    Raises: ConfigError, DataError without rows, ModelError, NumericsError, as ``channel_scores``.
    """
    if not rows:
        raise DataError("there is no row to choose channels on", "give rows with responses")
    check(family, wanted.layers, wanted.place, wanted.measure, wanted.steps)
    width = taps.width(family, Tap(wanted.layers[0], wanted.place))
    select(torch.zeros(1, width), wanted.count)  # a count that cannot be had is refused before anything is measured
    tokens = sum(len(row.response_ids) for row in rows)
    if wanted.measure == "random":
        sums = tokens * random_scores(wanted.layers, width, wanted.seed)[None]
    else:
        sums = _sums(family, wanted, wanted.measure, _numbered(rows, batch_size, pad_id), watch)
    scores = sums.sum(0) / tokens
    channels = select(scores, wanted.count)
    return Selection(
        model=model,
        rows=Rows(source=source, sha256=rows_sha256(rows), rows=len(rows), response_tokens=tokens),
        wanted=wanted,
        width=width,
        channels=channels,
        scores=tuple(_spread(one, chosen) for one, chosen in zip(scores, channels, strict=True)),
        stability=_stability(sums, channels, wanted),
        versions=versions(),
    )


def rows_sha256(rows: Sequence[Tokenised]) -> str:
    """A hash of the rows' token ids in their order."""
    ids = [[row.prompt_ids, row.response_ids] for row in rows]
    return sha256(json.dumps(ids).encode()).hexdigest()


def _sums(
    family: Family, wanted: Wanted, measure: Attribution, numbered: Sequence[Numbered], watch: Watch
) -> Float[Tensor, "part layer channel"]:
    """The scores of each part of the sample times its tokens."""
    asked: dict[str, Any] = {"place": wanted.place, "measure": measure, "steps": wanted.steps}
    found: dict[int, Tensor] = {}
    for part, batch in watch(numbered):
        sums = batch_sums(family, batch, wanted.layers, **asked)
        found[part] = found[part] + sums if part in found else sums
    return torch.stack(list(found.values()))


def _numbered(rows: Sequence[Tokenised], batch_size: int, pad_id: int) -> list[Numbered]:
    """Rows are dealt to the parts like cards, so that a file in any order gives parts alike."""
    return [
        (part, batch)
        for part in range(min(PARTS, len(rows)))
        for batch in batches([rows[at] for at in range(part, len(rows), PARTS)], batch_size, pad_id)
    ]


def _spread(scores: Float[Tensor, " channel"], chosen: Sequence[int]) -> Spread:
    total = float(scores.sum())
    return Spread(
        lowest=float(scores.min()),
        median=float(scores.median()),
        highest=float(scores.max()),
        selected_share=float(scores[list(chosen)].sum()) / total if total else 0.0,
    )


def _stability(
    sums: Float[Tensor, "part layer channel"], channels: Sequence[Sequence[int]], wanted: Wanted
) -> Stability | None:
    """Of random channels nothing is to be seen in halves, which have the same: another seed's stand beside them."""
    width, is_random = sums.shape[-1], wanted.measure == "random"
    if is_random:
        others = select(random_scores(wanted.layers, width, wanted.seed + 1), wanted.count)
        found = [[overlap(*both) for both in zip(channels, others, strict=True)]]
    else:
        found = half_overlaps(sums, wanted.count, wanted.seed)
    if not found:
        return None
    by_layer = tuple(sum(of_layer) / len(found) for of_layer in zip(*found, strict=True))
    return Stability(
        between="seeds" if is_random else "halves of the sample",
        comparisons=len(found),
        by_layer=by_layer,
        lowest=min(map(min, found)),
        chance=chance_overlap(wanted.count, width),
    )
