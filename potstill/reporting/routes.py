"""The result of a run of several stages beside its other routes: the stages after it, on the same held-out examples."""

from __future__ import annotations

import math
from collections.abc import Iterator

from potstill.evaluation.metrics.significance import paired_difference
from potstill.recipe import METRICS_WITHOUT_TEACHER
from potstill.reporting import settings
from potstill.reporting.formats import number, scaled, significant
from potstill.reporting.row_scores import STUDENT, RowScores, read_scores
from potstill.run import Run

METRICS = ("perplexity", "forward_kl_nats", "rouge_l", "accuracy")


def beside(run: Run) -> list[str]:
    """A sentence for each stage after the one that makes the result, with each figure that says the same of both: never
    a winner without an interval, and no distances to two teachers."""
    planned = run.read("stages") or ()
    at = next((at for at, stage in enumerate(planned) if stage.get("is_result")), len(planned) - 1)
    return [
        sentence
        for stage, other in list(zip(planned, run.stages, strict=True))[at + 1 :]
        for sentence in _told(run.result, other, str(stage["name"]))
    ]


def _told(result: Run, other: Run, name: str) -> Iterator[str]:
    chosen = settings.measured_with(result)["best_by"]
    compared = [
        found for metric in dict.fromkeys((chosen, *METRICS)) if metric and (found := _compared(result, other, metric))
    ]
    if compared:
        yield f"Beside stage {name} ({_cost(other)}; the result took {_cost(result)}): {'; '.join(compared)}."


def _compared(result: Run, other: Run, metric: str) -> str | None:
    """One figure of both, and its paired difference; None where it was not measured of the same examples, or is a
    distance to a teacher and they have not the same one."""
    if metric not in METRICS_WITHOUT_TEACHER and settings.teacher(result) != settings.teacher(other):
        return None
    values = [number(one.read(f"eval/{STUDENT}").get(metric)) for one in (result, other)]
    if None in values:
        return None
    ours, theirs = (
        read_scores(one, metric, float(value or 0)) for one, value in zip((result, other), values, strict=True)
    )
    if ours is None or theirs is None or ours.ids != theirs.ids or len(ours.ids) < 2:
        return None
    return f"{metric} {significant(values[0])} against {significant(values[1])}, {_difference(ours, theirs)}"


def _difference(ours: RowScores, theirs: RowScores) -> str:
    found = paired_difference(ours.values, theirs.values, weights=ours.weights)
    low, high, mean = (math.exp(x) if ours.is_log else x for x in (found.low, found.high, found.mean))
    what = "ratio" if ours.is_log else "difference"
    return f"{what} {significant(mean)} [{significant(low)}, {significant(high)}] over {len(ours.ids)} examples"


def _cost(run: Run) -> str:
    cost = run.read("cost")
    flops = number(cost.get("flops"))
    return f"{cost.get('steps', 0):,} steps" + (f", {scaled(flops)} operations with its teacher" if flops else "")
