"""What ``--dry-run`` tells: the cells of a grid, and how far each is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from potstill.errors import DataError
from potstill.stages import check_rows
from potstill.sweep.cells import Plan
from potstill.sweep.folder import Folder, Status, status_of


@dataclass(frozen=True)
class Listing:
    """Cells by name, with their settings and how far they are; and which of their rows are not on this machine."""

    metric: str
    cells: tuple[tuple[str, dict[str, str], Status], ...]
    absent: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many cells are how far."""
        return {status.value: sum(one is status for _, _, one in self.cells) for status in Status}

    def text(self) -> str:
        """A line for each cell, then their number."""
        lines = [f"{status.value:6} {name}" for name, _, status in self.cells]
        counts = ", ".join(f"{count} {status}" for status, count in self.counts().items() if count)
        absent = (f"not here: {what}" for what in self.absent)
        return "\n".join([*lines, *absent, f"{len(self.cells)} cells: {counts}; metric: {self.metric}"])

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        cells = [{"name": name, "settings": places, "status": status.value} for name, places, status in self.cells]
        return {"metric": self.metric, "counts": self.counts(), "cells": cells, "absent": list(self.absent)}


def listing(plan: Plan, folder: Folder) -> Listing:
    """The cells of a plan as they are in a folder, which need not be there."""
    records = folder.records()
    return Listing(
        plan.metric,
        tuple((folder.run(c, records.get(c.key)).path.name, dict(c.places), status_of(c, records)) for c in plan.cells),
        tuple(dict.fromkeys(_absent(plan))),
    )


def _absent(plan: Plan) -> Iterator[str]:
    """What cells would fail for: rows that are not there. A grid may be listed where its data is not."""
    for cell in plan.cells:
        try:
            check_rows(cell.recipe)
        except DataError as error:
            yield error.cause
