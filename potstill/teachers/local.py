"""A teacher that runs in this process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
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

    Args:
        family: the model.
        load: loads it again, where it may be let go between two questions.
    """

    def __init__(self, family: Family, load: Callable[[], Family] | None = None):
        self._family: Family | None = family.requires_grad_(False).eval()
        self._load = load
        self._heads: dict[torch.device, Head] = {}  # on devices that are not its own, and of a model that is let go
        self._shared: Head | None = None

    @property
    def family(self) -> Family:
        """The model; loaded again where it was let go."""
        if self._family is None:
            assert self._load is not None  # nothing else lets it go
            self._family = self._load().requires_grad_(False).eval()
            self._heads.clear()
        return self._family

    @property
    def is_loaded(self) -> bool:
        return self._family is not None

    def runs(self, family: Family) -> bool:
        """Whether this is its own model."""
        return self._family is family

    def share_head(self, head: Head) -> bool:
        """Tell this head in place of its own, where it is the same to the last bit and nobody trains it: whether it is.

        A student that was cut from its teacher, and whose embeddings are frozen, has such a one. The model can then be
        let go with all of its weights.
        """
        own = self.head_on(head.weight.device)
        trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
        same = not trained and head.transform is None and own.transform is None and head.vocab_size == own.vocab_size
        if same and _equal(head.weight, own.weight) and _equal(head.bias, own.bias):
            self._shared = head
            self._heads.clear()
        return self._shared is head

    def unload(self) -> bool:
        """Let the model go, but for its head, where that is its alone; whether it did. It is loaded again when it is
        asked something."""
        if self._load is None or self._family is None:
            return False
        head = self._family.head
        if self._shared is None or self._shared.weight.device != head.weight.device:
            self._heads[head.weight.device] = head
        self._family = None
        gc.collect()  # modules and their hooks point at each other
        return True

    @torch.no_grad()
    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token, on the batch's device. Constant."""
        return self.live(self.family(batch.to(self.family.model.device)), batch.response_ids.device)

    def live(self, hidden: Tensor, device: torch.device) -> Live:
        """The teacher's states on a device, with its head beside them."""
        return Live(hidden.to(device), self.head_on(device))

    def head_on(self, device: torch.device) -> Head:
        """Its head on a device, or the one that it shares."""
        if self._shared is not None and self._shared.weight.device == device:
            return self._shared
        if device not in self._heads:
            head = self.family.head
            if head.weight.device == device:
                return head
            self._heads[device] = head.to(device)
        return self._heads[device]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    """To the last bit, and of one type."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


class LookedInto:
    """A local teacher that tells what it has inside, too."""

    def __init__(self, teacher: LocalTeacher, places: Sequence[Tap]):
        self._teacher = teacher
        self._places = tuple(places)

    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token, and what it has at the places inside. Constant."""
        family = self._teacher.family
        with taps.tapping(family, self._places) as seen:
            said = self._teacher.signal(batch)
        here = {tap: states.to(batch.response_ids.device) for tap, states in seen.items()}
        return replace(said, inside=taps.read(family, here, batch))


class Remembering:
    """A teacher that is asked about the same rows again and again: it answers the second time from memory.

    For validation and held-out rows, which every student is measured on. What is kept is the teacher's states, so the
    answer is exact; once they take ``max_bytes`` no more are kept, and the teacher runs as before. ``num_asked`` counts
    the times it had to be asked.
    """

    def __init__(self, teacher: LocalTeacher, max_bytes: int = 2**30):
        self.num_asked = 0
        self._teacher = teacher
        self._kept: dict[tuple[str, ...], Tensor] = {}
        self._free = max_bytes

    @property
    def family(self) -> Family:
        """The teacher's model."""
        return self._teacher.family

    def runs(self, family: Family) -> bool:
        """Whether this is the teacher's own model."""
        return self._teacher.runs(family)

    def signal(self, batch: Batch) -> Live:
        """What the teacher says about each response token. Rows are known by their ids."""
        if batch.example_ids in self._kept:
            return self._teacher.live(self._kept[batch.example_ids], batch.response_ids.device)
        self.num_asked += 1
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
