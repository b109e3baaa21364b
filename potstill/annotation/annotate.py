"""Have a teacher say something about rows, once: ask about what is missing, then make the final file of all of it.

annotations.jsonl        what is kept, to train on
annotations.raw.jsonl    what was written, as it was; filters are applied to it anew each time, without the teacher
annotations.decided.jsonl  what people decided about it, where reviews were applied
annotations.card.json    who wrote it, how, and what became of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.annotation.annotator import Annotator
from potstill.annotation.asking import Question, ask_missing
from potstill.annotation.decisions import (
    check_decisions,
    name_of,
    read_decisions,
    reviewed,
    shown_in,
    taken_over,
    write_decisions,
)
from potstill.annotation.filters import Sieved, Step, sieved
from potstill.annotation.final import figures, final_text
from potstill.annotation.raw import RawFile, RawLine
from potstill.annotation.reading import Annotation, human, read
from potstill.annotation.review import Verdicts, check_review, decided, read_review, write_review
from potstill.annotation.rows import Rows, asked_about, nothing_there
from potstill.annotation.task import Task
from potstill.annotation.templates import is_shot
from potstill.data.catalogue.item import Item
from potstill.errors import ConfigError
from potstill.hashes import file_sha256
from potstill.run import write_text
from potstill.served.keeping import alone
from potstill.served.stopping import stoppable


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Args:
        rows: read. task: what is asked of each.
        teacher: who is asked and how it writes: everything that an answer depends on beside the task, for the card.
        samples: annotations of each row. seed: of the draws.
        limit: rows asked about, from the first; all where None.
        only_missing: where a person has written what is wanted, that is kept and nothing is asked.
        steps: the filters, in order.
        review: a file to be written for a person to read. apply: one that a person has been through; it is taken over
            before the next is written.
    Raises: ConfigError, and DataError where ``apply`` is not there.
    """

    rows: Rows
    task: Task
    teacher: dict[str, Any]
    out: Path
    samples: int = 1
    seed: int = 0
    limit: int | None = None
    only_missing: bool = False
    steps: tuple[Step, ...] = ()
    review: Path | None = None
    apply: Path | None = None

    def __post_init__(self) -> None:
        if self.out.suffix != ".jsonl":
            raise ConfigError(f"--out {self.out} is not a .jsonl file", "name one that is")
        if self.samples < 1:
            raise ConfigError(f"--samples is {self.samples}", "give 1 or more")
        if self.samples > 1 and self.teacher.get("temperature") == 0:
            raise ConfigError(
                f"--samples is {self.samples}, and at temperature 0 all of them are the same", "add --temperature 0.7"
            )
        for file, to_write in ((self.review, True), (self.apply, False)):
            if file is not None:
                check_review(file, to_write=to_write)
        if self.task.choose == "parse" and not any(map(self.task.options_of, self.rows.items)):
            raise ConfigError(
                "--choose parse reads which of the options a label is, and no row has options",
                "name them, as --labels yes,no, or give the rows a field options; or leave --choose out: "
                "a label is then in the teacher's own words",
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on. Not how many rows and samples there are: more of them may be asked for later."""
        data = {"rows": self.rows.place, "rows_sha256": self.rows.sha256}
        return {**data, "teacher": self.teacher, "seed": self.seed, **self.task.settings()}


@dataclass(frozen=True)
class Annotated:
    """How it went: the card, and the questions without an answer, each with the reason."""

    card: dict[str, Any]
    unanswered: dict[str, str] = field(default_factory=dict)


def annotate(job: Job, open_annotator: Callable[[], Annotator], *, say: Callable[[str], None] = print) -> Annotated:
    """Ask what is not answered yet, and write the final file, the card and the review.

    Args:
        open_annotator: the teacher, loaded only if there is something to ask.
        say: told now and then how far it is.
    Raises: ConfigError where ``out`` was begun otherwise, or another process writes it; DataError for a damaged file or
        a review of something else; Stopped after a signal, with what was answered kept.
    """
    left_out = {item.id: item for item in job.rows.items if is_shot(item, job.task.shots)}
    items = [item for item in job.rows.items if item.id not in left_out][: job.limit]
    to_ask, by_people = asked_about(items, job.task, only_missing=job.only_missing)
    if job.only_missing and to_ask and not by_people:
        say(f"annotate: {nothing_there(job.rows, job.task, len(to_ask))}")
    questions = _questions(job, to_ask)
    raw = RawFile(job.out)
    with alone(job.out):
        before = raw.card()
        _keep_edits(job, raw, before)
        raw.begin(job.settings, {item.id: item for item in job.rows.items})
        with stoppable(lambda: _how_far(raw, questions)):
            unanswered = ask_missing(job.task, job.seed, raw, questions, open_annotator, say)
            answered = {key: raw.lines[key] for item, sample in questions if (key := (item.id, sample)) in raw.lines}
            said = _in_order(items, {item.id for item in by_people}, answered, job)
            counts = _finished(job, raw, [sieved(one, job.steps) for one in said], before)
            shots = {"left_out_as_shots": list(left_out)}
            card = {
                "settings": job.settings,
                "rows": {**job.rows.counts, "asked": len(to_ask), "human": len(by_people), **shots},
                **counts,
                "not_answered": len(unanswered),
                "seconds": round(sum(line.seconds for line in answered.values()), 3),
                "sha256": file_sha256(job.out),
            }
            raw.write_card(card)
    return Annotated(card, unanswered)


def _finished(job: Job, raw: RawFile, found: Sequence[Sieved], card: Mapping[str, Any]) -> dict[str, Any]:
    """Write the final file and the review; the card's figures of them, ``card`` being the one from before."""
    decisions = _decided(job, raw, found)
    kept = [one for sifted in found if (one := decided(sifted, decisions)) is not None]
    write_text(job.out, final_text(kept))
    told = reviewed(decisions, found, kept)
    review = _reviewed(job, card, told) if raw.decided_file.exists() else None
    return {"counts": figures(found, kept, job.steps), "review": review}


def _how_far(raw: RawFile, questions: Sequence[Question]) -> str:
    answered = sum((item.id, sample) in raw.lines for item, sample in questions)
    return f"with {answered} of {len(questions)} questions answered, which are kept"


def _keep_edits(job: Job, raw: RawFile, card: dict[str, Any]) -> None:
    """Refuse to make the final file anew where nothing says any more what a person decided about it."""
    if card.get("review") and job.apply is None and job.out.exists() and not raw.decided_file.exists():
        raise ConfigError(
            f"{job.out} holds what a person decided in {card['review']['file']}, and would lose it",
            f"add --apply {card['review']['file']}, or remove {job.out}",
        )


def _decided(job: Job, raw: RawFile, found: Sequence[Sieved]) -> Verdicts:
    """What people decided, before and in the review that is applied now; kept, and shown in the next review."""
    decisions = read_decisions(raw.decided_file)
    if job.apply:
        decisions = taken_over(decisions, read_review(job.apply, found), name_of(job.apply, job.out))
    check_decisions(decisions, found)
    if job.review and decisions:
        decisions = shown_in(decisions, name_of(job.review, job.out))
    if job.apply or decisions:
        write_decisions(raw.decided_file, decisions)
    if job.review:
        write_review(job.review, found, decisions)
    return decisions


def _questions(job: Job, items: Sequence[Item]) -> list[Question]:
    return [(item, sample) for item in items for sample in range(job.samples)]


def _in_order(
    items: Sequence[Item], human_ids: set[str], answered: Mapping[tuple[str, int], RawLine], job: Job
) -> Iterator[Annotation]:
    """What is said about each row, in the rows' order: a person's words, or each sample of the teacher's."""
    for item in items:
        if item.id in human_ids:
            yield human(item, job.task)
            continue
        for sample in range(job.samples):
            if (line := answered.get((item.id, sample))) is not None:
                yield read(line, item, job.task)


def _reviewed(job: Job, card: Mapping[str, Any], told: dict[str, Any]) -> dict[str, Any] | None:
    """What became of the annotations by a person's decision, and the review that was applied last."""
    if job.apply is not None:
        return {"file": str(job.apply), "sha256": file_sha256(job.apply), **told}
    before = card.get("review")
    return before and {"file": before["file"], "sha256": before["sha256"], **told}
