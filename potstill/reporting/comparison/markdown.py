"""A comparison as text: the table, what in it is sure, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from potstill.reporting import published
from potstill.reporting.comparison import Comparison
from potstill.reporting.comparison.table import Cell, Entry, Measure, Table
from potstill.reporting.comparison.verdict import (
    interval,
    is_gain,
    shown,
    shown_difference,
    shown_share,
    sureness,
    verdict,
)
from potstill.reporting.formats import MISSING, duration, scaled, significant
from potstill.reporting.summary import finite
from potstill.reporting.text import markdown_table, one_line

LESS = ("model", "figure", "difference", "p", "p, Holm", "examples", "so")
TOKENS = ("teacher tokens", "student tokens")


def markdown(compared: Comparison) -> str:
    """Sentences, tables and lists, for a terminal or a file."""
    table = compared.table
    head, *figures = _figures(table)
    parts = [" ".join(verdict(table)), markdown_table(head, figures), _list(_told(table))]
    if (differences := list(_differences(table))) and table.baseline:
        parts += [f"Less {one_line(table.baseline.name)}, on the same examples:", markdown_table(LESS, differences)]
    if compared.published:
        parts += ["Published figures beside ours:", published.markdown(compared.published)]
    parts += ["Before you compare:", _list(compared.notes), "On which rows:", _list(compared.hygiene)]
    return "\n\n".join(part for part in parts if part)


def _figures(table: Table) -> Iterator[list[str]]:
    """A row for each model: every figure with its interval, the share of the gap closed, size, speed and cost."""
    first = [f"of the gap in {table.measures[0].name}"] if table.measures else []  # of the others the page has it
    figures = [f"{measure.name}, {measure.better} is better" for measure in table.measures]
    yield ["model", "method", *figures, *first, "parameters", "tokens per s", "training", *TOKENS]
    for entry, cells in table.rows():
        pairs = list(zip(table.measures, cells, strict=True))
        gaps = [_gap(*pairs[0])] if pairs else []
        yield [one_line(entry.name), entry.method or "", *(_figure(*pair) for pair in pairs), *gaps, *_costs(entry)]


def _figure(measure: Measure, cell: Cell | None) -> str:
    """A mean with its 95% interval in the unit that it is shown in."""
    if cell is None:
        return MISSING
    mean, low, high = (shown(measure, value) for value in (cell.mean, *cell.interval))
    return f"{mean} {interval(low, high)}".rstrip()


def _gap(measure: Measure, cell: Cell | None) -> str:
    """The share of the gap with its interval, where there is a gap to close."""
    if cell is None or cell.gap is None or not is_gain(measure, cell.gap):
        return MISSING
    share, low, high = (shown_share(value) for value in (cell.gap.share, cell.gap.low, cell.gap.high))
    doubt = " (of a gap that may be none)" if cell.gap.note else ""
    return f"{share} {interval(low, high)}".rstrip() + doubt


def _costs(entry: Entry) -> Iterator[str]:
    yield scaled(entry.num_parameters)
    yield significant(entry.tokens_per_s)
    if entry.cost is None:
        yield from ("", "", "")
        return
    yield duration(entry.cost.training_s)
    for count in (entry.cost.teacher_tokens, entry.cost.student_tokens):
        yield MISSING if count is None else f"{count:,}"


def _differences(table: Table) -> Iterator[list[str]]:
    """A row for each model and measure that was set against the baseline."""
    for entry, cells in table.rows():
        for measure, cell in zip(table.measures, cells, strict=True):
            if cell and (against := cell.against):
                found = against.difference
                mean, low, high = (shown_difference(measure, value) for value in (found.mean, found.low, found.high))
                ps = (f"{value:.2g}" for value in (found.p, against.p_holm))
                yield [
                    one_line(entry.name),
                    measure.name,
                    f"{mean} {interval(low, high)}".rstrip(),
                    *ps,
                    str(against.num),
                    sureness(measure, against),
                ]


def _told(table: Table) -> list[str]:
    """How the models were asked, once for all measures that were measured so."""
    lines: dict[str, list[str]] = {}
    for measure in table.measures:
        lines.setdefault(measure.told, []).append(measure.name)
    return [f"{', '.join(names)}: {told}" for told, names in lines.items() if told]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# --- As data ----------------------------------------------------------------------------------------------------------


def as_json(compared: Comparison) -> dict[str, Any]:
    """The comparison as plain data, without the samples; what is not finite is null."""
    found: dict[str, Any] = finite(
        {
            "models": [
                asdict(entry) | {"figures": [cell and asdict(cell) for cell in cells]}
                for entry, cells in compared.table.rows()
            ],
            "measures": [
                {"name": m.name, "better": m.better, "unit": m.unit, "told": m.told} for m in compared.table.measures
            ],
            "baseline": compared.table.baseline and compared.table.baseline.name,
            "notes": list(compared.notes),
            "hygiene": list(compared.hygiene),
            "published": [
                {"figure": shown.title, "rows": [dict(zip(published.HEAD, row, strict=True)) for row in shown.rows]}
                | {"sources": list(shown.sources)}
                for shown in published.tables(compared.published)
            ],
        }
    )
    return found
