"""From examples to a batch of rectangles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from potstill.data.examples import Tokenised
from potstill.types import Batch


def collate(examples: Sequence[Tokenised], pad_id: int) -> Batch:
    """One batch: prompts padded on the left, responses on the right, to the longest of each.

    Args:
        pad_id: any id; the masks come from lengths, so it may be one that also stands in the text.
    Raises: ValueError for no examples.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    prompt_ids, prompt_mask = _left([e.prompt_ids for e in examples], pad_id)
    response_ids, response_mask = _right([e.response_ids for e in examples], pad_id)
    return Batch(prompt_ids, prompt_mask, response_ids, response_mask, tuple(e.example_id for e in examples))


def _right(
    rows: Sequence[tuple[int, ...]], pad_id: int
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], dtype=torch.long)
    return ids, torch.arange(width) < lengths[:, None]


def _left(
    rows: Sequence[tuple[int, ...]], pad_id: int
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    ids, mask = _right([row[::-1] for row in rows], pad_id)
    return ids.flip(1), mask.flip(1)
