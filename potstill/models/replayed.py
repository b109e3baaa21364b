"""Steps of decoding whose shapes stay as they are, so that a GPU is told once what to launch, and then only: again.

A token of a small model takes a GPU less time than it takes Python to launch its kernels. A CUDA graph launches them
all at once, and wants the same shapes and the same memory each time: all slots, whether a sequence is in them or not,
and keys and values up to a multiple of ``COLUMNS``, of which a mask hides what is behind a sequence's end.

Not measured: it was written where there is no GPU. Tests replay what a tracer has recorded; no CUDA graph has been run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

COLUMNS = 128  # of keys and values: a width is recorded for as many tokens, and takes as long as a few of them
WARM_UP = 2  # calls before recording, in which libraries make what they make once

Step: TypeAlias = Callable[[Int[Tensor, " slots"], Int[Tensor, " slots"]], Float[Tensor, "slots vocab"]]
# Makes of a function and what it is always called with, one that does the same to the same memory, faster.
Record: TypeAlias = Callable[[Step, Int[Tensor, " slots"], Int[Tensor, " slots"]], Callable[[], Tensor]]


class Forward(Protocol):
    """The logits after tokens at columns, of which each sequence reads its first ``column + 1``."""

    def __call__(
        self, tokens: Int[Tensor, " slots"], at: Int[Tensor, " slots"], width: int
    ) -> Float[Tensor, "slots vocab"]: ...


class Replayed:
    """A token for each sequence, by functions that are recorded when a width is first met.

    Args:
        forward: of the first ``width`` columns. At a slot without a sequence it is given column 0, where a prompt will
            begin that is written over whatever is there.
        slots, capacity: sequences, and tokens of each, at most.
        record: what records.
    """

    def __init__(self, forward: Forward, slots: int, capacity: int, device: torch.device, record: Record):
        self._forward, self._record, self._capacity = forward, record, capacity
        self._tokens = torch.zeros(slots, dtype=torch.long, device=device)
        self._columns = torch.zeros(slots, dtype=torch.long, device=device)
        self._recorded: dict[int, Callable[[], Tensor]] = {}

    def __call__(self, tokens: Int[Tensor, " active"], lengths: Sequence[int]) -> Float[Tensor, "active vocab"]:
        """The logits of the next token of each sequence; they are the caller's until the next call.

        Args:
            tokens: the last one of each sequence, which stand in the first slots. lengths: without it.
        """
        count = len(lengths)
        self._tokens[:count] = tokens
        self._columns.zero_()
        self._columns[:count] = torch.tensor(lengths, device=self._columns.device)
        width = min(-(-(max(lengths) + 1) // COLUMNS) * COLUMNS, self._capacity)
        if width not in self._recorded:
            step = partial(self._forward, width=width)
            self._recorded[width] = self._record(step, self._tokens, self._columns)
        return self._recorded[width]()[:count]


def on_gpu(step: Step, tokens: Int[Tensor, " slots"], columns: Int[Tensor, " slots"]) -> Callable[[], Tensor]:
    """A CUDA graph; the function as it is where it does what a graph cannot, as a mixture of experts does."""
    here = torch.cuda.current_stream()
    try:
        beside = torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                step(tokens, columns)
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = step(tokens, columns)
    except RuntimeError:
        torch.cuda.set_stream(here)  # a capture that fails leaves its own behind
        return partial(step, tokens, columns)

    def again() -> Tensor:
        graph.replay()
        return output

    return again


def recorder_for(model: Any) -> Record | None:
    """What records a model's steps; None where nothing is gained, or weights come from elsewhere at each step."""
    devices = {parameter.device for parameter in model.parameters()}
    return on_gpu if len(devices) == 1 and devices.pop().type == "cuda" else None
