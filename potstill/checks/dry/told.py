"""What a dry run found, for reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potstill.checks.dry_run import Tried

GIB = 2**30
PARTS = ("teacher", "student", "gradients", "optimizer")


def told(tried: Sequence[Tried]) -> str:
    """The stages in order, then a table of the memory that each takes at full size, in GiB."""
    seconds = sum(stage.seconds for stage in tried)
    lines = [line for stage in tried for line in _stage(stage)]
    last = f"{len(tried)} stage{'s' * (len(tried) != 1)} tried in {seconds:.0f} s; nothing is kept"
    return "\n".join([*lines, *_memory(tried), "", last])


def _stage(tried: Tried) -> Iterator[str]:
    yield f"stage {tried.stage} ({tried.method})"
    for model in tried.models:
        layers = " and ".join(f"{count} {stack}" for stack, count in model.layers.items())
        yield f"  {model.role:9} {model.name}: {model.parameters:,} parameters, {layers} layers"
    for what, by in tried.stood_in:
        yield f"  stood in  {what}: {by}"
    terms = ", ".join(f"{name} {value:.4g}" for name, value in tried.terms.items())
    yield f"  step      loss {tried.loss:.4g} ({terms}); {tried.seconds:.1f} s"
    yield ""


def _memory(tried: Sequence[Tried]) -> Iterator[str]:
    width = max(5, *(len(stage.stage) for stage in tried))
    yield "memory at full size, in GiB; activations come on top"
    yield f"{'stage':{width}} " + " ".join(f"{part:>9}" for part in (*PARTS, "in all"))
    for stage in tried:
        cells = [stage.memory.get(part) for part in PARTS] + [sum(stage.memory.values())]
        shown = (f"{'-' if size is None else f'{size / GIB:.2f}':>9}" for size in cells)
        yield f"{stage.stage:{width}} " + " ".join(shown)
