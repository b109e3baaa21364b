"""The rows of a recipe's files as examples, with those that cannot be used set apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from potstill.data import datasets
from potstill.data.annotations import PALM, annotated, has_outputs
from potstill.data.catalogue import DATASETS, load
from potstill.data.catalogue.loading import files_of
from potstill.data.datasets import Named, Place
from potstill.data.examples import Example
from potstill.data.formats import check_fields, example_of
from potstill.data.quarantine import Sifted, judge, sift, write_quarantine
from potstill.data.reader import EXCERPT_CHARS, BadRow, read_rows
from potstill.data.tokenise import Template, check_example, choose_template
from potstill.errors import DataError
from potstill.hashes import file_sha256
from potstill.recipe import Data


@dataclass(frozen=True)
class Source:
    """A file, or a split of a named data set, and its rows, sorted."""

    place: Place
    sha256: str
    rows: Sifted

    @property
    def counts(self) -> dict[str, Any]:
        return {
            "file": datasets.shown(self.place),
            "sha256": self.sha256,
            "rows": self.rows.num_rows,
            "quarantined": len(self.rows.bad),
        }


@dataclass(frozen=True)
class Gathered:
    """The sources of train rows and, where there are any, of held-out ones; and how their prompts are framed."""

    sources: dict[str, Source]
    template: Template

    @property
    def bad(self) -> list[BadRow]:
        return [row for source in self.sources.values() for row in source.rows.bad]


def gather(config: Data, tokenizer: Any, *, quarantine_file: Path | None = None) -> Gathered:
    """The rows of ``config``'s files. The bad ones are on disk before anything is refused because of them.

    Raises: DataError for a file that cannot be read, has too many bad rows, or is both files.
    """
    train, heldout = datasets.train_place(config), datasets.heldout_place(config)
    places = {"train": train} | ({"heldout": heldout} if heldout else {})
    return _read(places, config, tokenizer, _template(config, tokenizer, train), quarantine_file)


def gather_measured(config: Data, tokenizer: Any) -> Gathered:
    """The rows a model is measured on outside a run: of the held-out file, else of the other. Raises: DataError."""
    place = datasets.heldout_place(config) or datasets.train_place(config)
    return _read({"heldout": place}, config, tokenizer, _template(config, tokenizer, place), None)


def _template(config: Data, tokenizer: Any, place: Place) -> Template:
    """The template that is asked for; auto is none for a data set whose prompts are framed already."""
    if isinstance(place, Named) and DATASETS[place.name].framed and config.template == "auto":
        return "none"
    return choose_template(config, tokenizer)


def _read(
    places: dict[str, Place], config: Data, tokenizer: Any, template: Template, quarantine_file: Path | None
) -> Gathered:
    check_fields(config)
    found = Gathered({name: _source(place, config, tokenizer, template) for name, place in places.items()}, template)
    if quarantine_file:
        write_quarantine(quarantine_file, found.bad)
    for source in found.sources.values():
        judge(source.place, source.rows, config.max_bad_rows, quarantine_file)
    annotations = config.annotations
    sources = {name: _with_annotations(name, source, annotations) for name, source in found.sources.items()}
    found = replace(found, sources=sources)
    if len({source.sha256 for source in found.sources.values()}) < len(found.sources):
        raise DataError(
            f"data.heldout={config.heldout} holds the same rows as data.path={config.path}",
            "leave data.heldout out, and a share of the rows is held out",
        )
    return found


def _source(place: Place, config: Data, tokenizer: Any, template: Template) -> Source:
    rows, digest = sifted(place, config, lambda example: check_example(example, tokenizer, template))
    return Source(place, digest, rows)


def _with_annotations(name: str, source: Source, annotations: str | None) -> Source:
    """The rows with what a teacher said about them: a file is of train rows, the layout's outputs of others too."""
    if annotations is None or (name != "train" and annotations != PALM):
        return source
    if name != "train" and not has_outputs(source.place):
        return source
    examples = annotated(source.rows.examples, source.place, annotations)
    return replace(source, rows=replace(source.rows, examples=examples))


def sifted(place: Place, config: Data, check: Callable[[Example], Example]) -> tuple[Sifted, str]:
    """The rows of a file or of a split of a named data set, sorted, and their SHA-256.

    Args:
        check: gives an example back, or raises Unusable with the reason why it is a bad row.
    Raises: DataError for what cannot be read as a whole.
    """
    if isinstance(place, Named):
        return _named(place, check)
    found = sift(read_rows(place, names=datasets.NAMES), lambda row: check(example_of(row, config)))
    _check_named(place, config, found)
    return found, file_sha256(place)


def digest_of(place: Place) -> str:
    """The SHA-256 that ``sifted`` gives with the rows, without reading them.

    Raises: DataError for a split that is not here; OSError for a file.
    """
    if isinstance(place, Named):
        files = files_of(DATASETS[place.name], place.split)
        return _joined(file_sha256(file) for file in files)
    return file_sha256(place)


def _joined(digests: Iterable[str]) -> str:
    return sha256("".join(sorted(digests)).encode()).hexdigest()


def _check_named(place: Path, config: Data, found: Sifted) -> None:
    """Refuse a field that is named and that no row has: of these fields rows may lack some. Raises: DataError."""
    for ours in ("rationale", "llm_label", "group"):
        theirs = config.fields.get(ours)
        if theirs and found.examples and not any(getattr(row, ours) for row in found.examples):
            raise DataError(
                f"no row of {place} has text in a field {theirs!r}, which data.fields.{ours} names",
                f"set data.fields.{ours} to the field that holds it",
            )


def _named(place: Named, check: Callable[[Example], Example]) -> tuple[Sifted, str]:
    """The split of a data set; its hash is that of its files' hashes."""
    loaded = load(place.name, place.split)
    examples, bad = [], list(loaded.bad)
    for item in loaded.items:
        try:
            examples.append(check(item.example()))
        except ValueError as reason:  # Unusable is one
            bad.append(BadRow(item.id, str(reason), item.prompt[:EXCERPT_CHARS]))
    return Sifted(tuple(examples), tuple(bad)), _joined(loaded.sha256.values())
