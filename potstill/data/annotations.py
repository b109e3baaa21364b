"""What a teacher said about train rows, joined to them: labels and rationales.

They are a file that ``potstill annotate`` wrote, whose lines name their row and the hash of its prompt; or the outputs
that lie beside a named data set in the layout of distilling step-by-step, which are checked for being shifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.data import datasets
from potstill.data.catalogue.loading import data_root
from potstill.data.catalogue.step_by_step import joined, place_of
from potstill.data.datasets import Named, Place
from potstill.data.examples import Example, prompt_sha256
from potstill.data.formats import text_of
from potstill.data.reader import BadRow, read_rows
from potstill.errors import DataError

PALM = "palm"
# The layout's name of a data set and of its splits.
LAYOUTS = {
    "cqa": ("cqa", {"train": "train", "test": "test"}),
    "svamp": ("svamp", {"train": "train", "test": "test"}),
    "esnli": ("esnli", {"train": "train", "valid": "valid", "test": "test"}),
    "anli": ("anli1", {"r1_train": "train", "r1_dev": "valid", "r1_test": "test"}),
}


@dataclass(frozen=True)
class Said:
    """What a teacher said about a row."""

    label: str | None
    rationale: str | None


def annotated(examples: Sequence[Example], place: Place, annotations: str) -> tuple[Example, ...]:
    """The rows with what a teacher said about them; a rationale of their own gives way to the teacher's.

    Args:
        place: where the rows are from.
        annotations: "palm", or a file.
    Raises: DataError where that is of other rows, or of none of these.
    """
    said = _of_layout(place) if annotations == PALM else _of_file(Path(annotations).expanduser(), examples)
    found = [said.get(row.id) for row in examples]
    if not any(found):
        what = f"nothing that {annotations} says is about a row of {datasets.shown(place)}"
        raise DataError(
            what,
            "name the annotations that were made from these rows; rows without an id of their own are known by their "
            "file's name and line, so give them ids before a file is renamed or added to",
        )
    return tuple(
        replace(row, rationale=one.rationale or row.rationale, llm_label=one.label or row.llm_label) if one else row
        for row, one in zip(examples, found, strict=True)
    )


def has_outputs(place: Place) -> bool:
    """Whether the layout of distilling step-by-step has outputs for these rows."""
    return isinstance(place, Named) and place.split in LAYOUTS.get(place.name, ("", {}))[1]


def _of_layout(place: Place) -> Mapping[str, Said]:
    """By id, which the layout's rows share with the data set's. Raises: DataError."""
    if not isinstance(place, Named) or not has_outputs(place):
        named = ", ".join(f"{name}:{split}" for name, (_, splits) in LAYOUTS.items() for split in splits)
        raise DataError(
            f"data.annotations is {PALM}, and there are no outputs of it for {datasets.shown(place)}",
            f"there are for {named}; for other rows name a file that `potstill annotate` wrote",
        )
    name, splits = LAYOUTS[place.name]
    split = splits[place.split]
    found = joined(place_of(data_root(), name, split), name, split, keep_failures=True)
    return {
        gold.id: Said(item.references[0] if item.references else None, item.rationale)
        for gold, item in zip(found.gold, found.items, strict=True)
    }


def _of_file(file: Path, examples: Sequence[Example]) -> Mapping[str, Said]:
    """By id. Of several samples of a row the first is taken. Raises: DataError for a line about another prompt."""
    if not file.is_file():
        raise DataError(
            f"data.annotations={file}: there is no such file", f"name one that `potstill annotate` wrote, or {PALM}"
        )
    prompts = {row.id: prompt_sha256(row.prompt) for row in examples}
    said: dict[str, Said] = {}
    for row in read_rows(file):
        if isinstance(row, BadRow):
            raise DataError(f"{row.where}: {row.reason}", "mend the line, or make the file again")
        values = row.values
        try:
            name, prompt = text_of(values, "id"), text_of(values, "prompt_sha256")
            label, rationale = (
                text_of(values, key) if values.get(key) is not None else None for key in ("llm_label", "rationale")
            )
        except ValueError as reason:  # Unusable is one
            raise DataError(
                f"data.annotations={file}: {row.where}: {reason}",
                "name a file that `potstill annotate` wrote; rationales that stand in the rows themselves are named by "
                "data.fields.rationale",
            ) from None
        if prompts.get(name, prompt) != prompt:
            raise DataError(
                f"{row.where}: what is said about {name!r} was said about another prompt than that row has",
                "annotate these rows again: shifted or shuffled annotations would teach nonsense in silence",
            )
        said.setdefault(name, Said(label, rationale))
    return said
