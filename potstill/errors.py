"""Every failure a user can cause or meet: one class each, a cause, a fix and an exit code.

Exit codes: 0 done, 1 failed, 2 the user's mistake, 75 stopped by SIGTERM with everything saved, 130 by Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar


class PotstillError(Exception):
    """A failure with a one-line cause and, where there is one, a one-line fix.

    Args:
        cause: what is wrong, naming the file, line and field where it can.
        fix: what the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, fix: str | None = None):
        super().__init__(cause)
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.cause}\n  fix: {self.fix}" if self.fix else self.cause


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe: where, what, and the way out."""

    where: str  # file:line:column, "command line", or the name of a built-in method
    key: str  # dotted path of the key, e.g. "stages.0.optimizer.learning_rate"
    cause: str
    fix: str | None = None

    def __str__(self) -> str:
        fix = f" {self.fix}" if self.fix else ""
        return f"{self.where}: {self.key}: {self.cause}.{fix}"


class ConfigError(PotstillError):
    """A recipe, an override or a command that cannot be run as written. Carries every problem found."""

    exit_code = 2

    def __init__(self, cause: str, fix: str | None = None, *, problems: tuple[Problem, ...] = ()):
        super().__init__("\n".join([cause, *map(str, problems)]), fix)
        self.problems = problems


class DataError(PotstillError):
    """Data that cannot be read or trained on."""

    exit_code = 2


class ModelError(PotstillError):
    """A model folder, file or hub name that cannot be loaded, or is not one potstill can run."""

    exit_code = 2


class TeacherError(ModelError):
    """A teacher that cannot teach this student (for instance: another tokenizer)."""


class CheckpointError(PotstillError):
    """No usable checkpoint, or one that belongs to another run."""


class CacheError(PotstillError):
    """A cache of what a teacher has said that belongs to something else, is damaged, or has no room."""

    exit_code = 2


class NumericsError(PotstillError):
    """A loss, gradient or teacher logit that is not finite. The student is left as it was before the step."""


class Stopped(PotstillError):
    """A run ended by a signal, with everything saved."""

    def __init__(self, cause: str, fix: str | None = None, *, exit_code: int):
        super().__init__(cause, fix)
        self.exit_code = exit_code  # type: ignore[misc]


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a word was probably meant to be: one that holds it, else the most alike; None without any."""
    known = list(choices)
    holding = [choice for choice in known if len(word) > 2 and word.lower() in choice.lower()]
    return next(iter(holding or get_close_matches(word.lower(), known, n=1)), None)


def nearest(word: str, known: Iterable[str]) -> str:
    """ "Did you mean 'dolly'? ", to stand before the list of what there is; empty where nothing is near."""
    near = closest(word, known)
    return f"Did you mean '{near}'? " if near else ""
