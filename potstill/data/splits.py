"""Which rows train, which choose the best checkpoint, and which are held out for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from potstill.data.examples import Example
from potstill.errors import DataError
from potstill.recipe import Data


@dataclass(frozen=True)
class Splits:
    """Train rows in the file's order; the others in the order of their hash, so that any first few are a fair sample.

    ``num_unused`` rows of a held-out file are over ``max_heldout``. They are in no split: they stay held out.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    heldout: tuple[Example, ...]
    num_unused: int = 0


def split(rows: Sequence[Example], heldout: Sequence[Example] | None, config: Data) -> Splits:
    """Divide rows by the hash of their text: not by the run's seed, so every run of a file holds out the same rows; not
    by their place or the file's name, so a copy or another order does too, and adding rows moves only the few at the
    edge. Rows of one prompt stand together.

    Args:
        rows: of the train file.
        heldout: of the held-out file, or None to hold out ``config.heldout_fraction`` of ``rows``.
    Returns: splits of at least one row each.
    Raises: DataError where there are too few rows for that.
    """
    spare = 2 if heldout is None else 1  # rows the other splits need at least
    if len(rows) <= spare:
        raise DataError(
            f"{len(rows)} usable rows are too few: train, validation and held-out need one each",
            "add rows to the train file, or set data.heldout to a file of its own",
        )
    rest = tuple(rows)
    if heldout is None:
        taken, rest = _take(rest, _size(len(rows), config.heldout_fraction, config.max_heldout, keep=2))
    else:
        taken = tuple(sorted(heldout, key=_hash))[: config.max_heldout]
    validation, train = _take(rest, _size(len(rest), config.validation_fraction, config.max_validation, keep=1))
    return Splits(train, validation, taken, num_unused=len(heldout) - len(taken) if heldout else 0)


def subsample(rows: Sequence[Example], fraction: float, seed: int) -> tuple[Example, ...]:
    """A share of the rows, at least one, in their order, drawn by the hash of the seed and a row's text.

    A smaller share is a part of a larger one for the same seed, so that a curve over shares adds rows.
    """
    if fraction == 1:
        return tuple(rows)
    hashes = [sha256(f"{seed} ".encode() + b"".join(_hash(row)[:2])).digest() for row in rows]
    kept = sorted(sorted(range(len(rows)), key=hashes.__getitem__)[: max(1, round(fraction * len(rows)))])
    return tuple(rows[at] for at in kept)


def _size(num_rows: int, fraction: float, most: int, *, keep: int) -> int:
    """At least one, at most ``most``, and ``keep`` rows left over."""
    return min(max(1, round(fraction * num_rows)), most, num_rows - keep)


def _take(rows: tuple[Example, ...], count: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The ``count`` rows of smallest hash, by hash, and the others in their order."""
    taken = tuple(sorted(rows, key=_hash)[:count])
    ids = {example.id for example in taken}
    return taken, tuple(example for example in rows if example.id not in ids)


def _hash(example: Example) -> tuple[bytes, bytes, str]:
    prompt, response = (sha256(text.encode("utf-8")).digest() for text in (example.prompt, example.response))
    return prompt, response, example.id
