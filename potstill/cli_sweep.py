"""``potstill sweep``: a run for each combination of the settings in a grid file, and one table of them all."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli_options import Format, FormatOption, RemoteCode
from potstill.errors import ConfigError
from potstill.sweep.budgets import At

if TYPE_CHECKING:
    from potstill.sweep.cells import Plan
    from potstill.sweep.folder import Folder
    from potstill.sweep.table import Table

EPILOG = (
    "Examples:\n\n`potstill sweep grid.yaml --dry-run`  the cells, and how many are done\n\n"
    "`potstill sweep grid.yaml`  run what is left; the same command again after a stop or a crash\n\n"
    "`potstill sweep grid.yaml --jobs 4 --keep nothing`  in four processes, keeping figures and no weights\n\n"
    "`potstill sweep grid.yaml --retry`  those that failed too\n\n"
    "`potstill sweep grid.yaml --at seconds`  and a table at equal time, from the validation curves"
)


class Kept(StrEnum):
    """What is kept of a finished cell: ``Keep`` of the sweep, which is slow to import."""

    student = "student"
    nothing = "nothing"
    all = "all"


def sweep(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID.yaml", help="Method, settings, and the axes they change along.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all cells, list them, run nothing.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; else the grid's own, or 1.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run cells again that failed before.")] = False,
    keep: Annotated[
        Kept, typer.Option(help="Of finished cells. student: all but checkpoints. nothing: figures, no weights.")
    ] = Kept.student,
    at: Annotated[
        At | None, typer.Option(help="A table at equal cost too: at the most of it that all cells have reached.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The folder under sweeps/; else the grid file's name.")] = None,
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Run a recipe for every combination of a grid's settings: what is left of them, if it was begun before."""
    if not grid.is_file():
        raise ConfigError(f"{grid}: file not found", "name a grid file; docs/how-to/sweep.md has one")
    folder_name = name or grid.stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", folder_name):
        raise ConfigError(
            f"a sweep cannot be called {folder_name!r}", "give --name NAME, of letters, digits, . _ and -"
        )
    from potstill.sweep.cells import plan
    from potstill.sweep.folder import SWEEPS, Folder

    folder, planned = Folder(SWEEPS / folder_name), plan(grid)
    if at:
        from potstill.sweep.metric import check_validated

        check_validated(planned.metric, [cell.recipe for cell in planned.cells])
    if dry_run:
        from potstill.sweep.listing import listing

        told = listing(planned, folder)
        print(json.dumps(told.as_json(), indent=2) if format is Format.json else told.text())
        return
    from potstill.sweep.folder import Keep
    from potstill.sweep.sweep import Options, check_failed
    from potstill.sweep.sweep import sweep as run_sweep

    options = Options(jobs or planned.grid.jobs, Keep(keep.value), retry, allow_remote_code)
    table = run_sweep(planned, folder, options)
    if at and any(cell.value is not None for row in table.rows for cell in row.cells):
        _tell_at(at, table, planned, folder, format)
    else:
        _tell(table, planned, folder, format)
    check_failed(table)


def _tell(table: Table, planned: Plan, folder: Folder, format: Format) -> None:
    from potstill.sweep import results

    if format is Format.json:
        print(json.dumps(results.as_json(table, planned), indent=2))
    else:
        print(f"{results.markdown(table)}\npage  {folder.path / 'report.html'}")


def _tell_at(at: At, table: Table, planned: Plan, folder: Folder, format: Format) -> None:
    """Write the view of the table at equal cost, and show it in the table's place."""
    from potstill.sweep import equal_cost_results
    from potstill.sweep.equal_cost import equal_cost

    view = equal_cost(table, at)
    equal_cost_results.write_results(view, planned, folder)
    if format is Format.json:
        print(json.dumps(equal_cost_results.as_json(view, planned), indent=2))
    else:
        print(f"{equal_cost_results.markdown(view)}\nfigure  {folder.path / f'at-{at}.svg'}")
