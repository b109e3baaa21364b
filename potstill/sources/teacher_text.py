"""What the teacher writes to the training prompts, once, before training: kept in the run folder, with its origin.

    teacher_text/part-00000.jsonl   a line for each response, as it was written; a stopped run goes on after the last
    teacher_text/card.json          who wrote it, how, and what was left out

Each process writes the rows of its own part and then reads all parts, so all of them train on the same text.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.data.order import seed_of
from potstill.errors import DataError
from potstill.hashes import file_sha256
from potstill.run import read_jsonl, write_text
from potstill.sampling.writer import Writer

SAY_EVERY_S = 10.0
NGRAM, MOST_REPEATED = 4, 0.5  # a response is repetitive if over half of its 4-grams stood in it before


@dataclass(frozen=True)
class Place:
    """One process among several, as far as dividing work goes."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class _Line:
    """A response on disk. ``sample`` counts the responses to one prompt."""

    id: str
    sample: int
    ids: tuple[int, ...]
    finished: bool


def teacher_text(
    prompts: Sequence[Tokenised],
    writer: Writer,
    spec: recipe.RolloutSource,
    *,
    folder: Path,
    origin: dict[str, Any],
    tokenizer: Any,
    seed: int,
    place: Place = Place(),
) -> tuple[Tokenised, ...]:
    """The teacher's responses to the prompts, ``spec.samples_per_prompt`` each, less those that a filter drops.

    What stands in the folder from before is not written again.

    Args:
        prompts: what is answered; their own responses are not looked at.
        writer: the teacher.
        spec: how it writes, and the filters.
        folder: of the text; made where absent.
        origin: who the teacher is and what it was asked; another one's text is discarded.
        tokenizer: for the text beside the ids.
        seed: of the draws; a response depends on it, on its prompt and on nothing else.
        place: of this process.
    Raises: DataError where the filters leave nothing.
    """
    key = {"origin": origin, "source": spec.model_dump(mode="json"), "seed": seed}
    part = folder / f"part-{place.rank:05d}.jsonl"
    begun = time.perf_counter()
    wanted = [(row, sample) for row in prompts for sample in range(spec.samples_per_prompt)]
    _write_part(part, wanted[place.rank :: place.world_size], writer, spec, key, tokenizer, seed, place)
    place.barrier()
    before = seconds_of(folder) if _card(folder).items() >= key.items() else 0.0
    seconds = before + time.perf_counter() - begun
    parts = [folder / f"part-{rank:05d}.jsonl" for rank in range(place.world_size)]
    written = {(line.id, line.sample): line for file in parts for line in _lines(file, key)}
    answers = [written[row.example_id, sample] for row, sample in wanted]
    kept, dropped = _sift([_answered(row, line) for (row, _), line in zip(wanted, answers, strict=True)], spec.filters)
    if place.rank == 0:
        _write_card(folder, key, parts, answers, dropped, kept, seconds)
    if not kept:
        reasons = ", ".join(f"{count} {name}" for name, count in dropped.items())
        raise DataError(
            f"the filters drop all {len(wanted)} responses of the teacher: {reasons}",
            "use fewer filters, or a larger max_new_tokens",
        )
    return tuple(kept)


# --- Writing ----------------------------------------------------------------------------------------------------------


def _write_part(
    file: Path,
    wanted: Sequence[tuple[Tokenised, int]],
    writer: Writer,
    spec: recipe.RolloutSource,
    key: dict[str, Any],
    tokenizer: Any,
    seed: int,
    place: Place,
) -> None:
    """Add what is not there yet, some rows at a time, each flushed as it is written."""
    there = {(line.id, line.sample): line for line in _lines(file, key)}
    _rewrite(file, key, there.values(), tokenizer)  # without a line that was cut, or text of another origin
    missing = [(row, sample) for row, sample in wanted if (row.example_id, sample) not in there]
    say = _saying(len(wanted), quiet=place.rank > 0)
    with open(file, "a", encoding="utf-8", newline="\n") as handle:
        for start in range(0, len(missing), 4 * spec.slots):
            some = missing[start : start + 4 * spec.slots]
            seeds = [seed_of(seed, "teacher", row.example_id, sample) for row, sample in some]
            responses = writer.write([row.prompt_ids for row, _ in some], seeds=seeds)
            for (row, sample), response in zip(some, responses, strict=True):
                handle.write(_text(_Line(row.example_id, sample, response.ids, response.finished), tokenizer))
            handle.flush()
            say(len(wanted) - len(missing) + start + len(some))


