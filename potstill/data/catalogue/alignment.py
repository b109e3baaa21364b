"""Outputs without ids beside rows: are they these rows'?

Where outputs are another row's, labels agree no more often than with outputs that were moved on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.data.catalogue.item import Item
from potstill.data.catalogue.llm_outputs import Layout
from potstill.data.examples import Unusable
from potstill.errors import DataError

WINDOW = 100  # rows whose agreement is looked at together
LEAST_ROWS = 50  # fewer say nothing
ROTATIONS = (1, 7, 31)  # how far outputs are moved to see what agreement chance gives
FIX = "use the outputs that were made from this file, in its order"


def check_aligned(rows: Sequence[Item], outputs: Sequence[Any], layout: Layout, where: str) -> None:
    """Refuse outputs that are shifted against their rows or shuffled, from the start or from some row on.

    Looked at for all rows, and for each hundred of them, whose agreement must be nearer to that of all than to chance.

    Args:
        rows, outputs: as many of one as of the other.
        layout: reads an output beside a row.
        where: the outputs are from, for the message.
    Raises: DataError, naming the first outputs.
    """
    if len(rows) < LEAST_ROWS:
        return
    own = _alike(rows, outputs, layout)
    moved = [_alike(rows, [*outputs[by:], *outputs[:by]], layout) for by in ROTATIONS]
    chance = sum(map(sum, moved)) / (len(moved) * len(rows))
    overall = sum(own) / len(own)
    if overall <= chance + 3 * (chance * (1 - chance) / len(own)) ** 0.5:
        raise DataError(
            f"{where}: their labels agree with {overall:.0%} of the rows' own, and outputs of other rows would with "
            f"{chance:.0%}: they are shifted or shuffled",
            FIX,
        )
    last = len(own) - WINDOW
    for start in [*range(0, last, WINDOW), *([last] if last >= 0 else [])]:
        agreement = sum(own[start : start + WINDOW]) / WINDOW
        if agreement < (overall + chance) / 2:
            raise DataError(
                f"{where}: the labels of outputs {start + 1} to {start + WINDOW} agree with {agreement:.0%} of the "
                f"rows' own, {overall:.0%} do of all, and {chance:.0%} would by chance: they are of other rows",
                FIX,
            )


def _alike(rows: Sequence[Item], outputs: Sequence[Any], layout: Layout) -> list[bool]:
    """Whether each output says a label that is like its row's."""
    return [_is_alike(gold, output, layout) for gold, output in zip(rows, outputs, strict=True)]


def _is_alike(gold: Item, output: Any, layout: Layout) -> bool:
    try:
        return layout.alike(layout.said(gold, output).verbatim, gold.references[0])
    except Unusable:
        return False
