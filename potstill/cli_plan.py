"""``potstill plan``: what a recipe will take, before it is run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from potstill.cli_options import Format, FormatOption, RemoteCode

EPILOG = (
    "Examples:\n\n"
    "`potstill plan kd`\n\n"
    "`potstill plan kd teacher=models/big student.keep_layers=12 data=rows.jsonl budget.epochs=2`\n\n"
    "`potstill plan my-recipe.yaml --format json`"
)


def plan(
    recipe: Annotated[str, typer.Argument(metavar="METHOD|RECIPE.yaml", help="A built-in method or a recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe.")
    ] = None,
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Say what a recipe will take on this machine, time, memory and disk, from a few steps of it; nothing is kept."""
    from potstill import api, recipe_io
    from potstill.checks.planning.told import told

    settings = recipe_io.parse_overrides(overrides or [])
    found = api.plan(recipe, allow_remote_code=allow_remote_code, **settings)
    print(json.dumps(found.as_data(), indent=2) if format is Format.json else told(found))
