"""A comparison as text: the table, what in it is sure, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from potstill.evaluation.metrics.significance import GapClosed
from potstill.reporting import published
from potstill.reporting.comparison import Comparison
from potstill.reporting.comparison.table import Cell, Entry, Measure, Table
from potstill.reporting.formats import MISSING, duration, percent, scaled, significant
from potstill.reporting.summary import finite
from potstill.reporting.text import one_line


def markdown(compared: Comparison) -> str:
    """Tables and lists, for a terminal or a file."""
    table = compared.table
    parts = ["\n".join(_grid(_figures(table))), _told(table)]
    if differences := list(_differences(table)):
        assert table.baseline is not None
        parts += [f"Less {one_line(table.baseline.name)}, on the same examples:", "\n".join(_grid(differences))]
    if compared.published:
        parts += ["Published figures beside ours:", published.markdown(compared.published)]
    parts += ["Before you compare:", _list(compared.notes), "On which rows:", _list(compared.hygiene)]
    return "\n\n".join(part for part in parts if part)


def _figures(table: Table) -> Iterator[list[str]]:
    """A row for each model: every figure with its interval, the share of the gap closed, size, speed and cost."""
    yield [
        "model",
        "method",
        *(f"{measure.name}, {measure.better} is better" for measure in table.measures),
        "gap closed",
        "parameters",
        "tokens per s",
        "training",
        "teacher tokens",
        "student tokens",
    ]
    for entry, cells in table.rows():
        figures = [figure(measure, cell) for measure, cell in zip(table.measures, cells, strict=True)]
        yield [one_line(entry.name), entry.method or "", *figures, _gaps(cells), *_costs(entry)]


def figure(measure: Measure, cell: Cell | None) -> str:
    """A mean with its 95% interval in the unit that it is shown in."""
    if cell is None:
        return MISSING
    mean, low, high = (significant(measure.shown(value)) for value in (cell.mean, *cell.interval))
    return f"{mean} [{low}, {high}]"


def gap(closed: GapClosed | None) -> str:
    """The share of the gap with its interval; by itself where it has none."""
    if closed is None or math.isnan(closed.share):
        return MISSING
    if math.isnan(closed.low):
        return f"{percent(closed.share)} (of a gap that may be none)"
    return f"{percent(closed.share)} [{percent(closed.low)}, {percent(closed.high)}]"


def _gaps(cells: Sequence[Cell | None]) -> str:
    """Of the first measure alone: of the others the page has it."""
    return gap(cells[0].gap) if cells and cells[0] else MISSING


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
    found = [
        [
            one_line(entry.name),
            measure.name,
            f"{a.difference.mean:+.3g} [{a.difference.low:+.3g}, {a.difference.high:+.3g}]",
            f"{a.difference.p:.2g}",
            f"{a.p_holm:.2g}",
            str(a.num),
        ]
        for entry, cells in table.rows()
        for measure, cell in zip(table.measures, cells, strict=True)
        if cell and (a := cell.against)
    ]
    if found:
        yield ["model", "figure", "difference", "p", "p, Holm", "examples"]
        yield from found


def _told(table: Table) -> str:
    """How the models were asked, and what the difference of a perplexity is of."""
    lines = list(dict.fromkeys(f"{measure.name}: {measure.told}" for measure in table.measures if measure.told))
    if any(measure.unit != "plain" for measure in table.measures):
        lines.append(
            "differences are of shares (0 to 1) where a figure is in per cent, and of nats where it is a perplexity"
        )
    return _list(lines)


def _grid(rows: Iterator[list[str]] | Sequence[list[str]]) -> Iterator[str]:
    for at, cells in enumerate(rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if at == 0:
            yield "| " + " | ".join(["---"] * len(cells)) + " |"


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
