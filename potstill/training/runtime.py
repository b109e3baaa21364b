"""Where a run computes: device, precision and the processes it is spread over. torch.distributed does the work."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from potstill import recipe
from potstill.models.devices import device_named
from potstill.models.loading import DTYPES

BF16_MUST_GAIN = 1.2  # a smaller gain is not worth the lost digits


@dataclass(frozen=True)
class Runtime:
    """One process's place among all of them.

    ``dtype`` is what models compute in. With bfloat16 the student's weights stay in float32 and only its arithmetic is
    bfloat16; teachers, which are never updated, are held in bfloat16 outright.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def student_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == torch.bfloat16 else self.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        wanted = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if wanted else nullcontext()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes, where there are several."""
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last micro-batch only."""
        return nullcontext() if last or self.world_size == 1 else module.no_sync()  # type: ignore[operator]

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of parameters that are behind no wrapper; one without a gradient has 0."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.world_size > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device if self.device.type == "cuda" else "cpu")
        dist.all_reduce(total)
        return total.tolist()

    def share(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def micro_size_of(batching: recipe.Batching, world_size: int) -> int:
    """Rows of a micro-batch."""
    return min(batching.size // world_size, 8) if batching.micro_size == "auto" else batching.micro_size


def start(device: str = "auto", dtype: str = "auto") -> Runtime:
    """Join the other processes where torchrun started several, and settle device and precision.

    Raises: ConfigError for a device that is not there.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    single = Runtime(chosen, torch.float32, dist.get_rank() if world_size > 1 else 0, world_size)
    name = single.share(faster_dtype(chosen) if dtype == "auto" else dtype)
    return Runtime(chosen, DTYPES[name], single.rank, world_size)


def is_main() -> bool:
    """Is this the process that writes? The only one is."""
    return os.environ.get("RANK", "0") == "0"


def stop() -> None:
    """Leave the process group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    """This process's own device of that name."""
    device = device_named(name)
    if device.type != "cuda":
        return device
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def faster_dtype(device: torch.device) -> str:
    """float32, or bfloat16 where this device multiplies matrices that much faster in it: measured, in half a second."""
    if device.type == "mps":
        return "float32"
    gain = _matmul_seconds(torch.float32, device) / _matmul_seconds(torch.bfloat16, device)
    return "bfloat16" if gain >= BF16_MUST_GAIN else "float32"


def _matmul_seconds(dtype: torch.dtype, device: torch.device, size: int = 384, repeats: int = 5) -> float:
    """The best of a few timed products, so that a passing load does not decide."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        (left @ right).sum().item()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
