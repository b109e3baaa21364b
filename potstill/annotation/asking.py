"""Ask what has no line yet, and keep each answer as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from potstill.annotation.annotator import Annotator, Asked, Written, draw_seed
from potstill.annotation.raw import RawFile, RawLine
from potstill.annotation.reading import split
from potstill.annotation.task import Task
from potstill.annotation.templates import turns_of
from potstill.data.catalogue.item import Item
from potstill.data.examples import prompt_sha256

SAY_EVERY_S = 10.0

Question: TypeAlias = tuple[Item, int]  # a row, and which of its samples


class Answer(NamedTuple):
    """What came of a question: a text or why there is none this time, the options' nats, and the seconds it took."""

    asked: Asked
    written: Written | str
    nats: list[float] | None
    seconds: float


def ask_missing(
    task: Task,
    seed: int,
    raw: RawFile,
    questions: Sequence[Question],
    open_annotator: Callable[[], Annotator],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Ask the questions that have no line; those that stay without an answer, with the reason.

    Raises: ConfigError where likelihoods are asked of an annotator that has none.
    """
    missing = [(item, sample) for item, sample in questions if (item.id, sample) not in raw.lines]
    unanswered: dict[str, str] = {}
    if not missing:
        return unanswered
    annotator = open_annotator()
    items = {item.id: item for item, _ in missing}
    if not annotator.scores and any(map(task.chosen_by_likelihood, items.values())):
        annotator.nats([], [])  # which says why it cannot
    tell = _teller(len(questions) - len(missing), len(questions), say)
    asked = [_asked(item, sample, task, seed) for item, sample in missing]
    together = annotator.at_a_time
    for start in range(0, len(asked), together or len(asked)):
        some = asked[start : start + (together or len(asked))]
        for answer in _answers(task, annotator, some, items):
            if isinstance(answer.written, str):
                unanswered[f"{answer.asked.id} (sample {answer.asked.sample})"] = answer.written
            else:
                raw.add(_line(answer, answer.written, items[answer.asked.id]))
            if together is None:
                tell(1)
        if together is not None:
            tell(len(some))
    return unanswered


def _asked(item: Item, sample: int, task: Task, seed: int) -> Asked:
    turns = turns_of(
        item.prompt,
        task.used_template,
        task.shots,
        want=task.want,
        label=item.references[0] if task.given_label else "",
        options=task.options_of(item),
        mark=task.mark,
    )
    return Asked(item.id, sample, turns, draw_seed(seed, item.id, sample))


def _line(answer: Answer, written: Written, item: Item) -> RawLine:
    return RawLine(
        id=item.id,
        sample=answer.asked.sample,
        prompt_sha256=prompt_sha256(item.prompt),
        text=written.text,
        finished=written.finished,
        problem=written.problem,
        nats=answer.nats,
        seconds=round(answer.seconds, 4),
    )


def _answers(task: Task, annotator: Annotator, some: Sequence[Asked], items: dict[str, Item]) -> Iterator[Answer]:
    """The answers: those without a choice by likelihood as they come, then the others, scored together."""
    scored = [one for one in some if task.chosen_by_likelihood(items[one.id])]
    unwritten = scored if task.want == "label" else []  # a label that is chosen is not written
    waiting = [Answer(one, Written("", True), None, 0.0) for one in unwritten]
    to_choose, skipped = set(map(_key, scored)), set(map(_key, unwritten))
    last = time.perf_counter()
    for one, written in annotator.write([one for one in some if _key(one) not in skipped]):
        now = time.perf_counter()
        answer = Answer(one, written, None, now - last)
        last = now
        if _key(one) in to_choose and isinstance(written, Written) and written.problem is None:
            waiting.append(answer)
        else:
            yield answer
    if waiting:
        yield from _scored(task, annotator, waiting, items)


def _scored(task: Task, annotator: Annotator, waiting: Sequence[Answer], items: dict[str, Item]) -> Iterator[Answer]:
    """The same answers with the nats of each option, behind the rationale where there is one."""
    begun = time.perf_counter()
    asked, texts = [], []
    for answer in waiting:
        assert isinstance(answer.written, Written)
        rationale = split(answer.written.text, task)[0]
        before = f"{rationale} {task.mark} ".lstrip() if task.want != "label" else ""
        for option in task.options_of(items[answer.asked.id]):
            asked.append(answer.asked)
            texts.append(f"{before}{option}")
    nats = iter(annotator.nats(asked, texts))
    each = (time.perf_counter() - begun) / len(waiting)
    for answer in waiting:
        found = [next(nats) for _ in task.options_of(items[answer.asked.id])]
        known = [value for value in found if value is not None]
        written = answer.written
        if len(known) < len(found) and isinstance(written, Written):
            written = Written(written.text, written.finished, "too long for its labels to be scored")
        yield Answer(answer.asked, written, _relative(known, len(found)), answer.seconds + each)


def _relative(nats: Sequence[float], wanted: int) -> list[float] | None:
    """Nats over those of the likeliest option: what all options share, a rationale for instance, is taken away."""
    return [round(value - min(nats), 6) for value in nats] if len(nats) == wanted else None


def _key(one: Asked) -> tuple[str, int]:
    return one.id, one.sample


def _teller(there: int, total: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """Tell how far it is, now and then."""
    begun = last = time.monotonic()
    done = 0

    def tell(more: int) -> None:
        nonlocal last, done
        done += more
        now = time.monotonic()
        if now - last < SAY_EVERY_S and there + done < total:
            return
        last = now
        say(f"annotate: {there + done} of {total}, {(now - begun) / done * (total - there - done):.0f} s left")

    return tell
