"""Ask a judge about every pair: several at a time, again where a failure may pass, and nothing twice.

Answers are written as they come, a line each, so a command that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import DataError
from potstill.evaluation.judge.answers import Answer
from potstill.evaluation.judge.lines import by_id, read_lines
from potstill.evaluation.judge.pairs import Pair
from potstill.served.asking import Manner, Question, answers
from potstill.served.endpoint import Endpoint, Reply
from potstill.served.keeping import alone, end_last_line

SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 256}


@dataclass(frozen=True)
class Asked:
    """How it went: answers that were there, answers that came, pairs without one and why."""

    num_kept: int
    num_new: int
    num_cut: int  # of the new ones, cut at max_tokens
    unanswered: dict[str, str]


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
    manner = Manner(request, concurrency, attempts, backoff, say=say)
    with alone(out):
        there = _kept(out, pairs, request)
        missing = {pair.id: pair for pair in pairs if pair.id not in there}
        num_new, num_cut, unanswered = 0, 0, dict[str, str]()
        questions = [Question(pair.id, (("user", pair.prompt),)) for pair in missing.values()]
        for question, found in answers(questions, endpoint, manner, num_kept=len(there)):
            if isinstance(found, str):
                unanswered[question.id] = found
                continue
            _write(out, missing[question.id], found, request)
            num_new += 1
            num_cut += found.finish_reason == "length"
            answered = len(there) + num_new
            if answered % max(1, len(pairs) // 20) == 0 or answered == len(pairs):
                say(f"judge: {answered} of {len(pairs)} answered")
        return Asked(len(there), num_new, num_cut, unanswered)


def _write(out: Path, pair: Pair, reply: Reply, request: Mapping[str, Any]) -> None:
    line = {
        "id": pair.id,
        "answer": reply.text,
        "prompt_sha256": pair.prompt_sha256,
        "request": dict(request),
        "served_model": reply.model,
        "finish_reason": reply.finish_reason,
    }
    with open(out, "a", encoding="utf-8", newline="\n") as handle:
        handle.write(json.dumps(line) + "\n")


def _kept(out: Path, pairs: Sequence[Pair], request: Mapping[str, Any]) -> set[str]:
    """The ids that are answered; a last line that was cut is taken away first."""
    if not out.exists():
        return set()
    end_last_line(out)
    hashes = {pair.id: pair.prompt_sha256 for pair in pairs}
    there = by_id(read_lines(out, Answer, fix=""))
    for name, (where, answer) in there.items():
        if answer.prompt_sha256 is not None and answer.prompt_sha256 != hashes.get(name):
            raise DataError(f"{where} is an answer to other pairs", "choose another file with --out")
        if answer.request is not None and answer.request != request:
            raise DataError(
                f"{where} was asked of {json.dumps(answer.request)}, not of {json.dumps(dict(request))}",
                "choose another file with --out: answers of two judges are not added up",
            )
    return set(there) & set(hashes)
