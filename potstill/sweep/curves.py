"""The validation curve of a cell: its metric at what its training had cost when the student was validated.

Cost is what all of the student's making took so far: the stages before it, and the text that a teacher wrote for it
beforehand, which no step is charged with.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from potstill.reporting.formats import number
from potstill.run import Run
from potstill.sweep.budgets import At

KEYS = {  # of a validation's line in metrics.jsonl
    At.steps: "step",
    At.teacher_tokens: "data/teacher_tokens",
    At.seconds: "time/training_s",
    At.flops: "compute/flops",
}
COSTS = {  # of a stage's cost.json
    At.steps: "steps",
    At.teacher_tokens: "teacher_tokens",
    At.seconds: "training_s",
    At.flops: "flops",
}


class NoCurve(Exception):
    """A cell has no curve along a cost; the reason in plain words, without a full stop."""


@dataclass(frozen=True)
class Curve:
    """Points (cost so far, figure) in the order of training, one or more; a figure that is not finite is nan."""

    points: tuple[tuple[float, float], ...]

    @property
    def begin(self) -> float:
        """The cost before the first step."""
        return self.points[0][0]

    @property
    def end(self) -> float:
        """The cost of the last validation."""
        return self.points[-1][0]

    def at(self, x: float) -> float:
        """The figure at a cost: on the straight line between the validations around it; nan beyond the curve's ends.

        Of several validations at one cost the last counts. Beside a figure that is not finite there is none either.
        """
        if not self.begin <= x <= self.end:
            return math.nan
        after = bisect_right(self.points, x, key=lambda point: point[0])
        (left, first), (right, then) = self.points[after - 1], self.points[min(after, len(self.points) - 1)]
        return first if left == x else first + (then - first) * (x - left) / (right - left)


def curve(run: Run, metric: str, at: At) -> Curve:
    """The validation curve of a finished run's result.

    Args:
        run: of one stage or of several; the stages before its result count as cost.
        metric: a key of the validations in ``metrics.jsonl``, without ``validation/``.
    Raises: NoCurve where the run has none along this cost.
    """
    key = f"validation/{metric}"
    lines = [line for line in run.result.metrics() if key in line]
    if not lines:
        raise NoCurve(f"its validations do not measure {metric}")
    costs = [number(line.get(KEYS[at])) for line in lines]
    before = _before(run, at)
    if before is None or any(cost is None for cost in costs):
        raise NoCurve(f"its run does not tell {at.words} at validations: an older potstill made it")
    found = Curve(tuple((before + (cost or 0), _figure(line[key])) for cost, line in zip(costs, lines, strict=True)))
    if not found.end:
        raise NoCurve(f"it is trained without any {at.words}")
    return found


def _figure(value: Any) -> float:
    found = number(value)
    return math.nan if found is None else found


def _before(run: Run, at: At) -> float | None:
    """The cost before the result's first step; None where it is not known."""
    total = 0.0
    for part in _until_result(run):
        cost = 0.0 if part.path == run.result.path else number(part.read("cost").get(COSTS[at]))
        written = number(_written(part, at))
        if cost is None or written is None:
            return None
        total += cost + written
    return total


def _until_result(run: Run) -> Iterator[Run]:
    """The stages up to the one that makes the result, or the run itself."""
    result = run.result
    for part in run.stages or [run]:
        yield part
        if part.path == result.path:
            return


def _written(run: Run, at: At) -> Any:
    """What the text cost that the teacher wrote before the first step."""
    if at is At.seconds:
        return run.read("cost").get("teacher_text_s", 0.0)
    if at is At.teacher_tokens:
        counts = [number(card.get("written_tokens")) for card in run.teacher_texts().values()]
        return None if None in counts else sum(count or 0 for count in counts)
    return 0
