"""A plan, for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

from potstill.checks.planning.results import Plan, StagePlan

MIB, GIB = 2**20, 2**30


def told(plan: Plan) -> str:
    """The stages in order, and the sums where there are several."""
    lines = [line for stage in plan.stages for line in _stage(stage)]
    if len(plan.stages) > 1:
        lines += [
            f"in all: {plan.steps:,} steps, {plan.flops:.3g} FLOPs, {duration(plan.total_seconds)}",
            f"  {plan.memory_bytes / GIB:.2f} GiB of memory at the most, {plan.disk_bytes / GIB:.2f} GiB on disk",
        ]
    return "\n".join(lines).rstrip()


def _stage(plan: StagePlan) -> Iterator[str]:
    yield f"stage {plan.stage} ({plan.method}) on {plan.device} in {plan.dtype}"
    yield from _table("parameters", {role: f"{number:,}" for role, number in plan.parameters.items()})
    amount = f"{plan.steps:,} steps, {plan.examples:,} examples, {plan.response_tokens:,} response tokens"
    yield f"training    {amount}, {plan.flops:.3g} FLOPs"
    timed = plan.step_seconds
    yield f"  {len(timed)} steps were timed: median {median(timed):.2f} s, {min(timed):.2f} to {max(timed):.2f}"
    yield from _table("time", {name: duration(value) for name, value in plan.seconds.items()})
    yield f"  {'in all':20} {duration(plan.total_seconds):>12}"
    yield from _table("memory of a step, MiB", _mib(plan.memory))
    yield from _table("memory at its peak, MiB", _mib(plan.peaks))
    yield from _table("disk, MiB", _mib(plan.disk))
    yield "not known"
    yield from (f"  {what}" for what in plan.unknown)
    yield ""


def _table(title: str, cells: Mapping[str, str]) -> Iterator[str]:
    yield title
    yield from (f"  {name.replace('_', ' '):20} {cell:>12}" for name, cell in cells.items())


def _mib(sizes: Mapping[str, int]) -> dict[str, str]:
    return {name: f"{size / MIB:,.0f}" for name, size in sizes.items()}


def duration(seconds: float) -> str:
    """Of the two largest units that it has."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
