"""What is kept of a row: what a teacher says about each response token, as bytes, and back.

A form packs the signal of one row, ``[pos]``, and unpacks those of several rows at once. Each position takes:

    states   2 or 4 bytes x hidden: exact full logits, once the head is applied
    logits   4 bytes x vocabulary: for tests
    top_k    k ids and log-probabilities of two bytes each and the tail's: 2 bytes more than 4 k below 65,537 tokens
    draws    a byte, and for each distinct token its id and count in as few bits as vocabulary and draws need

Log-probabilities are kept in steps of 1/2047 nat down to -32, so that each is within 0.00025 of what it was; float16,
of the same size, would be 0.004 off at -10. They are brought to add up to 1 again when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.types import Dense, Head, Live, Sampled, TeacherSignal, TopK

STEPS_PER_NAT = 2047
NOTHING = 2**16 - 1  # the code of probability 0
EXPECTED_DISTINCT = 0.25  # of draws from a trained model: 12.55 of 50, measured
# What numpy, which has no bfloat16, takes the same bytes for.
BYTES_OF = {torch.bfloat16: torch.int16, torch.float32: torch.float32, torch.float64: torch.float64}


class Form(Protocol):
    """How a row's signal is kept."""

    @property
    def name(self) -> str:
        """What it is called."""

    def pack(self, signal: TeacherSignal) -> bytes:
        """What is kept of one row, ``[pos]``."""

    def unpack(self, rows: Sequence[memoryview], positions: Sequence[int]) -> TeacherSignal:
        """What was kept of some rows, one after the other: ``[pos]``, on the CPU. ``positions`` are those of each."""

    @property
    def settings(self) -> dict[str, Any]:
        """What of the form makes other bytes, for the key."""

    @property
    def bytes_per_token(self) -> float:
        """What a response token takes; of draws, what it takes with a trained model."""


@dataclass(frozen=True)
class StatesForm:
    """The states that enter the teacher's head, kept in ``dtype`` and given in ``read_as``."""

    head: Head
    dtype: torch.dtype
    read_as: torch.dtype
    name: str = "states"

    def pack(self, signal: TeacherSignal) -> bytes:
        assert isinstance(signal, Live)
        return signal.hidden.to("cpu", self.dtype).contiguous().view(BYTES_OF[self.dtype]).numpy().tobytes()

    def unpack(self, rows: Sequence[memoryview], positions: Sequence[int]) -> Live:
        kept = torch.frombuffer(bytearray(b"".join(rows)), dtype=self.dtype) if any(positions) else torch.empty(0)
        return Live(kept.view(-1, self._hidden).to(self.read_as), self.head)

    @property
    def settings(self) -> dict[str, Any]:
        return {"states": str(self.dtype).removeprefix("torch."), "hidden": self._hidden}

    @property
    def bytes_per_token(self) -> float:
        return self._hidden * self.dtype.itemsize

    @property
    def _hidden(self) -> int:
        return self.head.weight.shape[1]


@dataclass(frozen=True)
class LogitsForm:
    """All logits, as the teacher's head gives them."""

    vocab_size: int
    dtype: torch.dtype
    name: str = "logits"

    def pack(self, signal: TeacherSignal) -> bytes:
        assert isinstance(signal, Live)
        logits = signal.head(signal.hidden).to("cpu", self.dtype).contiguous()
        return logits.view(BYTES_OF[self.dtype]).numpy().tobytes()

    def unpack(self, rows: Sequence[memoryview], positions: Sequence[int]) -> Dense:
        kept = torch.frombuffer(bytearray(b"".join(rows)), dtype=self.dtype) if any(positions) else torch.empty(0)
        return Dense(kept.view(-1, self.vocab_size))

    @property
    def settings(self) -> dict[str, Any]:
        return {"logits": str(self.dtype).removeprefix("torch.")}

    @property
    def bytes_per_token(self) -> float:
        return self.vocab_size * self.dtype.itemsize


