"""One model on one suite: a function of model, items and settings, so computed once, and gone on with where it stopped.

evaluations/<key>/
  settings.json   what the figures depend on: model, suite, items, how it was asked
  rows.jsonl      a line for each item, as it was answered: input, references, predictions, scores
  scores.json     figures with intervals, written last
  .lock           held by the process that is at it
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from potstill.data.catalogue.item import Item
from potstill.data.shorten import fitted
from potstill.evaluation.suites.items import check_ids, items_of
from potstill.evaluation.suites.kept import alone, usable_rows, whole, write_rows
from potstill.evaluation.suites.subject import Subject, open_subject
from potstill.evaluation.suites.suite import Row, Scores, Settings, Suite
from potstill.models.fingerprint import fingerprint_of
from potstill.run import read_jsonl, write_text

AT_ONCE = 16  # items between two writes to the disk


@dataclass(frozen=True)
class Result:
    """A model's figures on a suite, and where its rows are."""

    folder: Path
    settings: dict[str, Any]
    scores: Scores

    @property
    def model(self) -> str:
        return str(self.settings["model"]["name"])

    @property
    def suite(self) -> str:
        return str(self.settings["suite"])

    @property
    def rows(self) -> list[Row]:
        return list(read_jsonl(self.folder / "rows.jsonl"))


def evaluate_models(
    names: Sequence[str],
    suites: Sequence[Suite],
    *,
    root: Path,
    limit: int | None = None,
    file: Path | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    batch_size: int = 8,
    allow_remote_code: bool = False,
) -> list[Result]:
    """Every model on every suite, each model loaded once and only if one of its results is not there yet.

    Args:
        names: embedded names, folders, .gguf files or hub ids.
        suites: what they are asked.
        root: where results are kept.
        limit, file, folder: which items; see ``items_of``.
        device: of the models. batch_size: texts at a time. allow_remote_code: run Python that comes with a model.
    Returns: results, model by model, in the order of the suites.
    Raises: ConfigError, DataError, ModelError.
    """
    items = [items_of(suite, limit=limit, file=file, folder=folder) for suite in suites]  # before anything is loaded
    for suite, some in zip(suites, items, strict=True):
        check_ids(some, suite.name)
    found = []
    for name in names:
        identity = {"name": name, "fingerprint": fingerprint_of(name)}
        load = partial(open_subject, name, device=device, batch_size=batch_size, allow_remote_code=allow_remote_code)
        subject = cache(load)
        found += [evaluate_suite(subject, identity, *pair, root) for pair in zip(suites, items, strict=True)]
        subject.cache_clear()
    return found


def evaluate_suite(
    subject: Callable[[], Subject], identity: dict[str, str], suite: Suite, items: Sequence[Item], root: Path
) -> Result:
    """Ask a model about the items, or read what it answered before.

    Args:
        subject: gives the model; not called where the result is there already.
        identity: what the model is known by: its name and fingerprint.
        suite: how it is asked.
        items: in order, already cut to as many as are wanted.
        root: where results are kept.
    Returns: the figures, those of ``suite.protocol`` with ``seconds`` and how many inputs were shortened.

    Two processes may want one result: the second waits for the first and reads it. A file that was damaged is made
    again, and the items whose rows are lost are asked again.
    """
    told = describe(identity, suite, items)
    # A result is kept under what it depends on; the name it was made under is only for people.
    folder = root / f"{suite.name}-{key_of(told)[:16]}"
    ids = [item.id for item in items]
    scores = whole(folder, told, ids)
    if scores is None:
        with alone(folder, f"{suite.name}: {identity['name']}"):
            scores = whole(folder, told, ids)  # which another process has made meanwhile
            if scores is None:
                scores = _made(subject, told, suite, items, folder)
    _say(f"{suite.name}: {identity['name']} done, {folder}")
    return Result(folder, told, scores)


def _made(
    subject: Callable[[], Subject], told: dict[str, Any], suite: Suite, items: Sequence[Item], folder: Path
) -> Scores:
    """Ask what is not on the disk yet, and write the figures of all rows."""
    write_text(folder / "settings.json", json.dumps(told, indent=2) + "\n")
    rows = _asked(subject, suite, items, folder / "rows.jsonl")
    scores = suite.protocol.scores(rows, suite.settings) | _told_of_rows(rows)
    text = json.dumps(scores, indent=2)
    write_text(folder / "scores.json", text + "\n")
    read_again: Scores = json.loads(text)  # the same whether it was made now or before: lists where tuples were
    return read_again


def describe(identity: dict[str, str], suite: Suite, items: Sequence[Item]) -> dict[str, Any]:
    """What a result depends on, and nothing else."""
    text = json.dumps([asdict(item) for item in items], sort_keys=True)
    return {
        "model": identity,
        "suite": suite.name,
        "dataset": suite.dataset,
        "splits": list(suite.splits),
        "protocol": f"{type(suite.protocol).__name__.lower()} {suite.protocol.version}",
        "settings": suite.settings.told(),
        "num_items": len(items),
        "items_sha256": sha256(text.encode()).hexdigest(),
    }


def key_of(told: dict[str, Any]) -> str:
    """The name a result is kept under: of what it depends on, but not of what the model was called."""
    known = told | {"model": told["model"]["fingerprint"]}
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _asked(subject: Callable[[], Subject], suite: Suite, items: Sequence[Item], file: Path) -> list[Row]:
    """The rows of all items; those on the disk are not asked again."""
    ids = [item.id for item in items]
    there, damaged = usable_rows(file, ids)
    if damaged:
        _say(f"{file}: {damaged} damaged line{'s' * (damaged > 1)} left out; what is missing is asked again")
    write_rows(file, list(there.values()))  # without a line that was cut
    missing = [item for item in items if item.id not in there]
    if missing:
        asked = subject().with_template(suite.settings.template)
        with open(file, "a", encoding="utf-8", newline="\n") as handle:
            for start in range(0, len(missing), AT_ONCE):
                for row in _some(asked, suite, missing[start : start + AT_ONCE]):
                    there[row["id"]] = row
                    handle.write(json.dumps(row) + "\n")
                handle.flush()
                _say(f"{suite.name}: {len(there)} of {len(items)} answered")
    rows = [there[id] for id in ids]
    if list(there) != ids:  # those asked again stand at the end
        write_rows(file, rows)
    return rows


def _some(subject: Subject, suite: Suite, items: Sequence[Item]) -> list[Row]:
    """Rows of a few items, their inputs shortened where they are too long for the suite."""
    begun = time.perf_counter()
    cut = [(item, 0) for item in items]
    if suite.protocol.shortens:
        cut = [
            fitted(item, subject.tokenizer, subject.template, _room(subject, item, suite.settings)) for item in items
        ]
    rows = suite.protocol.ask(subject, [item for item, _ in cut], suite.settings)
    seconds = (time.perf_counter() - begun) / len(items)
    return [
        row | {"tokens_left_out": dropped, "seconds": round(seconds, 4)}
        for row, (_, dropped) in zip(rows, cut, strict=True)
    ]


def _room(subject: Subject, item: Item, settings: Settings) -> int:
    """Tokens of the item's own prompt that the model has room for inside the longest frame. Raises: ModelError."""
    framed = (prompt for frame in settings.frames for prompt in settings.framed([item], frame))
    around = max(map(subject.num_prompt_tokens, framed)) - subject.num_prompt_tokens(item.prompt)
    return subject.room_for_prompt(settings.max_prompt_tokens, settings.max_new_tokens, around=max(around, 0))


def _told_of_rows(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "num_shortened": sum(row["tokens_left_out"] > 0 for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
