"""Ask a judge about every pair: several at a time, again where a failure may pass, and nothing twice.

Answers are written as they come, a line each, so a command that was stopped goes on where it was. What would fail for
every pair (no such host, key or model) stops at once; a pair that fails by itself is left out and named.
"""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.evaluation.judge.answers import Answer
from potstill.evaluation.judge.endpoint import Endpoint, Failed, Reply
from potstill.evaluation.judge.lines import by_id, read_lines
from potstill.evaluation.judge.pairs import Pair

LONGEST_WAIT = 120.0  # seconds; a server that asks for more is asked again another day
GIVE_UP = 3  # pairs in a row that stay without an answer
OWN_FAULT = (400, 413, 422)  # statuses that may be about one prompt
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 256}


@dataclass(frozen=True)
class Asked:
    """How it went: answers that were there, answers that came, pairs without one and why."""

    num_kept: int
    num_new: int
    num_cut: int  # of the new ones, cut at max_tokens
    unanswered: dict[str, str]


@dataclass
class _Pool:
    """Threads that ask: what is still to do, what came of it, and whether to stop."""

    endpoint: Endpoint
    request: Mapping[str, Any]
    attempts: int
    backoff: float
    say: Callable[[str], None]
    todo: queue.SimpleQueue[Pair] = field(default_factory=queue.SimpleQueue)
    done: queue.SimpleQueue[tuple[Pair, Reply | Exception] | None] = field(default_factory=queue.SimpleQueue)
    reached: bool = False  # whether there was an answer yet
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, pairs: Sequence[Pair], workers: int) -> Iterator[tuple[Pair, Reply | Exception]]:
        """What came of each pair, as it comes."""
        for pair in pairs:
            self.todo.put(pair)
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
                pair = self.todo.get_nowait()
                try:
                    self.done.put((pair, self.one(pair)))
                except Exception as error:  # it is the main thread's to raise
                    if ends_all(error):
                        self.stop.set()
                    self.done.put((pair, error))
        except queue.Empty:
            pass
        finally:
            self.done.put(None)

    def one(self, pair: Pair) -> Reply:
        """A pair's answer, asked for up to ``attempts`` times.

        Raises: Failed, the last one.
        """
        body = {**self.request, "messages": [{"role": "user", "content": pair.prompt}]}
        for attempt in range(1, self.attempts + 1):
            try:
                return self.endpoint.complete(body)
            except Failed as failure:
                wait = max(self.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.0), failure.wait or 0.0)
                hopeless = not failure.passing or wait > LONGEST_WAIT or not (failure.reached or self.reached)
                if hopeless or attempt == self.attempts:
                    raise
                self.say(f"judge: {pair.id}: {failure.cause}; again in {wait:.0f} s ({attempt} of {self.attempts})")
                if self.stop.wait(wait):
                    raise
        raise AssertionError("attempts is 1 or more")


def ask(
    pairs: Sequence[Pair],
    endpoint: Endpoint,
    model: str,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    concurrency: int = 4,
    attempts: int = 5,
    backoff: float = 1.0,
    say: Callable[[str], None] = lambda text: None,
) -> Asked:
    """Ask about the pairs that have no answer in ``out`` yet.

    Args:
        pairs: with ids of their own. model: the server's name of the judge.
        out: lines of ``Answer``; made, or gone on with.
        settings: of the request beside model and messages, over temperature 0 and 256 tokens; None leaves one out.
        concurrency: questions at a time. attempts: for each. backoff: seconds before the second, then twice as long.
        say: told how far it is, and of what is tried again; called from several threads.
    Raises: ConfigError for a server that refuses every question: key, model, address, settings; DataError where ``out``
        holds answers of another judge or to other pairs; PotstillError for a server that stopped answering.
    """
    chosen = {"model": model, **SETTINGS, **(settings or {})}
    request = {name: value for name, value in chosen.items() if value is not None}
    with _alone(out):
        there = _kept(out, pairs, request)
        missing = [pair for pair in pairs if pair.id not in there]
        if not missing:
            return Asked(len(there), 0, 0, {})
        pool = _Pool(endpoint, request, attempts, backoff, say)
        return _Keeper(pool, out, len(there), len(pairs), say).keep(missing, concurrency)


