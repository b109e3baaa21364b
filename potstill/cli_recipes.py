"""``potstill recipes``: the built-in recipes listed, shown and copied."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from potstill.cli_options import Format, FormatOption
from potstill.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="List, show and copy the built-in recipes.")


@app.command("ls")
def recipes_ls(format: FormatOption = Format.human) -> None:
    """List the built-in recipes."""
    from potstill.recipes import METHODS

    lines = {name: (method.__doc__ or "").strip().splitlines()[0] for name, method in METHODS.items()}
    if format is Format.json:
        print(json.dumps(lines, indent=2))
    else:
        width = max(map(len, lines))
        print("\n".join(f"{name:{width}}  {line}" for name, line in lines.items()))


@app.command("show", epilog="Example:\n\n`potstill recipes show kd`")
def recipes_show(name: str, format: FormatOption = Format.human) -> None:
    """Print a built-in recipe: what it does, its parameters, where defaults come from, then every setting."""
    from potstill import recipe_io
    from potstill.recipes import METHODS

    recipe = recipe_io.load(name, methods=METHODS)
    if format is Format.json:
        print(recipe.model_dump_json(indent=2))
        return
    prose = (sys.modules[METHODS[name].__module__].__doc__ or "").strip()
    prose += f"\n\nParameters, as in `potstill train {name} KEY=VALUE`:\n\n{parameters(METHODS[name])}"
    print("".join(f"# {line}".rstrip() + "\n" for line in prose.splitlines()), end="")
    print(recipe_io.dump(recipe), end="")


@app.command(
    "cp", epilog="Example:\n\n`potstill recipes cp kd my-recipe.yaml`, edit it, then `potstill train my-recipe.yaml`"
)
def recipes_cp(name: str, file: Path, format: FormatOption = Format.human) -> None:
    """Copy a built-in recipe to a file of your own."""
    from potstill import recipe_io
    from potstill.recipes import METHODS
    from potstill.run import write_text

    if file.exists():
        raise ConfigError(f"{file} exists already, and is not overwritten", "choose another name")
    write_text(file, recipe_io.dump(recipe_io.load(name, methods=METHODS)))
    print(
        json.dumps({"file": str(file)})
        if format is Format.json
        else f"wrote {file}; run it with `potstill train {file}`"
    )


def parameters(method: Callable[..., Any]) -> str:
    """The parameters of a recipe with their defaults, and what its docstring says of them."""
    _, _, told = inspect.cleandoc(method.__doc__ or "").partition("Args:\n")
    described = dict(line.strip().split(": ", 1) for line in told.splitlines() if ": " in line)
    defaults = {name: p.default for name, p in inspect.signature(method).parameters.items()}
    shown = {name: f"{name}={_plainly(default)}" for name, default in defaults.items()}
    width = max(map(len, shown.values()), default=0)
    return "\n".join(f"    {shown[name]:{width}}  {described.get(name, '')}" for name in defaults)


def _plainly(default: Any) -> str:
    """A default as on the command line; a section by its name, what its shorthand stands for, or its keys."""
    if hasattr(default, "name"):
        return str(default.name)
    if shorthand := getattr(default, "shorthand", None):
        default = getattr(default, shorthand)
    return json.dumps(default, default=lambda section: section.model_dump(mode="json", exclude_unset=True))
