"""The built-in methods. Adding one means adding a module here that returns a Recipe, and a line below."""

from __future__ import annotations

from collections.abc import Callable

from potstill.recipe import Recipe
from potstill.recipes.kd import kd
from potstill.recipes.sft import sft

METHODS: dict[str, Callable[..., Recipe]] = {"kd": kd, "sft": sft}
