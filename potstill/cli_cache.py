"""``potstill cache``: what teachers have said, kept on disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import Format, FormatOption, RemoteCode

LINE_EVERY_S = 10.0  # where there is no terminal

app = typer.Typer(no_args_is_help=True, help="What teachers have said, kept on disk and read instead of asked.")
Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Of a cache, or with some in it; caches/ if none.")
]


@app.command(
    epilog="Examples:\n\n`potstill cache build kd data=rows.jsonl`  and then `potstill train kd data=rows.jsonl "
    "teacher.cache=always`\n\n`potstill cache build kd signal=sampled`\n\n"
    "`torchrun --nproc-per-node 2 -m potstill cache build my-recipe.yaml`"
)
def build(
    recipe: Annotated[str, typer.Argument(metavar="METHOD|RECIPE.yaml", help="A built-in method or a recipe file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its settings.")] = None,
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Ask a recipe's teachers about all of its rows in one pass; rows that are there are not asked again."""
    from potstill import api, recipe_io
    from potstill.training.runtime import is_main

    settings = recipe_io.parse_overrides(overrides or [])
    with _progress() as watch:
        built = api.build_cache(recipe, watch=watch, allow_remote_code=allow_remote_code, **settings)
    if not is_main():
        return
    if format is Format.json:
        print(json.dumps([asdict(one) for one in built], indent=2))
        return
    for one in built:
        print(
            f"{one.stream}: {one.rows:,} rows, {one.asked:,} asked in {one.seconds:.1f} s, {one.there:,} there before"
        )
        print(f"  {one.folder}")


@app.command(epilog="Examples:\n\n`potstill cache info`\n\n`potstill cache info caches --format json`")
def info(folders: Folders = None, format: FormatOption = Format.human) -> None:
    """List caches: whose words, in which form, how many rows and bytes, when last used."""
    from potstill.teachers.cache.folders import told

    found = [told(folder) for folder in _found(folders)]
    if format is Format.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    if not found:
        print("there are no caches here; `potstill train kd teacher.cache=auto` makes one")
    for one in found:
        size = f"{one.bytes / 1e6:,.1f} MB, {one.bytes_per_token:,.1f} bytes a response token"
        unfinished = f", {one.unfinished_parts} of {one.parts} parts unfinished" if one.unfinished_parts else ""
        print(f"{one.folder}\n  {one.rows:,} rows, {one.response_tokens:,} response tokens, {size}{unfinished}")
        print(f"  {_in_words(one.key)}, of {one.teacher}; {one.seconds:,.1f} s of the teacher's work")
        print(f"  last used {_ago(one.last_used_s)}")


@app.command(epilog="Examples:\n\n`potstill cache verify`\n\n`potstill cache verify caches/big-states-0123abcd`")
def verify(folders: Folders = None) -> None:
    """Compare every row with its checksum and finished parts with their SHA-256; exits with 1 for damage."""
    from potstill.teachers.cache.folders import damage

    bad = 0
    for folder in _found(folders):
        wrong = list(damage(folder))
        bad += bool(wrong)
        print(f"{folder}: {'whole' if not wrong else 'damaged'}")
        for line in wrong:
            print(f"  {line}")
    if bad:
        print(
            "a damaged row is asked again when a run comes to it; `potstill cache prune FOLDER --yes` removes a folder"
        )
        raise typer.Exit(1)


@app.command(
    epilog="Examples:\n\n`potstill cache prune --older-than 30`  what would go\n\n"
    "`potstill cache prune --older-than 30 --yes`\n\n`potstill cache prune caches/big-states-0123abcd --yes`"
)
def prune(
    folders: Folders = None,
    older_than: Annotated[float, typer.Option(min=0, help="Days since a run has opened it.")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are listed.")] = False,
) -> None:
    """Remove caches; with --older-than those alone that no run has opened for so many days."""
    from potstill.teachers.cache.folders import remove, told, unused

    chosen = unused(_found(folders), older_than)
    for folder in chosen:
        size = remove(folder) if yes else told(folder).bytes
        print(f"{folder}: {size / 1e6:,.1f} MB {'removed' if yes else 'would go'}")
    if chosen and not yes:
        print("give --yes to remove them")
    if not chosen:
        print("nothing to remove")


def _found(folders: list[Path] | None) -> list[Path]:
    from potstill.caching import FOLDER
    from potstill.teachers.cache.folders import find

    if not folders:
        return find([FOLDER]) if FOLDER.is_dir() else []
    return find(folders)


def _in_words(key: dict[str, Any]) -> str:
    """The form, and what it depends on beside the models."""
    form = {name: key[name] for name in ("states", "logits", "k", "draws", "temperature", "seed") if name in key}
    return (
        f"{key.get('form')} ({', '.join(f'{name} {value}' for name, value in form.items())}), from {key.get('dtype')}"
    )


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """A bar for each stream on a terminal, a line now and then where there is none."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:

        def watch(name: str, count: int) -> Callable[[int], None]:
            task, begun = bars.add_task(f"asking about {name}", total=count), time.monotonic()
            last, asked = begun, 0

            def tell(done: int) -> None:
                nonlocal last, asked
                asked += done
                bars.advance(task, done)
                now = time.monotonic()
                if not sys.stderr.isatty() and now - last >= LINE_EVERY_S:
                    last, left = now, (now - begun) * (count - asked) / asked
                    print(f"{name}: {asked:,} of {count:,} rows, {left:.0f} s left", file=sys.stderr, flush=True)

            return tell

        yield watch
