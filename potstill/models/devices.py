"""Devices by name."""

from __future__ import annotations

import torch

from potstill.errors import ConfigError

NAMES = ("auto", "cpu", "cuda", "mps")
ELSE = "use {key}=cpu, or device=auto for what there is"


def device_named(name: str, key: str = "device") -> torch.device:
    """The device of a name; auto is the best there is here. ``key`` is where a recipe has the name.

    Raises: ConfigError where there is none of that name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in NAMES:
        raise ConfigError(f"there is no device {name!r}", f"it is one of {', '.join(NAMES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key} is cuda, and torch sees no CUDA device", ELSE.format(key=key))
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key} is mps, and torch sees none", ELSE.format(key=key))
    return torch.device(name)


def device_beside(name: str | None, run: torch.device) -> torch.device:
    """The device of a model beside those of a run: the run's own where ``name`` is unset or of its kind.

    Args:
        name: cpu, mps, cuda, or a GPU by its number (cuda:1). run: where the others are.
    Raises: ConfigError where there is none of that name.
    """
    if name is None or name == run.type:
        return run
    kind, _, number = name.partition(":")
    device = device_named(kind, key="teacher.device")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(number or 0) >= count:
        raise ConfigError(
            f"torch sees {count} devices of {kind}, and {name} is none of them", f"cuda:{count - 1} is one"
        )
    return torch.device(kind, int(number or 0)) if kind == "cuda" else device
