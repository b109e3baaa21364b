"""Figures as people read them. Four significant digits; what was not measured is a dash."""

from __future__ import annotations

import math
from typing import Any

MISSING = "-"
_DECIMAL = ("", " k", " M", " G", " T")


def number(value: Any) -> float | None:
    """The value as a finite number, or None where it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def significant(value: Any, digits: int = 4) -> str:
    """0, 0.01234, 5.400, 391.9, 123,500, 1.234e+12."""
    found = number(value)
    if found is None:
        return MISSING
    rounded = float(f"{found:.{digits}g}")
    if 10 ** (digits - 1) <= abs(rounded) < 1e9:
        return f"{rounded:,.0f}"
    return f"{rounded:#.{digits}g}" if rounded else "0"


def percent(value: Any) -> str:
    """A share from 0 to 1 as 54.32%."""
    found = number(value)
    return MISSING if found is None else f"{100 * found:.2f}%"


def scaled(value: Any) -> str:
    """A count as 63.6 M."""
    return _scaled(value, "")


def size(value: Any) -> str:
    """Bytes as 127 MB (decimal, as disks are sold)."""
    return _scaled(value, "B")


def duration(value: Any) -> str:
    """Seconds as 4.2 s, 3 min 20 s or 1 h 05 min."""
    found = number(value)
    if found is None:
        return MISSING
    if found < 60:
        return f"{found:.3g} s"
    minutes, seconds = divmod(round(found), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _scaled(value: Any, unit: str) -> str:
    found = number(value)
    if found is None:
        return MISSING
    power = 0
    while abs(found) >= 999.5 and power < len(_DECIMAL) - 1:
        found, power = found / 1000, power + 1
    prefix = _DECIMAL[power] or (" " if unit else "")
    return f"{found:.3g}{prefix}{unit}"
