"""A model behind an OpenAI-compatible server as an annotator. It writes; how likely it finds a text it does not say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from potstill.annotation.annotator import Asked, Written
from potstill.errors import ConfigError
from potstill.served.asking import Manner, Question, answers
from potstill.served.endpoint import Endpoint

SEEDS = 2**31  # what servers take


@dataclass(frozen=True)
class ServedAnnotator:
    """A server, and how it is asked."""

    endpoint: Endpoint
    manner: Manner

    @property
    def at_a_time(self) -> int | None:
        return None

    @property
    def scores(self) -> bool:
        return False

    def write(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Written | str]]:
        """As the protocol says; a seed is sent where there is something to draw, and it is the server's to heed.

        Raises: ConfigError, PotstillError as ``served.asking.answers`` does.
        """
        drawn = self.manner.request.get("temperature") != 0
        keys = {f"{one.id} (sample {one.sample})": one for one in asked}
        questions = [Question(key, one.turns, {"seed": one.seed % SEEDS} if drawn else {}) for key, one in keys.items()]
        for question, found in answers(questions, self.endpoint, self.manner):
            one = keys[question.id]
            if isinstance(found, str):
                yield one, found
            elif found.finish_reason == "content_filter":
                yield one, Written("", False, "the server's content filter")
            else:
                yield one, Written(found.text.strip(), found.finish_reason == "stop")

    def nats(self, asked: Sequence[Asked], texts: Sequence[str]) -> list[float | None]:
        """Raises: ConfigError."""
        raise ConfigError(
            "the likeliest label is asked for, and a server of chat completions does not say how likely a text is",
            "add --choose parse to read the label from what is written, or use a local teacher",
        )
