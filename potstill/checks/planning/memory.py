"""Memory by what takes it, in bytes: counted where it can be, and measured as a peak of this process or of a GPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import finalize

import psutil
import torch
from torch import Tensor

from potstill.environment import peak_memory_bytes
from potstill.models.families import Family
from potstill.models.held import bytes_held
from potstill.objectives.chunked import TEACHER_CHUNK, positions_in_a_product

GIVEN_BACK = 2**25  # bytes from which on a freed tensor is given back to the system: glibc's largest threshold
CLEAR = Path("/proc/self/clear_refs")
HIGHEST = "5"  # what makes Linux forget the peak: proc(5)


class Peaks:
    """The most that was in use in each phase: of the GPU where models are on one, else of this process."""

    def __init__(self, device: torch.device):
        self._device = device
        self.bytes: dict[str, int] = {}
        self.exact = device.type == "cuda" or _can_forget()

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Note the peak of what happens inside."""
        self._forget()
        try:
            yield
        finally:
            self.bytes[phase] = max(self.bytes.get(phase, 0), self.so_far())

    def now(self) -> int:
        """In use at this moment."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return int(psutil.Process().memory_info().rss)

    def _forget(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self.exact:
            CLEAR.write_text(HIGHEST)

    def so_far(self) -> int:
        """The peak of the phase that is on."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return peak_memory_bytes() if self.exact else self.now()


def _can_forget() -> bool:
    try:
        CLEAR.write_text(HIGHEST)
    except OSError:
        return False
    return sys.platform == "linux"


class Kept:
    """Bytes that forwards keep for their gradients, at the most; storages that several tensors share count once."""

    def __init__(self, parameters: Iterable[Tensor]):
        self._weights = {p.untyped_storage().data_ptr() for p in parameters}
        self._holders: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        self._now = 0
        self.most = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
            yield

    def _pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._weights:
            return tensor
        if self._holders[key] == 0:
            self._sizes[key] = storage.nbytes()
            self._now += self._sizes[key]
            self.most = max(self.most, self._now)
        self._holders[key] += 1
        held = _Held(tensor)
        finalize(held, self._let_go, key)
        return held

    def _let_go(self, key: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            self._now -= self._sizes.pop(key)


class _Held:
    """A tensor that is kept, as something that tells when it is not any more."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _unpack(held: Any) -> Tensor:
    return held.tensor if isinstance(held, _Held) else held


def weights(student: Family, teachers: Iterable[Family]) -> dict[str, int]:
    """Of all models as they are held; what a teacher has from its student, or from another teacher, counts once."""
    seen = _storages(student)
    found = {"student": bytes_held(student.model)}
    for teacher in {id(family.model): family for family in teachers}.values():
        own = _storages(teacher)
        shared = sum(own[key] for key in own.keys() & seen.keys())
        found["teacher"] = found.get("teacher", 0) + bytes_held(teacher.model) - shared
        seen |= own
    return found


def _storages(family: Family) -> dict[int, int]:
    return {p.data_ptr(): p.nbytes for p in [*family.model.parameters(), *family.model.buffers()]}


def gradients(parameters: Iterable[Tensor]) -> int:
    return sum(p.nbytes for p in parameters if p.requires_grad)


def optimizer_state(optimizer: torch.optim.Optimizer, *, at_least: int = 0) -> int:
    """Of an optimizer that has taken a step, in tensors of so many bytes or more."""
    kept = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in kept if isinstance(value, Tensor) and value.nbytes >= at_least)


def loss_head(student: Family, *, with_teacher: bool, positions: int, computed_in: torch.dtype) -> int:
    """Logits of a chunk, of both models; and of a head that is trained its gradient, until that is the parameter's.

    Args:
        positions: of a micro-batch that are in the loss. computed_in: the precision of matrix products.
    """
    head = student.head
    states = torch.empty(0, head.weight.shape[1], device=head.weight.device)
    chunk = min(positions, positions_in_a_product(states))
    told = min(chunk, TEACHER_CHUNK if states.device.type == "cpu" else chunk) if with_teacher else 0
    own = head.weight.nbytes if head.weight.requires_grad else 0
    return own + (chunk + told) * head.vocab_size * computed_in.itemsize