class _Keeper:
    """Writes down what comes, and decides what is the end of it."""

    def __init__(self, pool: _Pool, out: Path, num_kept: int, num_pairs: int, say: Callable[[str], None]):
        self._pool, self._out, self._say = pool, out, say
        self._num_kept, self._num_pairs, self._num_new, self._num_cut = num_kept, num_pairs, 0, 0
        self._unanswered: dict[str, str] = {}
        self._in_a_row = 0

    def keep(self, missing: Sequence[Pair], concurrency: int) -> Asked:
        rest = self._first(missing)
        end: Exception | None = None
        try:
            for pair, found in self._pool.run(rest, min(concurrency, len(rest))):
                problem = self._take(pair, found)
                if problem is not None:
                    end = end or problem
                    self._pool.stop.set()  # what is under way is paid for, and still written down
        finally:
            self._pool.stop.set()
        if end is not None:
            raise end
        return Asked(self._num_kept, self._num_new, self._num_cut, self._unanswered)

    def _first(self, missing: Sequence[Pair]) -> Sequence[Pair]:
        """Ask alone until there is an answer, and return the rest: a wrong key is found out once, not for each pair.

        A pair may be refused for its own sake (too long, say), so up to GIVE_UP are tried.
        """
        for place, pair in enumerate(missing, start=1):
            try:
                self._write(pair, self._pool.one(pair))
                self._pool.reached = True
                return missing[place:]
            except Failed as failure:
                if failure.status not in OWN_FAULT or place in (GIVE_UP, len(missing)):
                    raise refusal(failure, self._pool.endpoint, str(self._pool.request["model"])) from None
                self._unanswered[pair.id] = failure.cause
        return []

    def _take(self, pair: Pair, found: Reply | Exception) -> Exception | None:
        """Write an answer down; for a failure, what to stop with, if it is to stop."""
        if isinstance(found, Reply):
            self._in_a_row = 0
            self._write(pair, found)
            return None
        if not isinstance(found, Failed):
            return found
        if ends_all(found):
            return refusal(found, self._pool.endpoint, str(self._pool.request["model"]))
        self._unanswered[pair.id] = found.cause
        self._in_a_row += 1
        if self._in_a_row < GIVE_UP:
            return None
        return PotstillError(
            f"{self._in_a_row} pairs in a row stayed without an answer, the last with: {found.cause}",
            f"see to the server and run the same command again; {self._num_kept + self._num_new} answers are kept",
        )

    def _write(self, pair: Pair, reply: Reply) -> None:
        line = {
            "id": pair.id,
            "answer": reply.text,
            "prompt_sha256": pair.prompt_sha256,
            "request": dict(self._pool.request),
            "served_model": reply.model,
            "finish_reason": reply.finish_reason,
        }
        with open(self._out, "a", encoding="utf-8", newline="\n") as handle:
            handle.write(json.dumps(line) + "\n")
        self._num_new += 1
        self._num_cut += reply.finish_reason == "length"
        answered = self._num_kept + self._num_new
        if answered % max(1, self._num_pairs // 20) == 0 or answered == self._num_pairs:
            self._say(f"judge: {answered} of {self._num_pairs} answered")


def refusal(failure: Failed, endpoint: Endpoint, model: str) -> PotstillError:
    """What a failure means to the user, with the way out."""
    where, cause = endpoint.url, failure.cause
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
    if listed and model not in listed:
        return ConfigError(
            f"{where} does not have the model {model!r} ({cause})", f"--model may be {', '.join(listed[:8])}"
        )
    if failure.status == 404:
        return ConfigError(f"{where} has no such model or no chat completions ({cause})", "correct --url or --model")
    return ConfigError(
        f"{where} refuses the question ({cause})",
        "see that --model is one of the server's, or change the request: --set max_tokens=null leaves a setting out",
    )


def ends_all(error: Exception) -> bool:
    """Whether no other pair can fare better: a key that is not accepted, no quota left, hours to wait, a bug."""
    if not isinstance(error, Failed):
        return True
    late = error.wait is not None and error.wait > LONGEST_WAIT
    return error.status in (401, 403) or (error.status == 429 and (late or not error.passing))


def _kept(out: Path, pairs: Sequence[Pair], request: Mapping[str, Any]) -> set[str]:
    """The ids that are answered; a last line that was cut is taken away first."""
    if not out.exists():
        return set()
    _end_last_line(out)
    hashes = {pair.id: pair.prompt_sha256 for pair in pairs}
    answers = by_id(read_lines(out, Answer, fix=""))
    for name, (where, answer) in answers.items():
        if answer.prompt_sha256 is not None and answer.prompt_sha256 != hashes.get(name):
            raise DataError(f"{where} is an answer to other pairs", "choose another file with --out")
        if answer.request is not None and answer.request != request:
            raise DataError(
                f"{where} was asked of {json.dumps(answer.request)}, not of {json.dumps(dict(request))}",
                "choose another file with --out: answers of two judges are not added up",
            )
    return set(answers) & set(hashes)


def _end_last_line(out: Path) -> None:
    """Take away a last line that a crash cut; end one that a person left without a line break."""
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    last = content[len(whole) :]
    if not last:
        return
    with open(out, "r+b") as handle:
        try:
            json.loads(last)
            handle.seek(0, 2)
            handle.write(b"\n")
        except ValueError:
            handle.truncate(len(whole))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One command at a time writes answers: two would pay for each twice."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), blocking=False):
            yield
    except Timeout:
        raise ConfigError(f"another command is writing {out}", "wait for it, or choose another file") from None
