"""A teacher that runs in this process."""

from __future__ import annotations

import torch

from potstill.models.families import Causal
from potstill.types import Batch, Live


class LocalTeacher:
    """A frozen model that tells its states and head; nobody asks it for ``[batch, response, vocab]``."""

    def __init__(self, family: Causal):
        self.family = family.requires_grad_(False).eval()

    @torch.no_grad()
    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token. Constant."""
        return Live(self.family(batch), self.family.head)
