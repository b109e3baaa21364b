"""A grid: which recipe, which settings, and along which axes they change; with the lines of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.recipe_errors import KeyPath, Mark
from potstill.recipe_yaml import Layer, complain

STRUCTURE = ("method", "recipe", "set", "axes", "skip")  # with a mistake in these there are no cells to check


@dataclass(frozen=True)
class Value:
    """A place on an axis: what it is called, the settings it stands for, and where they are in the file."""

    label: str
    settings: Mapping[str, Any]
    path: KeyPath
    is_named: bool = False
    raw: Any = None  # as written, of a plain value

    def place(self, key: str) -> KeyPath:
        """Where in the file a setting of this value stands."""
        return (*self.path, key) if self.is_named else self.path


@dataclass(frozen=True)
class Grid:
    """A grid file, read. ``layer`` holds its lines, and the mistakes found so far."""

    file: Path
    layer: Layer
    method: str | None = None
    recipe: str | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    metric: str | None = None
    replicates: str | None = None
    x: str | None = None
    against: Mapping[str, str] = field(default_factory=dict)  # axis: label
    skip: tuple[Mapping[str, str], ...] = ()
    jobs: int = 1

    @property
    def has_cells(self) -> bool:
        """Whether all that cells are made of could be read."""
        return bool(self.axes) and not any(not issue.path or issue.path[0] in STRUCTURE for issue in self.layer.issues)

    def mark(self, path: KeyPath, *, at_key: bool = False) -> Mark:
        """Line and column of a path, or of the nearest thing around it that the file has."""
        for cut in range(len(path), -1, -1):
            if span := self.layer.spans.get(path[:cut]):
                return span.key if at_key or cut < len(path) else span.value
        return (1, 1)

    def wrong(self, path: KeyPath, cause: str, fix: str | None = None, *, at_key: bool = False) -> None:
        """Note a mistake."""
        complain(self.layer, path, self.mark(path, at_key=at_key), cause, fix)


def label_of(value: Any) -> str:
    """A value as tables and names show it."""
    return value if isinstance(value, str) else json.dumps(value)
