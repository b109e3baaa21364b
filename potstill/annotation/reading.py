"""From what a teacher wrote to an annotation: its words, its label, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from potstill.annotation.raw import RawLine
from potstill.annotation.task import Task
from potstill.data.catalogue.item import Item
from potstill.evaluation.metrics.arithmetic import evaluate, same_value
from potstill.evaluation.metrics.classification import named_option

SENTENCE_END = re.compile(r"(?<=[.!?])\s")
QUOTES = "\"'`*\u2018\u2019\u201c\u201d"


@dataclass(frozen=True)
class Annotation:
    """What is said about a row.

    Args:
        id, sample, prompt: the row, which of its annotations, and the prompt as a person reads it.
        gold: the row's own answer. options: what its label is one of.
        label, rationale, response: what the annotator says; None for what was not asked, or could not be read.
        origin: teacher, human, or human-edited. mode: as ``Task.mode``, or human.
        finished: the end was written too, and not cut.
        unread: why nothing could be read; None where something was. asks_label: a label was asked for.
    """

    id: str
    sample: int
    prompt: str
    gold: str | None = None
    options: tuple[str, ...] = ()
    label: str | None = None
    rationale: str | None = None
    response: str | None = None
    origin: str = "teacher"
    mode: str = "reasoning"
    finished: bool = True
    unread: str | None = None
    asks_label: bool = False

    @property
    def words(self) -> str | None:
        """What filters look at: the rationale, or the response; None where only a label was asked for."""
        return self.response if self.rationale is None else self.rationale

    def with_words(self, words: str) -> Annotation:
        if self.mode == "response":
            return replace(self, response=words)
        return replace(self, rationale=words)


def read(line: RawLine, item: Item, task: Task) -> Annotation:
    """What a raw line says. A failure to read is told in ``unread``, and is never a blank."""
    base = _about(item, task, line.sample)
    base = replace(base, mode=task.mode, finished=line.finished)
    if line.problem is not None:
        return replace(base, unread=line.problem)
    if task.want == "response":
        return replace(base, response=line.text) if line.text else replace(base, unread="nothing was written")
    rationale, label = split(line.text, task)
    why = None
    if task.want != "label":
        base = replace(base, rationale=rationale or None)
        why = None if rationale else "no rationale was written"
    if task.has_label:
        if task.chosen_by_likelihood(item):
            found = _likeliest(line.nats, base.options)
        else:
            found = _written_label(label, base.options)
        base = replace(base, label=found)
        why = why or (None if found else _why_no_label(label, base.options, task))
    return replace(base, unread=why)


def human(item: Item, task: Task) -> Annotation:
    """What a person has said about a row already."""
    gold = item.references[0] if item.references else None
    has_rationale = task.want in ("rationale", "rationale_and_label")
    return replace(
        _about(item, task, 0),
        rationale=item.rationale if has_rationale else None,
        label=gold if task.has_label else None,
        response=gold if task.want == "response" else None,
        origin="human",
        mode="human",
    )


def _about(item: Item, task: Task, sample: int) -> Annotation:
    gold = item.references[0] if item.references else None
    return Annotation(item.id, sample, item.prompt, gold, task.options_of(item), asks_label=task.has_label)


def split(text: str, task: Task) -> tuple[str, str | None]:
    """A text at the first mark: the rationale before it, and the label behind it; None where there is no mark.

    Where no rationale is wanted the whole text is the label, where no label is wanted all of it is the rationale.
    """
    if task.want == "label":
        return "", text
    if not task.has_label:
        return text.strip(), None
    found = re.search(re.escape(task.mark), text, re.IGNORECASE)
    if found is None:
        return text.strip(), None
    return text[: found.start()].strip(), text[found.end() :]


def _likeliest(nats: Sequence[float] | None, options: Sequence[str]) -> str | None:
    if nats is None or len(nats) != len(options):
        return None
    return options[min(range(len(nats)), key=nats.__getitem__)]


def _written_label(text: str | None, options: Sequence[str]) -> str | None:
    """The option that is named, or where the answer is free its first sentence, without quotes and a last full stop."""
    if text is None:
        return None
    line = next((line for line in text.lstrip(" :").splitlines() if line.strip()), "").strip()
    if not options:
        return SENTENCE_END.split(line)[0].strip(f" {QUOTES}").removesuffix(".").strip(f" {QUOTES}") or None
    found = named_option(line, options).option
    return None if found is None else options[found]


def _why_no_label(text: str | None, options: Sequence[str], task: Task) -> str:
    if text is None:
        return f"it does not say '{task.mark}'"
    if not text.strip():
        return "no label was written"
    return "the label names none of the options, or several" if options else "the label is empty"


def agrees(label: str, gold: str) -> bool:
    """Whether a label is the gold one: the same words in any case, or where both are arithmetic the same value."""
    same = label.strip().removesuffix(".").casefold() == gold.strip().removesuffix(".").casefold()
    return same or same_value(evaluate(label).value, evaluate(gold).value)
