"""Streams that sit a step out: which, as a pure function of the step, so that every process and restart agrees.

Source: Son et al. 2021, Densely guided knowledge distillation using multiple teacher assistants, arXiv:2009.08825,
whose students drop teachers at random.
"""

from __future__ import annotations

from collections.abc import Sequence

from potstill.data.order import seed_of
from potstill.recipe import Stream
from potstill.sources.mixture import chance_of


def dropped(streams: Sequence[Stream], seed: int, step: int) -> frozenset[str]:
    """The streams that take no part in a step, each with its probability ``drop`` and by a draw of its own.

    Where that would be all of them one is kept: the one whose draw was nearest to being kept, of those that may be
    dropped each with the same chance.

    Args:
        streams: the stage's. seed: the recipe's. step: optimiser steps before this one.
    Returns: names, never all of them.
    """
    chances = {stream.name: chance_of(seed_of(seed, "drop", stream.name), step) for stream in streams if stream.drop}
    out = {stream.name: chances[stream.name] / stream.drop for stream in streams if stream.drop}
    out = {name: share for name, share in out.items() if share < 1}
    if len(out) == len(streams):
        del out[max(out, key=out.__getitem__)]
    return frozenset(out)
