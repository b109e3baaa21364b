"""A run's figures in plain sentences, which never claim more than was measured."""

from __future__ import annotations

import math
from typing import Any

from potstill.reporting.formats import number, percent, significant
from potstill.run import Run

Figures = dict[str, Any]  # of one model, as in eval/*.json

HIGHER_IS_BETTER = {"top1_agreement": True, "perplexity": False}


def verdict(run: Run) -> list[str]:
    """Up to four sentences: what training changed, how far the student agrees, what it gets right, and how the
    equal-time baseline did."""
    measured = run.evaluations()
    before, after, sft = (measured.get(model, {}) for model in ("student_before", "student_after", "equal_time_sft"))
    if not after:
        return ["The trained student has not been measured yet."]
    sentences = (_change(before, after), _agreement(before, after), _accuracy(before, after), _against(after, sft))
    return [sentence for sentence in sentences if sentence]


def _scope(figures: Figures) -> str:
    """What the figures were measured on."""
    examples, tokens = number(figures.get("num_examples")), number(figures.get("num_tokens"))
    if not examples:
        return "On the held-out examples"
    things = "this 1 held-out example" if examples == 1 else f"these {examples:,.0f} held-out examples"
    return f"On {things}" + (f" ({tokens:,.0f} response tokens)" if tokens else "")


def _change(before: Figures, after: Figures) -> str:
    """Forward KL before and after; perplexity where there was no teacher to compare with."""
    kl_before, kl_after = (number(figures.get("forward_kl_nats")) for figures in (before, after))
    if kl_after is None:
        return _perplexity_change(before, after)
    if not kl_before:
        return f"{_scope(after)}, the forward KL to the teacher is {significant(kl_after)} nats per token."
    span = f"{significant(kl_before)} nats per token before, {significant(kl_after)} after"
    share = 1 - kl_after / kl_before
    change = f"training removed {_rough(share)} of" if share >= 0 else f"training added {_rough(-share)} to"
    doubt = " (within two standard errors)" if _in_doubt("forward_kl_nats", before, after) else ""
    return f"{_scope(after)}, {change} the forward KL to the teacher: {span}{doubt}."


def _perplexity_change(before: Figures, after: Figures) -> str:
    was, now = (number(figures.get("perplexity")) for figures in (before, after))
    if now is None:
        return ""
    span = f"went from {significant(was)} to {significant(now)}" if was is not None else f"is {significant(now)}"
    return f"{_scope(after)}, the student's perplexity {span}; no teacher was compared with."


def _accuracy(before: Figures, after: Figures) -> str:
    """The share of right answers, with its interval: a few hundred answers say less than they seem to."""
    was, now, low, high = (
        number(figures.get(name))
        for figures, name in (
            (before, "accuracy"), (after, "accuracy"), (after, "accuracy_low"), (after, "accuracy_high")
        )
    )  # fmt: skip
    if now is None:
        return ""
    span = f" (95% interval {percent(low)} to {percent(high)})" if low is not None and high is not None else ""
    first = f", and before training {percent(was)}" if was is not None else ""
    share = number(after.get("cut_share"))
    cut = f"; {percent(share)} had no end within evaluation.max_new_tokens, and were cut" if share else ""
    return f"Of its answers {percent(now)} are right{span}{first}{cut}."


def _agreement(before: Figures, after: Figures) -> str:
    was, now = (number(figures.get("top1_agreement")) for figures in (before, after))
    if now is None:
        return ""
    earlier = f" (untouched: {percent(was)})" if was is not None else ""
    return f"Its most likely next token is the teacher's at {percent(now)} of these tokens{earlier}."


def _against(after: Figures, sft: Figures) -> str:
    """Who wins which against the same student fine-tuned for the same time."""
    shown = {"top1_agreement": percent, "perplexity": significant}
    parts = []
    for key, name in (("top1_agreement", "agreement with the teacher"), ("perplexity", "perplexity")):
        ours, theirs = number(after.get(key)), number(sft.get(key))
        if ours is not None and theirs is not None:
            figures = f"{name} {shown[key](ours)} against {shown[key](theirs)}"
            parts.append(f"{figures}, {_winner(key, after, sft)}")
    if not parts:
        return ""
    return f"Against the same student fine-tuned on the same text for the same time: {'; '.join(parts)}."


def _winner(key: str, after: Figures, sft: Figures) -> str:
    """The one ahead and by how much, or that the difference is too small to name one."""
    difference = float(after[key]) - float(sft[key])
    if difference == 0:
        return "level"
    if _in_doubt(key, after, sft):
        return "too close to call (within two standard errors)"
    ahead = "this student" if (difference > 0) == HIGHER_IS_BETTER[key] else "the fine-tuned one"
    return f"{ahead} ahead by {_lead(key, difference, float(sft[key]))}"


def _lead(key: str, difference: float, theirs: float) -> str:
    if key == "top1_agreement":
        return f"{significant(abs(100 * difference), 3)} points"
    return significant(abs(difference), 3) + (f" ({_rough(abs(difference / theirs))})" if theirs else "")


def _in_doubt(key: str, one: Figures, other: Figures) -> bool:
    """Whether two figures differ by less than two standard errors of their difference.

    Both were measured on the same examples, so their errors mostly go together and this bound is on the wide side.
    """
    error = math.hypot(*(number(figures.get(f"{key}_stderr")) or 0.0 for figures in (one, other)))
    return abs(float(one[key]) - float(other[key])) < 2 * error


def _rough(share: float) -> str:
    """Three digits, but never 100% for what is a little less."""
    return "over 99.9%" if 0.9995 <= share < 1 else f"{significant(100 * share, 3)}%"
