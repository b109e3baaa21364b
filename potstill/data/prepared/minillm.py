"""MiniLLM's processed data as it is: a folder of prompts and responses in .bin and .idx files."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.data.examples import Example
from potstill.data.formats import without_frame
from potstill.data.indexed.reader import named, shard_numbers
from potstill.data.overlap import overlap
from potstill.data.prepared.records import KINDS, Read, RecordRows, parts_of, read_set
from potstill.data.prepared.splits import SPLITS, Prepared
from potstill.data.quarantine import Sifted, judge, write_quarantine
from potstill.data.splits import split
from potstill.data.tally import Tally, totals
from potstill.errors import DataError
from potstill.recipe import Data

Places: TypeAlias = NDArray[np.int64]  # of records in their set: shape (records,)
SETS = ("train", "valid", "test")
MEANINGLESS = ("format", "fields", "template", "long_prompts", "heldout")  # settings of text, which is ids already


def sets_in(folder: Path) -> list[str]:
    """Which of ``SETS`` a folder has files of."""
    return [name for name in SETS if shard_numbers(folder / name) or named(folder / name, ".idx").exists()]


def open_records(folder: Path, config: Data, tokenizer: Any, *, quarantine_file: Path | None = None) -> Prepared:
    """The rows of a folder of train_0.bin and .idx, and ``valid`` and ``test`` where there are any.

    With ``test`` its records are held out and those of ``valid`` are for validation. With ``valid`` alone one half of
    it is held out and the other is for validation. Where there is no ``valid``, validation rows are set
    apart from ``train``, and held-out ones too where there is no ``test``. All are taken by the hash of their ids, so
    that no row that chooses a checkpoint is one that a student is measured on.

    Every record is read once, so that it is known what is in them; their ids stay on disk.

    Args:
        config, tokenizer, quarantine_file: as for ``prepare``.
    Raises: DataError for settings that mean nothing here, a record without a separator, ids that are not of the
        tokenizer's vocabulary, too many bad records, or too few of any.
    """
    _check_settings(folder, config)
    sets = {name: read_set(folder, name, config, tokenizer) for name in dict.fromkeys(["train", *sets_in(folder)])}
    bad = [row for one in sets.values() for row in one.bad]
    if quarantine_file:
        write_quarantine(quarantine_file, bad)
    for name, one in sets.items():
        stand_in = Example("", "", "")
        judge(folder / name, Sifted((stand_in,) * len(one.good), one.bad), config.max_bad_rows, quarantine_file)
    if len({one.sha256 for one in sets.values()}) < len(sets):
        raise DataError(f"two of {', '.join(sets)} in {folder} hold the same records", "remove one of them")
    chosen = _splits(folder, sets, config)
    used = {name: _used(sets[own], places) for name, (own, places) in chosen.items()}
    tallies = {name: _tally(sets[own], places, config) for name, (own, places) in chosen.items()}
    for name, tally in tallies.items():
        tally.check(name, config.max_prompt_tokens)
    rows = {
        name: RecordRows(sets[own], used[name], tokenizer, config.max_response_tokens)
        for name, (own, _) in chosen.items()
    }
    unused = sum(len(one.good) for one in sets.values()) - sum(tally.rows for tally in tallies.values())
    files = {name: _file_counts(folder, one) for name, one in sets.items()}
    given_away = overlap(list(_examples(rows["heldout"])), _examples(rows["train"]))
    counts = {"format": "bin/idx", "template": "none"}
    counts |= totals(
        files, {name: tallies[name] for name in SPLITS}, apart={"unused_heldout": unused}, overlap=given_away
    )
    return Prepared(rows["train"], rows["validation"], rows["heldout"], counts)


def _check_settings(folder: Path, config: Data) -> None:
    default = Data()
    if set_ := [key for key in MEANINGLESS if getattr(config, key) not in (getattr(default, key), "none")]:
        said = ", ".join(f"data.{key}={getattr(config, key)}" for key in set_)
        cause = f"{said} cannot be done to {folder}, whose rows are token ids already"
        raise DataError(cause, f"remove {'it' if len(set_) == 1 else 'them'}, or set data to the file of rows")


# --- splits -----------------------------------------------------------------------------------------------------------


def _splits(folder: Path, sets: dict[str, Read], config: Data) -> dict[str, tuple[str, Places]]:
    """For each split the set it is of, and its records."""
    train = sets["train"]
    if "valid" not in sets:
        return _set_apart(sets, config)
    asked = _by_hash(sets["valid"])
    if "test" in sets:
        own, held, chosen = "test", _by_hash(sets["test"]), asked
    elif len(asked) < 2:
        cause = f"{folder}: valid has {len(asked)} records, which cannot be both for validation and held out"
        raise DataError(cause, "process more of them, or remove valid and some of train are set apart")
    else:
        half = len(asked) // 2  # whatever the limits, so that none of one run's is in the other of another
        own, held, chosen = "valid", asked[:half], asked[half:]
    return {
        "train": ("train", train.good),
        "validation": ("valid", chosen[: config.max_validation]),
        "heldout": (own, held[: config.max_heldout]),
    }


def _set_apart(sets: dict[str, Read], config: Data) -> dict[str, tuple[str, Places]]:
    """Validation rows out of train, as from a file; held-out ones too where there is no test."""
    test = sets.get("test")
    found = split(_stand_ins(sets["train"]), _stand_ins(test) if test else None, config)
    places = {name: np.array([int(one.id) for one in getattr(found, name)], np.int64) for name in SPLITS}
    return {name: ("test" if name == "heldout" and test else "train", places[name]) for name in SPLITS}


def _stand_ins(read: Read) -> list[Example]:
    """An example for each good record, with hashes for texts: enough to split them by."""
    return [Example(*_keys(read, place), str(place)) for place in read.good.tolist()]


def _by_hash(read: Read) -> Places:
    """The good records in the order of their hashes; those of one prompt stand together."""
    return np.array(sorted(read.good.tolist(), key=lambda place: (*_keys(read, place), place)), np.int64)


def _keys(read: Read, place: int) -> tuple[str, str]:
    prompt, response = parts_of(read.tokens, read.name, place)
    return sha256(prompt.tobytes()).hexdigest(), sha256(response.tobytes()).hexdigest()


# --- counts -----------------------------------------------------------------------------------------------------------


def _used(read: Read, places: Places) -> Places:
    return places[read.kind[places] == KINDS.index(None)]


def _tally(read: Read, places: Places, config: Data) -> Tally:
    tally = Tally()
    for place in places.tolist():
        if skip := KINDS[read.kind[place]]:
            tally.skipped[skip] += 1
            continue
        prompt, response = read.sizes[place].tolist()
        limit = config.max_response_tokens
        tally.add_used(prompt, min(response, limit), truncated=response > limit)
    return tally


def _file_counts(folder: Path, read: Read) -> dict[str, Any]:
    return {
        "file": str(folder / read.name),
        "sha256": read.sha256,
        "rows": len(read.tokens),
        "quarantined": len(read.bad),
    }


def _examples(rows: RecordRows) -> Iterator[Example]:
    """Rows as text, without Alpaca's frame: what overlap is measured on."""
    return (Example(row.prompt, row.response, row.example_id, content=without_frame(row.prompt)) for row in rows)
