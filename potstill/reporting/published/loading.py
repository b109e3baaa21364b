"""Files of published figures: found by name or path, read whole, refused with every mistake by line and field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from potstill import recipe_errors as errors
from potstill import recipe_yaml
from potstill.errors import ConfigError
from potstill.recipe_errors import Issue, Origin
from potstill.recipe_yaml import Layer
from potstill.reporting.published.schema import Published, PublishedFile

ALL = "all"
FOLDER = Path(__file__).parent / "figures"
SHIPPED: dict[str, Path] = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
FORMAT = "The file has the keys about, sources, models and tables: docs/reference/published.md shows one"


def load_published(names_or_path: str) -> tuple[Published, ...]:
    """Every figure of the files named, in their order.

    Args:
        names_or_path: a file, or, with commas between them, names of SHIPPED and files. ``all`` is every shipped one.
            A name comes before a file of the same name: write ./minillm for that.
    Raises: ConfigError with every mistake of a file, each by line, column and field.
    """
    paths = dict.fromkeys(_paths(names_or_path))  # a file that is named twice is read once
    return tuple(figure for path in paths for figure in read_published(path))


def read_published(path: Path) -> tuple[Published, ...]:
    """The figures of one file, in its order.

    Raises: ConfigError, as ``load_published``.
    """
    layer = _layer(path)
    found = list(layer.issues)
    try:
        file = PublishedFile.model_validate(layer.values)
    except ValidationError as error:
        raise _refusal(layer, [*found, *errors.issues(error, PublishedFile)]) from None
    if found := [*found, *_contradictions(file)]:
        raise _refusal(layer, found)
    return tuple(
        Published(file.sources[table.source], table, row, file.models) for table in file.tables for row in table.figures
    )


def _paths(names: str) -> Iterator[Path]:
    if names not in (ALL, *SHIPPED) and _is_file(names):  # its name may hold a comma
        yield Path(names)
        return
    for name in map(str.strip, names.split(",")):
        if name == ALL:
            yield from SHIPPED.values()
        elif name in SHIPPED:
            yield SHIPPED[name]
        elif _is_file(name):
            yield Path(name)
        else:
            known = errors.did_you_mean(name, [ALL, *SHIPPED], "Name a file that exists, or one of")
            raise ConfigError(f"no file of published figures is called {errors.shown(name)}", known)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # too long for a file's name
        return False


def _layer(path: Path) -> Layer:
    try:
        return recipe_yaml.read_file(path)
    except ConfigError as error:  # its words are about recipes
        fix = error.fix if error.fix and "recipe" not in error.fix else FORMAT
        raise ConfigError(error.cause.replace("for a recipe", "for published figures"), fix) from None


def _refusal(layer: Layer, found: list[Issue]) -> ConfigError:
    origins = {path: Origin(layer.source, span, short=False) for path, span in layer.spans.items()}
    return recipe_yaml.refusal(layer.source, errors.problems(found, origins, layer.source))


def _contradictions(file: PublishedFile) -> Iterator[Issue]:
    """What is wrong between parts of a file of which each is right by itself."""
    for at, table in enumerate(file.tables):
        if table.source not in file.sources:
            fix = errors.did_you_mean(table.source, file.sources, "sources has")
            yield Issue(("tables", at, "source"), f"no source is called {table.source!r}", fix)
        seen: dict[tuple[str | None, ...], int] = {}
        for number, row in enumerate(table.figures):
            first = seen.setdefault((row.method, row.model, row.teacher, row.note), number)
            if first != number:
                cause = f"is of the same method, model, teacher and note as figure {first}"
                yield Issue(("tables", at, "figures", number), cause, "Keep one, or say in a note how they differ")
    rows = [row for table in file.tables for row in table.figures]
    models = {name for row in rows for name in (row.model, row.teacher) if name}
    for name in file.models:
        if name not in models:
            fix = errors.did_you_mean(name, models, "The figures are of")
            yield Issue(("models", name), "is the model or teacher of no figure", fix, at="key")
