"""Published figures beside ours as Markdown: a table for each figure of a suite, its sources and settings below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from potstill.reporting.formats import MISSING
from potstill.reporting.published.beside import Beside, Ours
from potstill.reporting.published.schema import HOW_SURE, Published, Source, Table
from potstill.reporting.suites import figure
from potstill.reporting.text import one_line

HEAD = ("method", "student", "teacher", "published", "how sure", "ours, 95% interval", "before you compare", "from")


def markdown(lines: Sequence[Beside]) -> str:
    """The tables, with published values in the unit of ours; empty where there is nothing to set beside anything."""
    kinds = dict.fromkeys((line.published.suite, line.published.figure) for line in lines)
    return "\n\n".join(
        _part(f"{suite}, {name.replace('_', ' ')}", [x for x in lines if _kind(x) == (suite, name)])
        for suite, name in kinds
    )


def _kind(line: Beside) -> tuple[str | None, str]:
    return line.published.suite, line.published.figure


def _part(title: str, lines: Sequence[Beside]) -> str:
    tables = dict.fromkeys((line.published.source, line.published.table) for line in lines)
    numbers = {key: f"[{at}]" for at, key in enumerate(tables, start=1)}
    rows = ([*_cells(line), numbers[line.published.source, line.published.table]] for line in lines)
    shown = "\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows))
    sources = "\n".join(f"- {numbers[key]} {_from(*key)}" for key in tables)
    return f"{title}, published and ours:\n\n{shown}\n\n{sources}"


def _cells(line: Beside) -> Iterator[str]:
    row = line.published.row
    yield from map(_cell, (row.method, row.model, row.teacher or MISSING))
    yield _published(line.published)
    yield HOW_SURE[row.tag]
    yield _ours(line.ours)
    yield _cell("; ".join([*([row.note] if row.note else []), *line.differs]))


def _published(published: Published) -> str:
    """With as many decimals as the most exact value of its table has, so that 27.0 is not read as a rounded 27."""
    table, deviation = published.table, published.deviation
    places = max(_places(table.in_our_unit(row.value)) for row in table.figures)
    return f"{published.value:.{places}f}" + (f" ± {deviation:.{places}f}" if deviation is not None else "")


def _places(value: float) -> int:
    return max(0, -int(Decimal(str(value)).normalize().as_tuple().exponent))


def _ours(ours: Ours | None) -> str:
    if ours is None:
        return ""
    if ours.low is None or ours.high is None:
        return figure(ours.mean)
    return figure({"mean": ours.mean, "low": ours.low, "high": ours.high})


def _from(source: Source, table: Table) -> str:
    words = (source.title, source.paper, table.where, source.url)
    return _cell(f"{', '.join(word for word in words if word)}. {_how(table)}")


def _how(table: Table) -> str:
    items = f", {table.num_items} items" if table.num_items else ""
    scale = f", here times {table.scale:g}" if table.scale not in (None, 1) else ""
    return f"{table.dataset}{f' {table.split}' if table.split else ''}{items}; {table.unit}{scale}; {table.settings}"


def _cell(text: str) -> str:
    """Text of a file on one line that opens neither a cell nor a tag."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")
