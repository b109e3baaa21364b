"""A teacher that runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol
from weakref import finalize

import torch
from torch import Tensor

from potstill.models import taps
from potstill.models.families import Family
from potstill.types import Batch, Head, Live, Tap, TeacherSignal


class SignalSource(Protocol):
    """Whoever says what a teacher thinks of a batch."""

    def signal(self, batch: Batch) -> TeacherSignal: ...


class LiveTeacher(Protocol):
    """Whoever tells a teacher's states and head."""

    def signal(self, batch: Batch) -> Live: ...


class LocalTeacher:
    """A frozen model that tells its states and head; nobody asks it for ``[batch, response, vocab]``.

    It may be on another device than those who ask. Ids go there and states come back, to a copy of its head: a state is
    some thousand numbers and the logits made of it a hundred thousand, at every position of every step, and the head
    is moved once.
    """

    def __init__(self, family: Family):
        self.family = family.requires_grad_(False).eval()
        self._heads: dict[torch.device, Head] = {}  # on devices that are not its own

    @torch.no_grad()
    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token, on the batch's device. Constant."""
        return self.live(self.family(batch.to(self.family.model.device)), batch.response_ids.device)

    def live(self, hidden: Tensor, device: torch.device) -> Live:
        """The teacher's states on a device, with its head beside them."""
        return Live(hidden.to(device), self._head_on(device))

    def _head_on(self, device: torch.device) -> Head:
        head = self.family.head
        if head.weight.device == device:
            return head
        if device not in self._heads:
            self._heads[device] = head.to(device)
        return self._heads[device]


class LookedInto:
    """A local teacher that tells what it has inside, too."""

    def __init__(self, teacher: LocalTeacher, places: Sequence[Tap]):
        self.family = teacher.family
        self._teacher = teacher
        self._places = tuple(places)

    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token, and what it has at the places inside. Constant."""
        with taps.tapping(self.family, self._places) as seen:
            said = self._teacher.signal(batch)
        here = {tap: states.to(batch.response_ids.device) for tap, states in seen.items()}
        return replace(said, inside=taps.read(self.family, here, batch))


class Remembering:
    """A teacher that is asked about the same rows again and again: it answers the second time from memory.

    For validation and held-out rows, which every student is measured on. What is kept is the teacher's states, so the
    answer is exact; once they take ``max_bytes`` no more are kept, and the teacher runs as before.
    """

    def __init__(self, teacher: LocalTeacher, max_bytes: int = 2**30):
        self.family = teacher.family
        self._teacher = teacher
        self._kept: dict[tuple[str, ...], Tensor] = {}
        self._free = max_bytes

    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token. Rows are known by their ids."""
        if batch.example_ids in self._kept:
            return self._teacher.live(self._kept[batch.example_ids], batch.response_ids.device)
        said = self._teacher.signal(batch)
        size = said.hidden.numel() * said.hidden.element_size()
        if size <= self._free:
            self._free -= size
            self._kept[batch.example_ids] = said.hidden
        return said


class OncePerBatch:
    """A teacher that reads a batch once, as long as somebody holds on to that batch.

    For rollouts, which are read when tokens are given credit and again at each update; the answer is exact.
    """

    def __init__(self, teacher: LiveTeacher):
        self._teacher = teacher
        self._kept: dict[int, Live] = {}

    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token. A batch is known by its tensor of response ids."""
        key = id(batch.response_ids)
        if key not in self._kept:
            self._kept[key] = self._teacher.signal(batch)
            finalize(batch.response_ids, self._kept.pop, key, None)
        return self._kept[key]

    def has_read(self, batch: Batch) -> bool:
        """Whether it would not read the batch again."""
        return id(batch.response_ids) in self._kept
