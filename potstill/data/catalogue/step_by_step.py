"""The layout of distilling step-by-step: rows, and beside them what an LLM said to each, without ids.

``{name}_{split}.json`` has a row a line; ``llm/{split}_CoT_{k}.json`` are arrays of raw outputs, joined by position.
An output gives a rationale and a label, then often runs on into a next example of its own invention.

Source: Hsieh et al. 2023, arXiv:2305.02301, and its loaders. There an output that cannot be parsed becomes a blank that
is trained on; here it is counted and left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.data.catalogue.alignment import check_aligned
from potstill.data.catalogue.inference import nli_item
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.llm_outputs import LAYOUTS, Equal, Said, said_in_fields
from potstill.data.catalogue.rows import array, items_of, rows_of
from potstill.data.examples import Unusable
from potstill.data.reader import BadRow, Row
from potstill.errors import DataError

CHUNK = re.compile(r"_CoT_(\d+)\.json$")


@dataclass(frozen=True)
class Joined:
    """Rows with an LLM's labels and rationales.

    Args:
        items: their references and rationales are the LLM's; None where it gave a label without saying why.
        gold: the same rows with the data set's own labels and explanations, in the same order.
        num_rows: rows of the split, failures included.
        failures: how many outputs could not be parsed, by reason.
        agreement: per cent of all rows whose LLM label is the gold label, a failure being wrong; None where nothing
            says how labels are compared.
    """

    items: tuple[Item, ...]
    gold: tuple[Item, ...]
    num_rows: int
    failures: Mapping[str, int]
    agreement: float | None

    @property
    def num_failures(self) -> int:
        return sum(self.failures.values())


def joined(folder: Path, name: str, split: str, keep_failures: bool = False, *, equal: Equal | None = None) -> Joined:
    """Join a split to the LLM's outputs by position, and parse them.

    Args:
        folder: holds ``{name}_{split}.json`` and ``llm/``, or a folder ``name`` that does; or, for e-SNLI, lines that
            are joined already: ``{split}.jsonl`` with ``input``, ``label``, ``llm_label``, ``rationale``.
        name: cqa, svamp, anli1 or esnli.
        split: train, valid or test.
        keep_failures: keep the rows of outputs that cannot be parsed, as items without a reference or rationale.
        equal: whether the LLM's label, as it wrote it, is the gold one. By default the two are compared letter by
            letter, as in the paper's figures; not for svamp, whose equations want comparing by value.
    Raises: DataError where a file is missing or broken, or rows and outputs differ in number.
    """
    if name not in LAYOUTS:
        raise DataError(f"no such data set in this layout: {name!r}", f"it is one of {', '.join(LAYOUTS)}")
    pairs = list(_pairs(Path(folder), name, split))
    failures = Counter(said for _, said in pairs if isinstance(said, str))
    kept = [(gold, _told(gold, said)) for gold, said in pairs if keep_failures or isinstance(said, Said)]
    compared = equal or LAYOUTS[name].equal
    return Joined(
        items=tuple(item for _, item in kept),
        gold=tuple(gold for gold, _ in kept),
        num_rows=len(pairs),
        failures=dict(failures.most_common()),
        agreement=_agreement(pairs, compared) if compared else None,
    )


def _told(gold: Item, said: Said | str) -> Item:
    if isinstance(said, str):
        return replace(gold, references=(), answer=None, rationale=None)
    return replace(gold, references=(said.label,), answer=said.answer, rationale=said.rationale)


def _agreement(pairs: Sequence[tuple[Item, Said | str]], equal: Equal) -> float:
    same = sum(isinstance(said, Said) and equal(said.verbatim, gold.references[0]) for gold, said in pairs)
    return 100 * same / len(pairs)


# --- files ------------------------------------------------------------------------------------------------------------


def place_of(root: Path, name: str, split: str) -> Path:
    """The folder below a root of data sets that holds a split in this layout; the root itself where none does."""
    places = (root / "dss_raw", root, root / f"dss_{name}")
    return next((place for place in places if _file_in(place, name, split)), root)


def _file_in(folder: Path, name: str, split: str) -> Path | None:
    """The file of a split's rows; lines that are joined already only for e-SNLI."""
    rows = [place / f"{name}_{split}.json" for place in (folder, folder / name)]
    lines = [folder / f"{split}.jsonl"] if name == "esnli" else []
    return next((file for file in (*rows, *lines) if file.is_file()), None)


def _pairs(folder: Path, name: str, split: str) -> Iterator[tuple[Item, Said | str]]:
    """Each row with what the LLM said of it, or why that cannot be parsed."""
    file = f"{name}_{split}.json"
    place = next((place for place in (folder, folder / name) if (place / file).is_file()), None)
    if place is None:
        yield from _joined_lines(folder, name, split)
        return
    layout = LAYOUTS[name]
    rows = _whole(items_of(place / file, layout.item_of), place / file)
    outputs = _outputs(place / "llm", split)
    if len(rows) != len(outputs):
        raise DataError(
            f"{place / file} has {len(rows)} rows and llm/{split}_CoT_*.json {len(outputs)} outputs: "
            "joined by position they would be misaligned",
            "use the outputs that were made from this file, all of them",
        )
    check_aligned(rows, outputs, layout, f"{place / 'llm'}/{split}_CoT_*.json")
    for gold, output in zip(rows, outputs, strict=True):
        yield gold, _or_reason(layout.said, gold, output)


def _whole(rows: Iterable[Item | BadRow], file: Path) -> list[Item]:
    """Every row as an item. Raises: DataError for the first that is not one: the rows after it would move up."""
    items = []
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(f"{row.where}: {row.reason}", f"download {file} again: a join by position needs every row")
        if not row.references:
            raise DataError(f"{file}: {row.id} has no label", "take a split whose labels are published")
        items.append(row)
    if not items:
        raise DataError(f"{file} has no rows", "download it again")
    return items


def _outputs(folder: Path, split: str) -> list[Any]:
    """The outputs of all chunks, which are in the order of their numbers: 10 comes after 9."""
    chunks = {int(found[1]): file for file in folder.glob(f"{split}_CoT_*.json") if (found := CHUNK.search(file.name))}
    absent = next((number for number in range(len(chunks)) if number not in chunks), None if chunks else 0)
    if absent is not None:
        missing = folder / f"{split}_CoT_{absent}.json"
        raise DataError(f"there is no {missing}", "download the LLM's outputs, all parts")
    return [output for number in sorted(chunks) for output in array(chunks[number])]


def _joined_lines(folder: Path, name: str, split: str) -> Iterator[tuple[Item, Said | str]]:
    file = folder / f"{split}.jsonl"
    if name != "esnli" or not file.is_file():
        looked = f"{name}_{split}.json" + (f" or {split}.jsonl" if name == "esnli" else "")
        raise DataError(
            f"there is no {looked} in {folder} or {folder / name}",
            "take the folder from datasets.zip of https://github.com/google-research/distilling-step-by-step",
        )
    rows = [row for row in rows_of(file) if isinstance(row, Row)]
    for gold, row in zip(_whole(items_of(file, nli_item), file), rows, strict=True):
        yield gold, _or_reason(said_in_fields, row.values)


def _or_reason(say: Callable[..., Said], *given: Any) -> Said | str:
    try:
        return say(*given)
    except Unusable as reason:
        return str(reason)
