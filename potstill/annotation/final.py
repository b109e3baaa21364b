"""The final file: a line for each annotation that is kept, to train on as it is or to join by id; and the figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from potstill.annotation.filters import Sieved, Step
from potstill.annotation.reading import Annotation, agrees
from potstill.data.examples import prompt_sha256
from potstill.evaluation.metrics.significance import wilson_interval


def final_text(kept: Sequence[Annotation]) -> str:
    """The lines. Of several annotations of a row the first that is kept has the row's id, the others id#sample: so the
    file holds no id twice, and a join by id finds one."""
    seen: set[str] = set()
    lines = []
    for one in kept:
        name = f"{one.id}#{one.sample}" if one.id in seen else one.id
        seen.add(one.id)
        lines.append(json.dumps({"id": name, **line_of(one)}, ensure_ascii=False) + "\n")
    return "".join(lines)


def line_of(one: Annotation) -> dict[str, Any]:
    """A line without its id.

    ``response`` is what is trained on: the gold answer, or the annotator's where a response was asked for or the row
    has no answer of its own. ``llm_label`` and ``rationale`` are the annotator's.
    """
    of_response = one.response is not None
    found = {
        "prompt": one.prompt,
        "prompt_sha256": prompt_sha256(one.prompt),
        "sample": one.sample,
        "response": one.response if of_response else one.gold if one.gold is not None else one.label,
        "gold": one.gold if of_response else None,
        "llm_label": one.label,
        "rationale": one.rationale,
        "origin": one.origin,
        "mode": one.mode,
        "finished": one.finished,
    }
    return {name: value for name, value in found.items() if value is not None}


def figures(found: Sequence[Sieved], kept: Sequence[Annotation], steps: Sequence[Step]) -> dict[str, Any]:
    """How many were kept and dropped, by filter in its order, and how often labels are the gold ones."""
    dropped = Counter(one.dropped_by for one in found if one.dropped_by)
    changed = Counter(name for one in found for name in one.changed_by)
    unread = Counter(one.why for one in found if one.dropped_by == "unread")
    return {
        "annotations": len(found),
        "kept": len(kept),
        "kept_by_origin": dict(sorted(Counter(one.origin for one in kept).items())),
        "unread": dict(unread.most_common()),
        "filters": [
            {"name": step.name, "dropped": dropped[step.name], "changed": changed[step.name]} for step in steps
        ],
        "agreement": agreement([one.annotation for one in found]),
    }


def agreement(annotations: Sequence[Annotation]) -> dict[str, Any] | None:
    """The share of the teacher's labels that are gold, before filters, a label that could not be read being wrong; with
    Wilson's 95% interval. None where no label was asked for, or no row has a gold one."""
    asked = [one for one in annotations if one.origin == "teacher" and one.gold is not None and one.asks_label]
    if not asked:
        return None
    same = sum(one.label is not None and agrees(one.label, one.gold or "") for one in asked)
    low, high = wilson_interval(same, len(asked))
    return {"share": same / len(asked), "low": low, "high": high, "same": same, "of": len(asked)}
