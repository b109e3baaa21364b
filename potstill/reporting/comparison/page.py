"""The page of `potstill compare`: one file, with no script in it and nothing loaded from anywhere.

Names, prompts and answers come from models and strangers. The walls are those of ``report``: its environment cleans and
escapes every string, and the page's Content-Security-Policy lets nothing run or load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from potstill.reporting import published, report
from potstill.reporting.comparison import Comparison, plot
from potstill.reporting.comparison.samples import Answer, Sample
from potstill.reporting.comparison.table import Cell, Entry, Measure, Table
from potstill.reporting.comparison.verdict import (
    interval,
    is_gain,
    p_value,
    shown,
    shown_difference,
    shown_share,
    sureness,
    verdict,
)
from potstill.reporting.formats import MISSING, duration, scaled, significant, size
from potstill.reporting.text import one_line
from potstill.run import write_text

__all__ = ["render", "verdict", "write_page"]

MAX_SAMPLES = 100  # of all sources together
OPEN_SAMPLES = 3  # the others are folded
MAX_CHARACTERS = 2000  # of one text: there may be a dozen answers to a prompt
COSTS = ("parameters", "size on disk", "tokens per s", "training", "teacher's tokens", "student's tokens")
NO_GAIN = "the teacher is no better than the untouched student by this measure: to close that gap is no gain"
ROLES = {"teacher": "teacher", "untouched": "not trained", "sft": "SFT", "student": "student"}


def write_page(comparison: Comparison, file: Path, *, title: str) -> Path:
    """Write the page, whole or not at all. Raises: OSError where the file cannot be written."""
    write_text(file, render(comparison, title=title))
    return file


def render(comparison: Comparison, *, title: str) -> str:
    """The comparison as HTML, the same bytes for the same comparison."""
    table = comparison.table
    footnotes: list[str] = []
    return report.environment().get_template("compare.html.j2").render(
        title=one_line(title),
        verdict=verdict(table),
        measures=[(measure, _examples(table, at)) for at, measure in enumerate(table.measures)],
        costs=COSTS,
        rows=[_row(table, entry, cells, footnotes) for entry, cells in table.rows()],
        footnotes=footnotes,
        baseline=table.baseline,
        notes=comparison.notes,
        hygiene=comparison.hygiene,
        trained=[entry.name for entry in table.entries if entry.is_trained],
        charts=_charts(table),
        published=published.tables(comparison.published),
        published_columns=published.HEAD,
        sources=_by_source(comparison.samples),
        max_characters=MAX_CHARACTERS,
    )  # fmt: skip


# --- The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A model of the table, as shown. ``number``: of its point in the charts, None for what was not trained."""

    name: str
    about: str
    number: int | None
    is_student: bool
    cells: tuple[Figure | None, ...]
    costs: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A cell, as shown; "" for what it has not. ``footnote``: its number, of what is to be known of its share."""

    mean: str
    interval: str
    num: str
    share: str
    footnote: int | None
    difference: str
    sureness: str


def _row(table: Table, entry: Entry, cells: Sequence[Cell | None], footnotes: list[str]) -> Row:
    """A row; what its cells have to tell is added to the footnotes."""
    is_baseline = table.baseline is not None and entry.key == table.baseline.key
    return Row(
        name=entry.name,
        about=", ".join([entry.method or ROLES[entry.role], *(["the baseline"] if is_baseline else [])]),
        number=plot.numbers(table).get(entry.key),
        is_student=entry.role == "student",
        cells=tuple(
            _figure(measure, cell, not _examples(table, at), footnotes) if cell else None
            for at, (measure, cell) in enumerate(zip(table.measures, cells, strict=True))
        ),
        costs=tuple(_costs(entry)),
    )


def _figure(measure: Measure, cell: Cell, counts_differ: bool, footnotes: list[str]) -> Figure:
    mean, (low, high) = shown(measure, cell.mean), cell.interval
    share, footnote = _share(measure, cell, footnotes)
    return Figure(
        mean="not finite" if mean == MISSING else mean,
        interval=""
        if low == high
        else interval(shown(measure, low), shown(measure, high)),  # the teacher against itself
        num=f"{cell.num:,} example{'' if cell.num == 1 else 's'}" if counts_differ else "",
        share=share,
        footnote=footnote,
        difference=_difference(measure, cell),
        sureness=sureness(measure, cell.against) if cell.against else "",
    )


def _share(measure: Measure, cell: Cell, footnotes: list[str]) -> tuple[str, int | None]:
    """The share of the gap as shown, and the number of the footnote where it is less than it seems."""
    gap = cell.gap
    if gap is None:
        return "", None
    said = (
        f"{shown_share(gap.share)} {interval(significant(100 * gap.low, 3), significant(100 * gap.high, 3))}".rstrip()
    )
    note = gap.note or (None if is_gain(measure, gap) else NO_GAIN)
    if note is None:
        return said, None
    note = f"{measure.name}: {note}"
    if note not in footnotes:
        footnotes.append(note)
    return said, footnotes.index(note) + 1


def _difference(measure: Measure, cell: Cell) -> str:
    if cell.against is None:
        return ""
    if not math.isfinite(cell.against.difference.mean):
        return "no finite difference"
    return f"{shown_difference(measure, cell.against.difference.mean)}, {p_value(cell.against)}"


def _examples(table: Table, at: int) -> str:
    """How many examples a measure is over; "" where that differs between models, or there are none."""
    counts = {cell.num for cell in table.cells[at].values()}
    return f"{counts.pop():,}" if len(counts) == 1 else ""


def _costs(entry: Entry) -> Iterator[str]:
    yield scaled(entry.num_parameters)
    yield size(entry.size_on_disk_bytes)
    yield significant(entry.tokens_per_s)
    yield duration(entry.cost and entry.cost.training_s)
    yield scaled(entry.cost and entry.cost.teacher_tokens)
    yield scaled(entry.cost and entry.cost.student_tokens)


def _charts(table: Table) -> list[tuple[str, list[tuple[plot.Chart, Markup]]]]:
    """Groups of charts with their drawings."""
    return [
        (title, [(chart, Markup(plot.svg(chart, f"cost{group}-{at}"))) for at, chart in enumerate(found)])
        for group, (title, found) in enumerate(plot.charts(table))
    ]


# --- Samples ----------------------------------------------------------------------------------------------------------


def _by_source(samples: Sequence[Sample]) -> list[tuple[str, int, list[dict[str, object]]]]:
    """Each source with how many samples it has and those shown: its first, and as many of each source."""
    sources = [(source, list(some)) for source, some in groupby(samples, key=lambda sample: sample.source)]
    most = max(1, MAX_SAMPLES // max(1, len(sources)))
    return [
        (source, len(some), [_sample(sample, at == 0 and i < OPEN_SAMPLES) for i, sample in enumerate(some[:most])])
        for at, (source, some) in enumerate(sources)
    ]


def _sample(sample: Sample, is_open: bool) -> dict[str, object]:
    return {
        "id": sample.id,
        "title": one_line(sample.prompt)[:120],
        "prompt": _cut(sample.prompt),
        "references": [_cut(reference) for reference in sample.references],
        "answers": [(answer.entry.name, _score(answer), _cut(answer.text)) for answer in sample.answers],
        "spread": significant(sample.spread, 3) if sample.spread else "",
        "is_open": is_open,
    }


def _score(answer: Answer) -> str:
    return "not scored" if answer.score is None else significant(answer.score, 3)


def _cut(text: str) -> str:
    """A text of bearable length."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} [cut here: it has {len(text):,} characters]"
