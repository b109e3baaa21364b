"""The table of a run, for the terminal, the report and the card."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from potstill.reporting.formats import MISSING, number, percent, scaled, significant, size
from potstill.reporting.text import one_line
from potstill.reporting.verdict import verdict
from potstill.run import Run

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MODEL_NAMES", "Cell", "Column", "cell", "column", "columns", "columns_of", "rich_table", "rows", "verdict"]

MODEL_NAMES = {
    "teacher": "teacher",
    "student_before": "student before",
    "student_after": "student after",
    "equal_time_sft": "equal-time SFT",
}


@dataclass(frozen=True)
class Column:
    """One figure: its key in eval/*.json, and which way is better ("" where neither is).

    ``short`` is the heading in a terminal, two lines; empty where 80 characters have no room for the column.
    """

    key: str
    name: str
    short: tuple[str, ...]
    better: str
    shown: Callable[[Any], str]
    always: bool = True  # false: only where a model has the figure, as of a teacher or of labels


@dataclass(frozen=True)
class Cell:
    """A figure and its standard error, as shown; "" where no error was measured. ``interval`` is a share's, of 95%."""

    value: str
    error: str
    interval: str = ""


_COLUMNS = (
    Column("forward_kl_nats", "forward KL (nats)", ("forward", "KL, nats"), "lower", significant, always=False),
    Column("reverse_kl_nats", "reverse KL (nats)", ("reverse", "KL, nats"), "lower", significant, always=False),
    Column("top1_agreement", "top-1 agreement", ("top-1", "agrees"), "higher", percent, always=False),
    Column("acceptance_rate", "acceptance rate", ("accept.", "rate"), "higher", percent, always=False),
    Column("perplexity", "perplexity", ("perplex-", "ity"), "lower", significant),
    Column("rouge_l", "Rouge-L", ("Rouge-L", ""), "higher", significant),
    Column("rouge_l_sampled", "Rouge-L (sampled)", (), "higher", significant, always=False),
    Column("accuracy", "accuracy", ("accur-", "acy"), "higher", percent, always=False),
    Column("rationale_rouge_l", "Rouge-L (rationale)", (), "higher", significant, always=False),
    Column("num_parameters", "parameters", ("params", ""), "", scaled),
    Column("size_on_disk_bytes", "size on disk", (), "", size),
    Column("tokens_per_s", "tokens per s", ("tokens", "per s"), "higher", significant),
)


def column(key: str) -> Column | None:
    """The column of a figure, by its key."""
    return next((one for one in _COLUMNS if one.key == key), None)


def columns(run: Run) -> tuple[Column, ...]:
    """The columns of a run's table: those that every table has, and those of which there is a figure."""
    return columns_of(run.evaluations().values())


def columns_of(measured: Collection[dict[str, Any]]) -> tuple[Column, ...]:
    """The same of models by their figures."""
    return tuple(one for one in _COLUMNS if one.always or any(number(row.get(one.key)) is not None for row in measured))


def rows(run: Run, shown: tuple[Column, ...] | None = None) -> Iterator[tuple[str, list[Cell]]]:
    """The key of each model that was measured, and its cells, in all columns where none are named."""
    chosen = columns(run) if shown is None else shown
    for model, figures in run.evaluations().items():
        yield model, [cell(column.key, column.shown, figures) for column in chosen]


def rich_table(run: Run) -> Table:
    """The table for a terminal of 80 characters."""
    from rich.table import Table
    from rich.text import Text

    shown = _that_fit(columns(run))
    # Text, not strings: rich would read [brackets] in a name as its markup.
    table = Table(title=Text(one_line(run.name)), box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    table.caption = Text("lower, higher: which way is better") if run.evaluations() else Text("nothing measured yet")
    table.caption_justify = table.title_justify = "left"
    table.add_column(Text(""), no_wrap=True)
    for column in shown:
        heading = Text("\n".join((*column.short, "")))
        table.add_column(heading.append(column.better, style="dim"), justify="right", no_wrap=True)
    for model, cells in rows(run, shown):
        style = "bold" if model == "student_after" else ""
        table.add_row(Text(MODEL_NAMES[model]), *(Text(cell.value) for cell in cells), style=style)
    return table


def _that_fit(all_of_them: tuple[Column, ...]) -> tuple[Column, ...]:
    """Those that a terminal has room for: with accuracy among them, the acceptance rate gives up its own."""
    short = tuple(column for column in all_of_them if column.short)
    gives_way = "acceptance_rate" if any(column.key == "accuracy" for column in short) else ""
    return tuple(column for column in short if column.key != gives_way)


def cell(key: str, shown: Callable[[Any], str], figures: dict[str, Any]) -> Cell:
    """One figure of a model, with its error or interval."""
    value = shown(figures.get(key))
    low, high = (number(figures.get(f"{key}_{end}")) for end in ("low", "high"))
    if low is not None and high is not None and value != MISSING:
        return Cell(value, "", f"{shown(low)} to {shown(high)}")
    error = number(figures.get(f"{key}_stderr"))
    # An error of 0, but for rounding, belongs to figures that are exact, such as a teacher compared with itself.
    if error is None or error < 1e-6 or value == MISSING:
        return Cell(value, "")
    return Cell(value, percent(error) if shown is percent else significant(error, 2))
