"""A teacher that reads what it has said of a row before, and says it only where it has not."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from potstill.teachers.cache.forms import Form
from potstill.teachers.cache.store import Store
from potstill.teachers.digests import digests_of
from potstill.teachers.local import SignalSource
from potstill.types import Batch, Live, TeacherSignal


@dataclass
class Count:
    """What became of the rows that were asked about, on this process. ``seconds``: of asking and writing."""

    read: int = 0
    asked: int = 0
    asked_tokens: int = 0
    seconds: float = 0.0
    others_seconds: float = 0.0  # that the rows took which were there before this run: each once, by each process


class CachedTeacher:
    """A teacher behind a cache: the same signal, whether it is read or said now, for both have gone through its form.

    What a student has written is kept apart, for as long as the run may come to it again.

    Args:
        teacher: who is asked about rows that are not there.
        form: how rows are kept.
        store: where.
        buffer: where those are kept that a student wrote and that come again; they are not kept where None.
    """

    def __init__(self, teacher: SignalSource, form: Form, store: Store, *, buffer: Store | None = None):
        self.store = store
        self.form = form
        self.count = Count()
        self._teacher = teacher
        self._buffer = buffer

    @property
    def keeps_all(self) -> bool:
        """Whether every row that was asked about is kept: the disk has refused none."""
        return self.store.can_write

    @property
    def stores(self) -> tuple[Store, ...]:
        return (self.store,) if self._buffer is None else (self.store, self._buffer)

    def signal(self, batch: Batch) -> TeacherSignal:
        """What the teacher says about each response token, on the batch's device; zeros at padding. Constant."""
        store = {"anywhere": self.store, "in_this_run": self._buffer, "never": None}[batch.again]
        if store is None:
            self.count.asked_tokens += batch.num_tokens
            return self._teacher.signal(batch)
        digests = digests_of(batch)
        rows = {digest: row for digest in set(digests) if (row := store.read(digest)) is not None}
        self.count.read += len(rows)
        self.count.others_seconds += sum(map(store.charge, rows))
        wanted = {digest: at for at, digest in enumerate(digests) if digest not in rows}
        if wanted:
            rows |= self._ask(store, batch, wanted)
        read = self.form.unpack([rows[digest] for digest in digests], batch.response_mask.sum(1).tolist())
        return spread(read, batch.response_mask)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, at the end of a step."""
        return {"stores": [store.state_dict() for store in self.stores], "count": asdict(self.count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for store, then in zip(self.stores, state["stores"], strict=True):
            store.load_state_dict(then)
        self.count = Count(**state["count"])

    def _ask(self, store: Store, batch: Batch, wanted: Mapping[bytes, int]) -> dict[bytes, memoryview]:
        """Ask about some rows of a batch, by their digests, and keep what is said."""
        begun = time.perf_counter()
        part = rows_of(batch, list(wanted.values()))
        signal = self._teacher.signal(part)
        packed = [self.form.pack(signal[row, part.response_mask[row]]) for row in range(len(part))]
        took = time.perf_counter() - begun
        self._write(store, dict(zip(wanted, packed, strict=True)), part.response_mask.sum(1).tolist(), took)
        self.count.asked += len(packed)
        self.count.asked_tokens += part.num_tokens
        self.count.seconds += time.perf_counter() - begun
        return {digest: memoryview(row) for digest, row in zip(wanted, packed, strict=True)}

    def _write(self, store: Store, rows: Mapping[bytes, bytes], positions: Sequence[int], took: float) -> None:
        """Keep some rows, which took so many seconds together; where the disk refuses, say so and go on without."""
        try:
            for (digest, row), count in zip(rows.items(), positions, strict=True):
                store.add(digest, row, positions=count, seconds=took / len(rows))
        except OSError as error:
            told = f"{store.folder} cannot be written: {error.strerror or error}; from here on nothing more is kept"
            print(told, file=sys.stderr, flush=True)


def rows_of(batch: Batch, at: Sequence[int]) -> Batch:
    """Some rows of a batch, without credit."""
    index = torch.tensor(list(at), device=batch.prompt_ids.device)
    chosen: dict[str, Any] = {name: value[index] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **chosen, example_ids=tuple(batch.example_ids[row] for row in at), credit=None)


def spread(said: TeacherSignal, mask: Tensor) -> TeacherSignal:
    """What was said of all response tokens in turn, put where they are in the batch, on its device."""

    def at_tokens(values: Tensor) -> Tensor:
        whole = torch.zeros(*mask.shape, *values.shape[1:], dtype=values.dtype, device=mask.device)
        whole[mask] = _moved(values, mask.device)
        return whole

    if isinstance(said, Live):
        return Live(at_tokens(said.hidden), said.head)
    tensors = {field.name: getattr(said, field.name) for field in fields(said) if field.name != "temperature"}
    changed: dict[str, Any] = {name: at_tokens(values) for name, values in tensors.items()}
    return replace(said, **changed)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """On a GPU through pinned memory, so that nothing waits for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