def _rewrite(file: Path, key: dict[str, Any], lines: Any, tokenizer: Any) -> None:
    write_text(file, json.dumps({"key": key}) + "\n" + "".join(_text(line, tokenizer) for line in lines))


def _text(line: _Line, tokenizer: Any) -> str:
    text = tokenizer.decode(list(line.ids), skip_special_tokens=True)
    return json.dumps(vars(line) | {"text": text}, ensure_ascii=False) + "\n"


def _saying(count: int, *, quiet: bool) -> Callable[[int], None]:
    """Tell how far the teacher is, now and then."""
    begun = last = time.monotonic()

    def say(done: int) -> None:
        nonlocal last
        if quiet or (time.monotonic() - last < SAY_EVERY_S and done < count):
            return
        last = time.monotonic()
        left = (last - begun) * (count - done) / max(done, 1)
        print(f"the teacher writes: {done} of {count} responses, {left:.0f} s left", file=sys.stderr, flush=True)

    return say


# --- Reading ----------------------------------------------------------------------------------------------------------


def _lines(file: Path, key: dict[str, Any]) -> Iterator[_Line]:
    """The responses in a part; none where it is of another origin."""
    found = read_jsonl(file)
    if next(found, {}).get("key") != key:
        return
    for line in found:
        yield _Line(line["id"], line["sample"], tuple(line["ids"]), line["finished"])


def _answered(row: Tokenised, line: _Line) -> Tokenised:
    return replace(
        row, example_id=f"{line.id}#{line.sample}", response_ids=line.ids, response="", truncated=not line.finished
    )


def _sift(rows: Sequence[Tokenised], filters: Sequence[recipe.Filter]) -> tuple[list[Tokenised], Counter[str]]:
    """The rows that every filter keeps, and how many each dropped."""
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        if reason := next((name for name in filters if FILTERS[name](row)), None):
            dropped[reason] += 1
        else:
            kept.append(row)
    return kept, dropped


def _repeated_share(ids: Sequence[int]) -> float:
    ngrams = [tuple(ids[at : at + NGRAM]) for at in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


# What each filter drops.
FILTERS: dict[recipe.Filter, Callable[[Tokenised], bool]] = {
    "empty": lambda row: len(row.response_ids) < 2 and not row.truncated,  # nothing but the end
    "unfinished": lambda row: row.truncated,
    "repetitive": lambda row: _repeated_share(row.response_ids) > MOST_REPEATED,
}


def _write_card(
    folder: Path,
    key: dict[str, Any],
    parts: Sequence[Path],
    written: Sequence[_Line],
    dropped: Counter[str],
    kept: Sequence[Tokenised],
    seconds: float,
) -> None:
    """Where the text is from, and what became of it."""
    hashes = {part.name: file_sha256(part) for part in parts}
    card = {
        **key,
        "responses": len(written),
        "written_tokens": sum(len(line.ids) for line in written),
        "dropped": dict(dropped),
        "kept": len(kept),
        "kept_response_tokens": sum(len(row.response_ids) for row in kept),
        "seconds": round(seconds, 3),
        "files": hashes,
    }
    write_text(folder / "card.json", json.dumps(card, indent=2) + "\n")


def seconds_of(folder: Path) -> float:
    """How long the teacher has written the text in a folder, by its card; 0 where there is none."""
    return float(_card(folder).get("seconds", 0.0))


def _card(folder: Path) -> dict[str, Any]:
    file = folder / "card.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
