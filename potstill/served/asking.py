"""Many questions to one server: several at a time, and again where a failure may pass.

What would fail for every question (no such host, key or model) stops at once; a question that fails by itself is left
out and named.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from potstill.errors import ConfigError, PotstillError
from potstill.served.endpoint import Endpoint, Failed, Reply

LONGEST_WAIT = 120.0  # seconds; a server that asks for more is asked again another day
GIVE_UP = 3  # questions in a row that stay without an answer
OWN_FAULT = (400, 413, 422)  # statuses that may be about one question


@dataclass(frozen=True)
class Question:
    """What is asked: the messages, and settings of this request over those that all have."""

    id: str
    messages: tuple[tuple[str, str], ...]  # (role, content)
    settings: Mapping[str, Any] = field(default_factory=dict)


Found: TypeAlias = tuple[Question, Reply | Exception]


@dataclass(frozen=True)
class Manner:
    """How a server is asked.

    Args:
        request: of every question: ``model``, the server's name of it, and settings.
        concurrency: questions at a time. attempts: for each. backoff: seconds before the second, then twice as long.
        who, what, option: who is asked, what about, and what names the model on the command line; for messages.
        say: told of what is tried again; called from several threads.
    """

    request: Mapping[str, Any]
    concurrency: int = 4
    attempts: int = 5
    backoff: float = 1.0
    who: str = "judge"
    what: str = "pairs"
    option: str = "--model"
    say: Callable[[str], None] = lambda text: None

    @property
    def model(self) -> str:
        return str(self.request["model"])


def answers(
    questions: Sequence[Question], endpoint: Endpoint, manner: Manner, *, num_kept: int = 0
) -> Iterator[tuple[Question, Reply | str]]:
    """Each question with its answer, or why it has none, as they come.

    The first is asked alone, so that a wrong key is found out once and not for each question.

    Args:
        num_kept: answers from before, for messages.
    Raises: ConfigError for a server that refuses every question: key, model, address, settings; PotstillError for one
        that stopped answering. What was under way then is yielded before.
    """
    pool = _Pool(endpoint, manner, num_kept)
    rest = list(questions)
    for place in range(1, len(questions) + 1):
        try:
            reply: Reply | str = pool.one(rest[0])
            pool.reached = True
            pool.num_answers += 1
        except Failed as failure:
            # A question may be refused for its own sake (too long, say), so a few are tried.
            if failure.status not in OWN_FAULT or place in (GIVE_UP, len(questions)):
                raise refusal(failure, endpoint, manner) from None
            reply = failure.cause
        yield rest.pop(0), reply
        if pool.reached:
            break
    yield from _together(rest, pool)


def _together(questions: Sequence[Question], pool: _Pool) -> Iterator[tuple[Question, Reply | str]]:
    """The rest, several at a time; what ends all is raised when what was under way is done."""
    end: Exception | None = None
    in_a_row = 0
    try:
        for question, found in pool.run(questions):
            pool.num_answers += isinstance(found, Reply)
            in_a_row = 0 if isinstance(found, Reply) else in_a_row + 1
            problem = _end(found, in_a_row, pool)
            if isinstance(found, Reply):
                yield question, found
            elif problem is None or in_a_row >= GIVE_UP:
                yield question, str(found)
            if problem is not None:
                end = end or problem
                pool.stop.set()  # what is under way is paid for, and still given out
    finally:
        pool.stop.set()
    if end is not None:
        raise end


def _end(found: Reply | Exception, in_a_row: int, pool: _Pool) -> Exception | None:
    """What to stop with, if it is to stop."""
    if isinstance(found, Reply):
        return None
    if not isinstance(found, Failed):
        return found
    if ends_all(found):
        return refusal(found, pool.endpoint, pool.manner)
    if in_a_row < GIVE_UP:
        return None
    return PotstillError(
        f"{in_a_row} {pool.manner.what} in a row stayed without an answer, the last with: {found.cause}",
        f"see to the server and run the same command again; {pool.num_answers} answers are kept",
    )


@dataclass
class _Pool:
    """Threads that ask: what is still to do, what came of it, and whether to stop."""

    endpoint: Endpoint
    manner: Manner
    num_answers: int
    todo: queue.SimpleQueue[Question] = field(default_factory=queue.SimpleQueue)
    done: queue.SimpleQueue[Found | None] = field(default_factory=queue.SimpleQueue)
    reached: bool = False  # whether there was an answer yet
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, questions: Sequence[Question]) -> Iterator[Found]:
        """What came of each question, as it comes."""
        for question in questions:
            self.todo.put(question)
        workers = min(self.manner.concurrency, len(questions))
        for _ in range(workers):
            threading.Thread(target=self._work, daemon=True).start()  # daemons do not hold up Ctrl-C
        while workers:
            if found := self.done.get():
                yield found
            else:
                workers -= 1

    def _work(self) -> None:
        try:
            while not self.stop.is_set():
                question = self.todo.get_nowait()
                try:
                    self.done.put((question, self.one(question)))
                except Exception as error:  # it is the main thread's to raise
                    if ends_all(error):
                        self.stop.set()
                    self.done.put((question, error))
        except queue.Empty:
            pass
        finally:
            self.done.put(None)

    def one(self, question: Question) -> Reply:
        """A question's answer, asked for up to ``attempts`` times.

        Raises: Failed, the last one.
        """
        messages = [{"role": role, "content": content} for role, content in question.messages]
        body = {**self.manner.request, **question.settings, "messages": messages}
        attempts = self.manner.attempts
        for attempt in range(1, attempts + 1):
            try:
                return self.endpoint.complete(body)
            except Failed as failure:
                wait = max(self.manner.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.0), failure.wait or 0.0)
                hopeless = not failure.passing or wait > LONGEST_WAIT or not (failure.reached or self.reached)
                if hopeless or attempt == attempts:
                    raise
                again = f"again in {wait:.0f} s ({attempt} of {attempts})"
                self.manner.say(f"{self.manner.who}: {question.id}: {failure.cause}; {again}")
                if self.stop.wait(wait):
                    raise
        raise AssertionError("attempts is 1 or more")


def refusal(failure: Failed, endpoint: Endpoint, manner: Manner) -> PotstillError:
    """What a failure means to the user, with the way out."""
    where, cause, option = endpoint.url, failure.cause, manner.option
    if not failure.reached:
        return ConfigError(f"nothing answers at {where} ({cause})", "start the server, or correct --url")
    if failure.status == 401:
        key = "see that the key is right" if endpoint.key else "name the variable that holds the key by --api-key-env"
        return ConfigError(f"{where} does not accept the key ({cause})", key)
    if failure.status == 403:
        return ConfigError(f"{where} does not allow this ({cause})", "see what the key may be used for")
    if failure.status == 429:
        return PotstillError(
            f"{where} takes no more questions for now ({cause})", "run the same command again later; it goes on"
        )
    if failure.status is not None and 300 <= failure.status < 400:
        return ConfigError(f"{where} sends on to another address ({cause})", "give that address by --url")
    if failure.passing:
        return PotstillError(f"{where} gave no answer ({cause})", "see to the server, and that --url ends as in /v1")
    listed = endpoint.models()
    if listed and manner.model not in listed:
        return ConfigError(
            f"{where} does not have the model {manner.model!r} ({cause})", f"{option} may be {', '.join(listed[:8])}"
        )
    if failure.status == 404:
        return ConfigError(f"{where} has no such model or no chat completions ({cause})", f"correct --url or {option}")
    return ConfigError(
        f"{where} refuses the question ({cause})",
        f"see that {option} is one of the server's, or change the request: --set max_tokens=null leaves a setting out",
    )


def ends_all(error: Exception) -> bool:
    """Whether no other question can fare better: a key not accepted, no quota left, hours to wait, a bug."""
    if not isinstance(error, Failed):
        return True
    late = error.wait is not None and error.wait > LONGEST_WAIT
    return error.status in (401, 403) or (error.status == 429 and (late or not error.passing))
