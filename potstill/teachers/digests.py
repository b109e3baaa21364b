"""What a row is known by, to whoever keeps something about it: a hash of its token ids."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from potstill.data.examples import Tokenised
from potstill.types import Batch

CPU = torch.device("cpu")


def digests_of(batch: Batch) -> list[bytes]:
    """Of each row of a batch, whatever its padding."""
    here = batch.to(CPU)
    rows = zip(here.prompt_ids, here.prompt_mask, here.response_ids, here.response_mask, strict=True)
    return [digest(prompt[mask].numpy(), response[real].numpy()) for prompt, mask, response, real in rows]


def digest_of(row: Tokenised) -> bytes:
    """Of a row that is in no batch yet."""
    return digest(row.prompt_ids, row.response_ids)


def digest(prompt_ids: Sequence[int] | Any, response_ids: Sequence[int] | Any) -> bytes:
    """16 bytes that no other prompt and response have."""
    told = np.concatenate([[len(prompt_ids)], prompt_ids, response_ids]).astype("<i8")
    return blake2b(told.tobytes(), digest_size=16).digest()
