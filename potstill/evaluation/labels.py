"""Whether an answer is right, and how near its rationale is to the row's own, where a text holds both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from potstill.data.views import answer_of, rationale_of
from potstill.evaluation.metrics.arithmetic import evaluate, final_number, same_value
from potstill.evaluation.metrics.rouge import rouge_l_scores
from potstill.recipe import Target

Comparison: TypeAlias = Literal["none", "exact", "equation"]


def label_scores(
    texts: Sequence[str], references: Sequence[str], *, accuracy: Comparison, target: Target
) -> dict[str, list[float | None]]:
    """The scores that texts have beside Rouge-L, of each text, by name.

    Args:
        texts: what a model wrote. references: what the rows answer, in the same form.
        accuracy: how answers are compared. target: of the form, which says where the answer stands in it.
    Returns: ``accuracy``, 1 or 0, unless it is none; ``rationale_rouge_l``, from 0 to 100, where the form has a
        rationale, None of a row that has none.
    """
    found: dict[str, list[float | None]] = {}
    if accuracy != "none":
        pairs = [(answer_of(target, text), answer_of(target, ref)) for text, ref in zip(texts, references, strict=True)]
        found["accuracy"] = [float(is_right(said, gold, accuracy)) for said, gold in pairs]
    if target != "response":
        found["rationale_rouge_l"] = _rationales(texts, references, target)
    return found


def is_right(answer: str, gold: str, accuracy: Comparison) -> bool:
    """Whether an answer is the gold one: its words, or its value."""
    if accuracy == "equation":
        return same_value(final_number(answer).value, evaluate(gold).value)
    return answer.strip().casefold() == gold.strip().casefold()


def _rationales(texts: Sequence[str], references: Sequence[str], target: Target) -> list[float | None]:
    own = [rationale_of(target, text) for text in texts]
    theirs = [rationale_of(target, text) for text in references]
    scores = rouge_l_scores(own, [[reference] for reference in theirs])
    return [score if reference else None for score, reference in zip(scores, theirs, strict=True)]
