"""Runs side by side: one table, what in it is more than chance, what cannot be compared, and the answers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.errors import ConfigError
from potstill.reporting.comparison import gathered, notes
from potstill.reporting.comparison.gathered import Results
from potstill.reporting.comparison.samples import Sample
from potstill.reporting.comparison.table import Entry, Table, tabulate
from potstill.reporting.published import Beside, Published, beside
from potstill.run import Run


@dataclass(frozen=True)
class Comparison:
    """All that the table and the page show.

    Args:
        table: models, figures and their statistics.
        notes: what cannot be compared, and what the figures do not say, in plain sentences.
        hygiene: what was chosen on which rows, and how often the test rows were looked at.
        samples: what models answered, by source; the most disputed first.
        published: lines of published figures beside ours.
    """

    table: Table
    notes: tuple[str, ...]
    hygiene: tuple[str, ...]
    samples: tuple[Sample, ...]
    published: tuple[Beside, ...] = ()


def compare(
    runs: Sequence[Run],
    results: Results | None = None,
    *,
    baseline: Entry | None = None,
    published: Sequence[Published] = (),
) -> Comparison:
    """Put runs side by side: their own held-out rows, and suites where they were asked some.

    Args:
        runs: in the order of the table.
        results: of suites, by the key of the model, as ``entries`` gives them.
        baseline: the model that the others are set against; see ``baseline_of``.
        published: figures of others to stand beside ours.
    """
    entries, found = gathered.entries(runs), results or {}
    measures = [*gathered.own_measures(runs, entries), *gathered.suite_measures(found, runs)]
    return Comparison(
        table=tabulate(entries, measures, baseline or baseline_of(entries)),
        notes=tuple(notes.notes(runs, entries, found)),
        hygiene=tuple(notes.hygiene(runs, found)),
        samples=tuple(gathered.samples(runs, entries, found)),
        published=tuple(beside(published, gathered.ours(runs, entries, found))) if published else (),
    )


def baseline_of(entries: Sequence[Entry], wanted: str | None = None) -> Entry | None:
    """The model that is asked for; otherwise the first fine-tuned one, or the untouched student where there is none.

    Args:
        wanted: its name in the table, ``run:untouched`` and so on, or a name such as "untouched student" that stands
            before a run's path where there are several.
    Raises: ConfigError for a model that is not there.
    """
    if wanted is not None:
        names = (wanted, f"{wanted} student", f"{wanted}:student")
        for entry in entries:
            if {entry.name, entry.name.partition(" (")[0], entry.key, entry.key.rpartition("/")[2]} & set(names):
                return entry
        known = "; ".join(entry.name for entry in entries)
        raise ConfigError(f"no model of the table is called {wanted!r}", f"it is one of: {known}")
    ranks = (lambda e: e.role == "sft", lambda e: e.is_sft, lambda e: e.role == "untouched")
    return next((entry for rank in ranks for entry in entries if rank(entry)), None)
