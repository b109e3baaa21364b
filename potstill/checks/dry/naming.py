"""Which stage a failure is of, in the words of the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from potstill.errors import PotstillError, Stopped


@contextmanager
def of_stage(name: str, called: Mapping[str, str] = {}) -> Iterator[None]:
    """Let a failure name its stage.

    Args:
        called: what the recipe calls each folder that stands in for something.
    """
    try:
        yield
    except Stopped:
        raise
    except PotstillError as error:
        for folder, own in sorted(called.items(), reverse=True):  # model-10 before model-1
            error.cause = error.cause.replace(folder, own)
            error.fix = error.fix and error.fix.replace(folder, own)
        error.cause = f"stage {name}: {error.cause}"
        raise
