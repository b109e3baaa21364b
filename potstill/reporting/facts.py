"""Any JSON object as titled two-column lists and cross tables, for files whose keys this room does not know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from potstill.reporting.formats import duration, percent, significant, size

UNITS = {"_bytes": size, "_s": duration, "_share": percent}  # by the end of the key


@dataclass(frozen=True)
class Block:
    """A table: without ``columns``, each row is a name and a value."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def blocks(content: Any, title: str = "") -> Iterator[Block]:
    """The object's own values first, then what is nested in it.

    Objects of objects with one set of keys (the counts of each split, say) become one table.
    """
    if not isinstance(content, dict):
        content = {"": content}
    plain = {key: value for key, value in content.items() if not isinstance(value, dict)}
    nested = {key: value for key, value in content.items() if isinstance(value, dict) and value}
    if plain:
        yield Block(title, (), tuple((label(key), shown(key, value)) for key, value in plain.items()))
    if _alike(nested):
        yield _cross_table(nested, title)
        return
    for key, value in nested.items():
        yield from blocks(value, f"{title} / {label(key)}" if title else label(key))


def label(key: str) -> str:
    """A key as words, without a unit that is shown with the value."""
    unit = next((suffix for suffix in ("_bytes", "_s") if _in_unit(key, suffix)), "")
    return key.removesuffix(unit).replace("_", " ")


def shown(key: str, value: Any) -> str:
    """A value in the unit that its key carries."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(shown("", inner) for inner in value)
    if not isinstance(value, (int, float)):
        return str(value)
    for suffix, unit in UNITS.items():
        if _in_unit(key, suffix):
            return unit(value)
    return f"{value:,}" if isinstance(value, int) else significant(value)


def _in_unit(key: str, suffix: str) -> bool:
    return key.endswith(suffix) and not key.endswith("_per_s")


def _alike(nested: dict[str, Any]) -> bool:
    """Whether these objects hold the same keys, and only values."""
    keys = {tuple(inner) for inner in nested.values()}
    flat = not any(isinstance(value, dict) for inner in nested.values() for value in inner.values())
    return flat and len(nested) > 1 and len(keys) == 1


def _cross_table(nested: dict[str, Any], title: str) -> Block:
    keys = list(next(iter(nested.values())))
    rows = tuple((label(key), *(shown(key, inner[key]) for inner in nested.values())) for key in keys)
    return Block(title, tuple(map(label, nested)), rows)
