"""lm-eval's records in the form of our own rows and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]  # a line of rows.jsonl: id, group, input, options, references, predictions, scores


def rows_of(task: str, samples: Iterable[Mapping[str, Any]]) -> list[Row]:
    """A row for each document, from lm-eval's records, of which there is one for each document and filter.

    A filter reads the answer out of what was written; the scores of one that does are called ``metric,filter``.
    """
    rows: dict[int, Row] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], _row(task, sample))
        name = sample["filter"]
        if "written" in row["predictions"] and name != "none":
            row["predictions"].setdefault("read", {})[name] = plain(sample["filtered_resps"])
        row["scores"] |= {_named(metric, name): plain(sample[metric]) for metric in sample["metrics"]}
    return list(rows.values())


def figures_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Figures of each task and group by their names, from lm-eval's ``results``.

    Returns: ``{part: {metric: {"value", "stderr"}}}``; a standard error that lm-eval does not have is null.
    """
    found = {part: _figures(measured) for part, measured in results.items()}
    return {part: figures for part, figures in found.items() if figures}  # a group without a mean has none


def _figures(measured: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """From ``acc,none`` and ``acc_stderr,none`` to ``acc`` with both; what else stands beside them is no figure."""
    pairs = [key.split(",", 1) for key in measured if "," in key]
    return {
        _named(metric, name): {
            "value": _number(measured[f"{metric},{name}"]),
            "stderr": _number(measured.get(f"{metric}_stderr,{name}")),
        }
        for metric, name in pairs
        if not metric.endswith("_stderr")
    }


def plain(value: Any) -> Any:
    """A value as JSON holds it: tuples and arrays as lists, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if hasattr(value, "tolist"):  # of numpy: a number or an array
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _row(task: str, sample: Mapping[str, Any]) -> Row:
    """What was asked of one document and said to it; what a model said is a text or how likely it found one."""
    texts = [arguments[0] for arguments in sample["arguments"]]
    options = [after for arguments in sample["arguments"] for after in arguments[1:2] if isinstance(after, str)]
    said = [answer for repeats in sample["resps"] for answer in repeats]
    if all(isinstance(answer, str) for answer in said):
        predictions: dict[str, Any] = {"written": said}
    else:
        likely = [answer[0] if isinstance(answer, list | tuple) else answer for answer in said]
        predictions = {"log_likelihoods": plain(likely)}
    return {
        "id": f"{task}/{sample['doc_id']}",
        "group": task,
        "input": texts[0] if len(set(texts)) == 1 else texts,
        "options": options,
        "references": [plain(sample["target"])],
        "predictions": predictions,
        "scores": {},
    }


def _named(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _number(value: Any) -> float | None:
    """A finite number, or None: lm-eval writes N/A where it has none."""
    found = plain(value)
    return float(found) if isinstance(found, int | float) else None
