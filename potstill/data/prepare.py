"""The one call that turns a recipe's data section into token ids, with everything counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from potstill.data import datasets
from potstill.data.catalogue import DATASETS, load
from potstill.data.datasets import Named, Place
from potstill.data.examples import Example, Tokenised
from potstill.data.formats import check_fields, example_of
from potstill.data.overlap import overlap
from potstill.data.quarantine import Sifted, judge, sift, write_quarantine
from potstill.data.reader import EXCERPT_CHARS, BadRow, read_rows
from potstill.data.splits import split
from potstill.data.tokenise import Skip, Template, check_example, choose_template, tokenise
from potstill.errors import DataError
from potstill.recipe import Data

SKIPS: dict[Skip, str] = {
    "long_prompt": "skipped_long_prompts",
    "empty_prompt": "skipped_empty_prompts",
    "empty_response": "skipped_empty_responses",
}


@dataclass(frozen=True)
class Prepared:
    """Token ids by split, and ``counts``: what data.json says of them."""

    train: tuple[Tokenised, ...]
    validation: tuple[Tokenised, ...]
    heldout: tuple[Tokenised, ...]
    counts: dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """A file, or a split of a named data set, and its rows, sorted."""

    place: Place
    sha256: str
    rows: Sifted


@dataclass(frozen=True)
class _Part:
    """A split: its usable rows as text and as token ids, one for one, and its counts."""

    examples: tuple[Example, ...]
    tokenised: tuple[Tokenised, ...]
    counts: dict[str, Any]


def prepare(config: Data, tokenizer: Any, *, quarantine_file: Path | None = None) -> Prepared:
    """Read, sift, split and tokenise. The same files, config and tokenizer always give the same result.

    Rows are split before they are tokenised, so the held-out rows of a file are the same for every tokenizer and limit.

    Args:
        config: the data section of a stage.
        tokenizer: a transformers tokenizer.
        quarantine_file: where bad rows are written, with their reasons; also when there are too many of them.
    Raises: DataError with a cause and a fix.
    """
    train, heldout = datasets.train_place(config), datasets.heldout_place(config)
    template = _template(config, tokenizer, train)
    places = {"train": train} | ({"heldout": heldout} if heldout else {})
    sources = _read(places, config, tokenizer, template, quarantine_file)
    splits = split(sources["train"].rows.examples, sources["heldout"].rows.examples if heldout else None, config)
    parts = {
        name: _part(name, getattr(splits, name), config, tokenizer, template)
        for name in ("train", "validation", "heldout")
    }
    counts = {"format": config.format, "template": template} | _counts(sources, parts, splits.num_unused)
    return Prepared(parts["train"].tokenised, parts["validation"].tokenised, parts["heldout"].tokenised, counts)


def prepare_all(config: Data, tokenizer: Any) -> tuple[Tokenised, ...]:
    """Every usable row of the held-out file, or where there is none of ``config.path``, in order and unsplit.

    For measuring a model outside a run. Raises: DataError as ``prepare`` does.
    """
    place = datasets.heldout_place(config) or datasets.train_place(config)
    template = _template(config, tokenizer, place)
    source = _read({"heldout": place}, config, tokenizer, template)["heldout"]
    return _part("usable", source.rows.examples, config, tokenizer, template).tokenised


def _template(config: Data, tokenizer: Any, place: Place) -> Template:
    """The template that is asked for; auto is none for a data set whose prompts are framed already."""
    if isinstance(place, Named) and DATASETS[place.name].framed and config.template == "auto":
        return "none"
    return choose_template(config, tokenizer)


def _read(
    places: dict[str, Place], config: Data, tokenizer: Any, template: Template, quarantine_file: Path | None = None
) -> dict[str, _Source]:
    """The rows of each file, sorted; the bad ones are on disk before anything is refused because of them."""
    check_fields(config)
    sources = {name: _source(place, config, tokenizer, template) for name, place in places.items()}
    if quarantine_file:
        write_quarantine(quarantine_file, [row for source in sources.values() for row in source.rows.bad])
    for source in sources.values():
        judge(source.place, source.rows, config.max_bad_rows, quarantine_file)
    if len({source.sha256 for source in sources.values()}) < len(sources):
        raise DataError(
            f"data.heldout={config.heldout} holds the same rows as data.path={config.path}",
            "leave data.heldout out, and a share of the rows is held out",
        )
    return sources


def _source(place: Place, config: Data, tokenizer: Any, template: Template) -> _Source:
    if isinstance(place, Named):
        return _named_source(place, tokenizer, template)
    rows = read_rows(place, names=datasets.NAMES)
    sifted = sift(rows, lambda row: check_example(example_of(row, config), tokenizer, template))
    with open(place, "rb") as handle:
        return _Source(place, file_digest(handle, "sha256").hexdigest(), sifted)


def _named_source(place: Named, tokenizer: Any, template: Template) -> _Source:
    """A split of a named data set. What cannot be trained on is a bad row; the hash is that of its files' hashes."""
    loaded = load(place.name, place.split)
    examples, bad = [], list(loaded.bad)
    for item in loaded.items:
        try:
            examples.append(check_example(item.example(), tokenizer, template))
        except ValueError as reason:  # Unusable is one
            bad.append(BadRow(item.id, str(reason), item.prompt[:EXCERPT_CHARS]))
    digest = sha256("".join(sorted(loaded.sha256.values())).encode()).hexdigest()
    return _Source(place, digest, Sifted(tuple(examples), tuple(bad)))


