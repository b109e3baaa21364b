"""potstill distils large language models into small ones.

import potstill
run = potstill.train("kd", teacher="path/or/hub-id", data="rows.jsonl")
potstill.report(run)["student_after"]["forward_kl_nats"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill import objectives
    from potstill.api import build_cache, evaluate, plan, report, resume, train
    from potstill.errors import PotstillError
    from potstill.recipe import Recipe
    from potstill.run import Run

__all__ = [
    "PotstillError",
    "Recipe",
    "Run",
    "build_cache",
    "evaluate",
    "objectives",
    "plan",
    "report",
    "resume",
    "train",
]

# Looked up on first use: torch and transformers take seconds to import, and `potstill --help` needs neither.
_HOMES = {
    "plan": "potstill.api",
    "train": "potstill.api",
    "resume": "potstill.api",
    "evaluate": "potstill.api",
    "report": "potstill.api",
    "build_cache": "potstill.api",
    "PotstillError": "potstill.errors",
    "Recipe": "potstill.recipe",
    "Run": "potstill.run",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "objectives":
        return import_module("potstill.objectives")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'potstill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
