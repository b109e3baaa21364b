"""Published figures beside ours, as text: a table for each figure of a suite, its sources and settings below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from potstill.reporting.formats import MISSING
from potstill.reporting.published.beside import Beside, Ours
from potstill.reporting.published.schema import HOW_SURE, Published, Source, Table
from potstill.reporting.suites import figure
from potstill.reporting.text import markdown_table, one_line

HEAD = ("method", "student", "teacher", "published", "how sure", "ours, 95% interval", "before you compare", "from")


@dataclass(frozen=True)
class Shown:
    """A figure of a suite: rows of cells below HEAD, the last of them ``[1]`` for the first source. Not escaped."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]


def tables(lines: Sequence[Beside]) -> tuple[Shown, ...]:
    """A table for each figure of a suite, with published values in the unit of ours."""
    kinds = dict.fromkeys(map(_kind, lines))
    return tuple(_shown(kind, [line for line in lines if _kind(line) == kind]) for kind in kinds)


def markdown(lines: Sequence[Beside]) -> str:
    """The tables; empty where there is nothing to set beside anything."""
    return "\n\n".join(map(_markdown, tables(lines)))


def _markdown(shown: Shown) -> str:
    table = markdown_table(HEAD, (tuple(map(_escaped, row)) for row in shown.rows))
    sources = "\n".join(f"- [{at}] {_escaped(source)}" for at, source in enumerate(shown.sources, start=1))
    return f"{shown.title}, published and ours:\n\n{table}\n\n{sources}"


def _escaped(text: str) -> str:
    """Text of a file that opens no tag."""
    return text.replace("<", "&lt;")


def _kind(line: Beside) -> tuple[str | None, str]:
    return line.published.suite, line.published.figure


def _shown(kind: tuple[str | None, str], lines: Sequence[Beside]) -> Shown:
    origins = dict.fromkeys((line.published.source, line.published.table) for line in lines)
    numbers = {origin: f"[{at}]" for at, origin in enumerate(origins, start=1)}
    rows = ((*_cells(line), numbers[line.published.source, line.published.table]) for line in lines)
    title = f"{kind[0]}, {kind[1].replace('_', ' ')}"
    return Shown(title, tuple(rows), tuple(one_line(_from(*origin)) for origin in origins))


def _cells(line: Beside) -> Iterator[str]:
    row = line.published.row
    yield from map(one_line, (row.method, row.model, row.teacher or MISSING))
    yield _published(line.published)
    yield HOW_SURE[row.tag]
    yield _ours(line.ours)
    yield one_line("; ".join([*([row.note] if row.note else []), *line.differs]))


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
    whole = ours.low is not None and ours.high is not None
    said = figure({"mean": ours.mean, "low": ours.low, "high": ours.high} if whole else ours.mean)
    return one_line(f"{ours.name}: {said}" if ours.name else said)


def _from(source: Source, table: Table) -> str:
    words = (source.title, source.paper, table.where, source.url)
    return f"{', '.join(word for word in words if word)}. {_how(table)}"


def _how(table: Table) -> str:
    items = f", {table.num_items} items" if table.num_items else ""
    scale = f", here times {table.scale:g}" if table.scale not in (None, 1) else ""
    return f"{table.dataset}{f' {table.split}' if table.split else ''}{items}; {table.unit}{scale}; {table.settings}"
