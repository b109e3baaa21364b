"""Devices by name."""

from __future__ import annotations

import torch

from potstill.errors import ConfigError

NAMES = ("auto", "cpu", "cuda", "mps")
ELSE = "use device=cpu, or device=auto"


def device_named(name: str) -> torch.device:
    """The device of a name; auto is the best there is here. Raises: ConfigError where there is none of that name."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in NAMES:
        raise ConfigError(f"there is no device {name!r}", f"it is one of {', '.join(NAMES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, and torch sees no CUDA device", ELSE)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is mps, and torch sees none", ELSE)
    return torch.device(name)
