"""What a run ran on: versions, device, processor, threads. Nothing of the user's: no names, no variables, no tokens."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
PACKAGES = ("potstill", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


def environment(device: str, dtype: str) -> dict[str, Any]:
    """Facts that a figure may depend on."""
    import torch

    return {
        **versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            names = (line.split(":", 1)[1].strip() for line in handle if line.startswith("model name"))
            return next(names, platform.processor())
    except OSError:
        return platform.processor()


def peak_memory_bytes() -> int:
    """The most memory that this process has had.

    Linux counts in ``ru_maxrss`` what a larger process had that has started this one, and in VmHWM it does not.
    """
    if STATUS.exists():
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
