"""Figures that others published, each with its source, to be shown beside ours."""

from __future__ import annotations

from potstill.reporting.published.beside import Beside, Ours, beside
from potstill.reporting.published.loading import SHIPPED, load_published
from potstill.reporting.published.schema import HOW_SURE, Published
from potstill.reporting.published.table import HEAD, Shown, markdown, tables

__all__ = [
    "HEAD",
    "HOW_SURE",
    "SHIPPED",
    "Beside",
    "Ours",
    "Published",
    "Shown",
    "beside",
    "load_published",
    "markdown",
    "tables",
]