def _part(name: str, examples: Sequence[Example], config: Data, tokenizer: Any, template: Template) -> _Part:
    outcomes = tokenise(
        examples,
        tokenizer,
        template=template,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    usable = [(example, ids) for example, ids in zip(examples, outcomes, strict=True) if isinstance(ids, Tokenised)]
    skipped = Counter(outcome for outcome in outcomes if not isinstance(outcome, Tokenised))
    if not usable:
        raise _nothing_left(name, skipped, config)
    tokenised = tuple(ids for _, ids in usable)
    counts = {"rows": len(examples)} | {key: skipped[skip] for skip, key in SKIPS.items()} | _sizes(tokenised)
    return _Part(tuple(example for example, _ in usable), tokenised, counts)


def _nothing_left(name: str, skipped: Counter[Skip], config: Data) -> DataError:
    (skip, _), *_ = skipped.most_common(1)
    why = {
        "long_prompt": f"prompts are longer than data.max_prompt_tokens={config.max_prompt_tokens}",
        "empty_prompt": "prompts have no tokens",
        "empty_response": "responses have no tokens",
    }[skip]
    fix = "raise data.max_prompt_tokens, or shorten the prompts" if skip == "long_prompt" else "mend the rows"
    return DataError(f"no {name} rows are left: {skipped[skip]} of {skipped.total()} {why}", fix)


# --- counts -----------------------------------------------------------------------------------------------------------


def _sizes(tokenised: Sequence[Tokenised]) -> dict[str, Any]:
    truncated = sum(example.truncated for example in tokenised)
    return {
        "used": len(tokenised),
        "truncated_responses": truncated,
        "truncated_share": round(truncated / len(tokenised), 6),
        "prompt_tokens": sum(len(example.prompt_ids) for example in tokenised),
        "response_tokens": sum(len(example.response_ids) for example in tokenised),
    }


def _counts(sources: dict[str, _Source], parts: dict[str, _Part], num_unused: int) -> dict[str, Any]:
    """Every row is counted once: rows = quarantined + skipped + used + unused_heldout."""
    return {
        "files": {name: _file_counts(source) for name, source in sources.items()},
        "rows": sum(source.rows.num_rows for source in sources.values()),
        "quarantined": sum(len(source.rows.bad) for source in sources.values()),
        **{key: sum(part.counts[key] for part in parts.values()) for key in SKIPS.values()},
        **_sizes([example for part in parts.values() for example in part.tokenised]),
        "unused_heldout": num_unused,
        "splits": {name: part.counts for name, part in parts.items()},
        "overlap": overlap(parts["heldout"].examples, parts["train"].examples),
    }


def _file_counts(source: _Source) -> dict[str, Any]:
    return {
        "file": datasets.shown(source.place),
        "sha256": source.sha256,
        "rows": source.rows.num_rows,
        "quarantined": len(source.rows.bad),
    }
