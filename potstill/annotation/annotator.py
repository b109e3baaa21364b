"""Who is asked: whatever writes texts to prompts, and perhaps says how likely it finds a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from potstill.annotation.templates import Turns
from potstill.data.order import seed_of


@dataclass(frozen=True)
class Asked:
    """One question: the ``sample``-th about a row, with the conversation that ends in it, and the seed of its draws."""

    id: str
    sample: int
    turns: Turns
    seed: int


@dataclass(frozen=True)
class Written:
    """What was written. ``finished``: its end was written too. ``problem``: why there can be no text, where so."""

    text: str
    finished: bool
    problem: str | None = None


class Annotator(Protocol):
    """A model that is asked.

    ``at_a_time``: questions that it is handed, and answers, together; None where it is handed all of them and answers
    one by one. ``scores``: whether it can say how likely a text is.
    """

    @property
    def at_a_time(self) -> int | None: ...

    @property
    def scores(self) -> bool: ...

    def write(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Written | str]]:
        """Each question with what was written, in any order; a text where there is no answer this time, and why.

        A draw depends on its question's seed, and on nothing that stands beside it.
        """

    def nats(self, asked: Sequence[Asked], texts: Sequence[str]) -> list[float | None]:
        """How unlikely each text is as the answer to its question, its end not asked for; None where it is too long.

        Raises: ConfigError where ``scores`` is false.
        """


def draw_seed(seed: int, id: str, sample: int) -> int:
    """The seed of one draw: of the command's seed, the row's id and the sample's number, and of nothing else."""
    return seed_of("annotation", seed, id, sample)