@dataclass(frozen=True)
class TopKForm:
    """The k most likely tokens and the mass of the rest, in records of one size."""

    k: int
    temperature: float
    vocab_size: int
    read_as: torch.dtype = torch.float32
    name: str = "top_k"

    @cached_property
    def record(self) -> np.dtype[Any]:
        """A position. Bits of an id beyond 16 stand apart."""
        fields = [("ids", "<u2", self.k), ("log_probs", "<u2", self.k), ("tail", "<u2")]
        high = (self.k * self._high_bits + 7) // 8
        return np.dtype([*fields, ("high", "u1", high)] if high else fields)

    @property
    def _high_bits(self) -> int:
        return max(0, bits_for(self.vocab_size) - 16)

    def pack(self, signal: TeacherSignal) -> bytes:
        assert isinstance(signal, TopK)
        ids = signal.ids.cpu().numpy()
        records = np.zeros(len(ids), self.record)
        records["ids"] = ids & 0xFFFF
        records["log_probs"], records["tail"] = coded(signal.log_probs), coded(signal.log_tail_mass)
        if self._high_bits:
            records["high"] = np.packbits(
                _bits(ids >> 16, self._high_bits).reshape(len(ids), self.k * self._high_bits), axis=1
            )
        return records.tobytes()

    def unpack(self, rows: Sequence[memoryview], positions: Sequence[int]) -> TopK:
        records = np.frombuffer(b"".join(rows), self.record)
        ids = records["ids"].astype(np.int64)
        if self._high_bits:
            bits = np.unpackbits(records["high"], axis=1, count=self.k * self._high_bits)
            ids |= _numbers(bits.reshape(len(records), self.k, self._high_bits)) << 16
        log_probs = torch.from_numpy(decoded(records["log_probs"])).to(self.read_as)
        tail = torch.from_numpy(decoded(records["tail"])).to(self.read_as)
        # Rounded one by one, they no longer add up to 1; nothing else is brought to do so.
        total = torch.cat([log_probs, tail[:, None]], -1).logsumexp(-1)
        return TopK(torch.from_numpy(ids), log_probs - total[:, None], tail - total, self.temperature)

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "temperature": self.temperature}

    @property
    def bytes_per_token(self) -> float:
        return self.record.itemsize


@dataclass(frozen=True)
class DrawsForm:
    """Draws, as each distinct token's id and count. ``seed`` is that of the draws: another one, other rows."""

    draws: int
    temperature: float
    vocab_size: int
    seed: int
    read_as: torch.dtype = torch.float32
    name: str = "sampled"

    @property
    def _id_bits(self) -> int:
        return max(16, bits_for(self.vocab_size))

    @property
    def _count_bits(self) -> int:
        return self.draws.bit_length()

    @property
    def _length(self) -> np.dtype[Any]:
        """Of the number of distinct tokens at a position."""
        return np.dtype("u1" if self.draws < 2**8 else "<u2" if self.draws < 2**16 else "<u4")

    def pack(self, signal: TeacherSignal) -> bytes:
        assert isinstance(signal, Sampled)
        counts = (signal.weights.cpu().double() * self.draws).round().long().numpy()
        drawn = counts > 0
        codes = signal.ids.cpu().numpy()[drawn] << self._count_bits | counts[drawn]
        return drawn.sum(1).astype(self._length).tobytes() + np.packbits(_bits(codes, self._code_bits)).tobytes()

    def unpack(self, rows: Sequence[memoryview], positions: Sequence[int]) -> Sampled:
        lengths, codes = [], []
        for row, count in zip(rows, positions, strict=True):
            lengths.append(np.frombuffer(row, self._length, count).astype(np.int64))
            packed = np.frombuffer(row, "u1", offset=count * self._length.itemsize)
            num_bits = int(lengths[-1].sum()) * self._code_bits
            codes.append(_numbers(np.unpackbits(packed, count=num_bits).reshape(-1, self._code_bits)))
        distinct = np.concatenate(lengths)
        real = np.arange(distinct.max(initial=1)) < distinct[:, None]
        ids, counts = np.zeros(real.shape, np.int64), np.zeros(real.shape, np.int64)
        together = np.concatenate(codes)
        ids[real], counts[real] = together >> self._count_bits, together & (2**self._count_bits - 1)
        weights = torch.from_numpy(counts).to(self.read_as) / self.draws
        return Sampled(torch.from_numpy(ids), weights, self.temperature)

    @property
    def _code_bits(self) -> int:
        return self._id_bits + self._count_bits

    @property
    def settings(self) -> dict[str, Any]:
        return {"draws": self.draws, "temperature": self.temperature, "seed": self.seed}

    @property
    def bytes_per_token(self) -> float:
        return self._length.itemsize + max(1.0, self.draws * EXPECTED_DISTINCT) * self._code_bits / 8


def bits_for(vocab_size: int) -> int:
    """Bits that hold every id of a vocabulary."""
    return max(1, (vocab_size - 1).bit_length())


def coded(log_probs: Tensor) -> NDArray[np.uint16]:
    """Log-probabilities as numbers of two bytes. What is less likely than exp(-32) is as likely as that, and not 0: a
    divergence would be infinite."""
    steps = (-log_probs.cpu().double() * STEPS_PER_NAT).round().clamp(0, NOTHING - 1)
    return np.where(log_probs.cpu().isneginf(), NOTHING, steps).astype(np.uint16)


def decoded(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Log-probabilities, each within half a step of what it was."""
    return np.where(codes == NOTHING, -np.inf, codes / np.float32(-STEPS_PER_NAT)).astype(np.float32)


def _bits(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """The lowest bits of each number, the highest of them first: one more axis."""
    return ((numbers[..., None] >> np.arange(width - 1, -1, -1)) & 1).astype(np.uint8)


def _numbers(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What ``_bits`` was given."""
    return bits.astype(np.int64) @ (1 << np.arange(bits.shape[-1] - 1, -1, -1))
