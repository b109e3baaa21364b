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
    baseline: str | None = None,
    published: Sequence[Published] = (),
) -> Comparison:
    """Put runs side by side: their own held-out rows, and suites where they were asked some.

    Args:
        runs: in the order of the table.
        results: of suites, by the key of the model, as ``entries`` gives them.
        baseline: the name of the model that the others are set against; by default the first fine-tuned one, or the
            first untouched student where there is none.
        published: figures of others to stand beside ours.
    Raises: ConfigError for a baseline that is not there.
    """
    entries, found = gathered.entries(runs), results or {}
    measures = [*gathered.own_measures(runs, entries), *gathered.suite_measures(found, runs)]
    return Comparison(
        table=tabulate(entries, measures, _baseline(entries, baseline)),
        notes=tuple(notes.notes(runs, entries, found)),
        hygiene=tuple(notes.hygiene(runs, found)),
        samples=tuple(gathered.samples(runs, entries, found)),
        published=tuple(beside(published, gathered.ours(runs, entries, found))) if published else (),
    )


def _baseline(entries: Sequence[Entry], wanted: str | None) -> Entry | None:
    """The model that is asked for; otherwise the first fine-tuned one, or the untouched student."""
    if wanted is not None:
        if named := next((e for e in entries if wanted in (e.name, e.key, e.key.rpartition("/")[2])), None):
            return named
        raise ConfigError(
            f"no model of the table is called {wanted!r}", f"one of: {'; '.join(e.name for e in entries)}"
        )
    ranks = (lambda e: e.role == "sft", lambda e: e.method == "sft", lambda e: e.role == "untouched")
    return next((entry for rank in ranks for entry in entries if rank(entry)), None)
