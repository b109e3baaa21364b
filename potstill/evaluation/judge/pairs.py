"""Pairs for a judge: of each item of an evaluated suite, what one model said beside the reference or another model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from potstill.data.reader import BadRow, read_rows
from potstill.errors import ConfigError, DataError
from potstill.evaluation.judge.lines import by_id, read_lines
from potstill.evaluation.judge.prompt import fence_token, judge_prompt, ours_first
from potstill.run import write_text

REFERENCE = "reference"
JUDGED = ("instruction", "summaries")  # protocols whose answers are prose


class Pair(BaseModel):
    """A line of a pairs file: an item, the two candidates, and what a judge is asked about them.

    ``ours_is_first``: which place each has in ``prompt``. ``ours_from``, ``theirs_from``: who wrote them.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: str
    suite: str
    ours_from: str
    theirs_from: str
    ours_is_first: bool
    question: str
    ours: str
    theirs: str
    prompt: str = Field(min_length=1)

    @property
    def prompt_sha256(self) -> str:
        return sha256(self.prompt.encode()).hexdigest()


def make_pairs(ours: Path, against: str | Path = REFERENCE, *, prediction: str = "greedy", seed: int = 0) -> list[Pair]:
    """A pair for each item of a result, in its order.

    Args:
        ours: the folder of a result of ``evaluate``, of a suite whose answers are prose.
        against: "reference" (the first one of each item), or the folder of another model's result on the same items.
        prediction: which of a model's answers: greedy, or seed_10 and so on.
        seed: of the fences and of which candidate stands first.
    Raises: DataError for a result that is not whole or of another kind; ConfigError for two results that do not match.
    """
    told, rows = _result(ours)
    if str(against) == REFERENCE:
        theirs_from = REFERENCE
        theirs = {name: (question, _reference(row, where)) for name, (where, row, question) in rows.items()}
    else:
        other, others = _result(Path(against))
        _check_match(told, other, ours, Path(against))
        if gone := rows.keys() - others.keys():
            raise DataError(f"{against} has no row {min(gone)!r}", "remove the folder and evaluate again")
        theirs_from = f"{other['model']['name']}, {prediction}"
        theirs = {name: (asked, _said(row, where, prediction)) for name, (where, row, asked) in others.items()}
    ours_from = f"{told['model']['name']}, {prediction}"
    return [
        # A model with a short window was asked a shortened question; the judge reads the longer of the two.
        pair_of(
            name,
            max(question, theirs[name][0], key=len),
            _said(row, where, prediction),
            theirs[name][1],
            seed=seed,
            suite=told["suite"],
            ours_from=ours_from,
            theirs_from=theirs_from,
        )
        for name, (where, row, question) in rows.items()
    ]


def pair_of(
    example_id: str,
    question: str,
    ours: str,
    theirs: str,
    *,
    seed: int = 0,
    suite: str = "",
    ours_from: str = "ours",
    theirs_from: str = "theirs",
) -> Pair:
    """One pair with its prompt; characters that are no text (lone surrogates) become U+FFFD."""
    example_id, question, ours, theirs = map(_clean, (example_id, question, ours, theirs))
    lead = ours_first(seed, example_id)
    first, second = (ours, theirs) if lead else (theirs, ours)
    token = fence_token(seed, example_id, question, ours, theirs)
    return Pair(
        id=example_id,
        suite=suite,
        ours_from=ours_from,
        theirs_from=theirs_from,
        ours_is_first=lead,
        question=question,
        ours=ours,
        theirs=theirs,
        prompt=judge_prompt(question, first, second, token),
    )


def write_pairs(pairs: Sequence[Pair], file: Path) -> None:
    """Write a pairs file, whole or not at all.

    Raises: ConfigError where the file is there: answers may belong to it.
    """
    if file.exists():
        raise ConfigError(f"{file} exists already, and is not overwritten", "choose another name with --out")
    write_text(file, "".join(json.dumps(pair.model_dump(), ensure_ascii=False) + "\n" for pair in pairs))


def read_pairs(file: Path) -> dict[str, tuple[str, Pair]]:
    """The pairs of a file by id, in order, each with where it stands.

    Raises: DataError for a file that is missing or empty, a line that is no pair, and an id that stands twice.
    """
    fix = "make it with `potstill judge export RESULT --out FILE`"
    found = by_id(read_lines(file, Pair, fix=fix))
    if not found:
        raise DataError(f"{file} has no pairs", fix)
    return found


def _result(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[str, dict[str, Any], str]]]:
    """A result's settings, and by id where each row stands, the row, and what was asked."""
    if not (folder / "settings.json").is_file() or not (folder / "rows.jsonl").is_file():
        raise DataError(
            f"{folder} is not a result: it has no settings.json and rows.jsonl",
            "name one folder that `potstill evaluate --suite` made, such as evaluations/dolly-0123456789abcdef",
        )
    told = _settings(folder / "settings.json")
    if told["protocol"].split()[0] not in JUDGED:
        raise DataError(
            f"{folder} is of the suite {told['suite']}, whose answers are not prose",
            "name a result of a suite of instructions or summaries",
        )
    if not (folder / "scores.json").is_file():
        raise DataError(f"{folder} is not finished", "run the same `potstill evaluate` again: it goes on")
    return told, _rows(folder / "rows.jsonl")


def _settings(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return {
            "suite": str(told["suite"]),
            "protocol": str(told["protocol"]),
            "items_sha256": str(told["items_sha256"]),
            "model": {"name": str(told["model"]["name"])},
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is broken: {type(error).__name__} {error}", "remove its folder and evaluate again"
        ) from error


def _rows(file: Path) -> dict[str, tuple[str, dict[str, Any], str]]:
    found = {}
    for row in read_rows(file):
        where = str(file.with_name(row.where))
        if isinstance(row, BadRow):
            raise DataError(f"{where}: {row.reason}", "remove the folder and evaluate again")
        name, question = row.values.get("id"), row.values.get("input")
        if not isinstance(name, str) or not isinstance(question, str):
            raise DataError(f"{where}: id and input have to be texts", "remove the folder and evaluate again")
        found[name] = (where, row.values, question)
    if not found:
        raise DataError(f"{file} has no rows", "remove the folder and evaluate again")
    return found


def _check_match(ours: dict[str, Any], theirs: dict[str, Any], one: Path, other: Path) -> None:
    if one.resolve() == other.resolve():
        raise ConfigError(f"{one} is compared with itself", "name another model's result with --against")
    if ours["items_sha256"] != theirs["items_sha256"]:
        raise ConfigError(
            f"{one} and {other} are not of the same items", "evaluate both models on one suite with one --limit"
        )


def _said(row: dict[str, Any], where: str, prediction: str) -> str:
    said = row.get("predictions")
    texts = {name: text for name, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}
    if prediction not in texts:
        raise DataError(f"{where}: there is no prediction {prediction!r}", f"there are: {', '.join(texts) or 'none'}")
    return str(texts[prediction])


def _reference(row: dict[str, Any], where: str) -> str:
    references = row.get("references")
    if not isinstance(references, list) or not references or not isinstance(references[0], str):
        raise DataError(f"{where}: there is no reference", "compare with another result by --against FOLDER")
    return references[0]


def _clean(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
