"""The one call that turns a recipe's data section into token ids, with everything counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

from potstill.data import datasets
from potstill.data.encoding import Encoded, Encoder, encoded
from potstill.data.examples import Example, Tokenised
from potstill.data.gathering import Gathered, gather, gather_measured
from potstill.data.groups import with_groups
from potstill.data.order import seed_of
from potstill.data.overlap import overlap
from potstill.data.prepared.opening import folder_of, open_folder
from potstill.data.prepared.splits import SPLITS, Prepared
from potstill.data.splits import split, subsample
from potstill.data.tally import SKIPS, Tally, totals
from potstill.data.views import View, seen, view_of, view_of_stream
from potstill.errors import DataError
from potstill.recipe import Data, DatasetSource

__all__ = ["SKIPS", "Prepared", "encode", "left_out", "prepare", "prepare_all"]

Keep: TypeAlias = Callable[[str, Iterator[Tokenised]], Sequence[Tokenised]]


def prepare(
    config: Data,
    tokenizer: Any,
    *,
    quarantine_file: Path | None = None,
    streams: Mapping[str, DatasetSource] = {},
    seed: int = 0,
) -> Prepared:
    """Read, sift, split and tokenise. The same files, config and tokenizer always give the same result.

    Rows are split before they are shortened and tokenised, so the held-out rows of a file are the same for every
    tokenizer and limit. A folder of prepared rows is opened, and gives what its rows gave when it was made.

    Args:
        config: the data section of a stage.
        tokenizer: a transformers tokenizer.
        quarantine_file: where bad rows are written, with their reasons; also when there are too many of them.
        streams: what streams ask of the train rows, by the stream's name: another view, or some groups alone.
        seed: of rationales that are shuffled.
    Raises: DataError with a cause and a fix.
    """
    other = {name: source for name, source in streams.items() if source.is_another_view}
    if folder := folder_of(datasets.train_place(config)):
        if other:
            cause = f"{folder} holds rows that are tokenised, and stream {next(iter(other))} asks for another view"
            raise DataError(cause, "set data to the file that the rows were prepared from")
        return with_groups(open_folder(folder, config, tokenizer, quarantine_file=quarantine_file), streams)
    gathered = gather(config, tokenizer, quarantine_file=quarantine_file)
    views = {
        name: view_of_stream(source, config, gathered.template, seed_of(seed, name)) for name, source in other.items()
    }
    return with_groups(encode(gathered, config, tokenizer, lambda _, rows: tuple(rows), views=views), streams)


def left_out(data: Prepared, config: Data) -> str | None:
    """What the limits of ``config`` cost these rows, in a sentence; None where they cost nothing."""
    counts, told = data.counts, []
    if skipped := counts.get("skipped_long_prompts"):
        limit = f"data.max_prompt_tokens, {config.max_prompt_tokens}"
        told.append(f"{skipped:,} of {counts['rows']:,} rows are left out: their prompts are longer than {limit}")
    if cut := counts.get("truncated_responses"):
        limit = f"data.max_response_tokens, {config.max_response_tokens}"
        told.append(f"{cut:,} of {counts['used']:,} responses are cut at {limit}")
    return "; ".join(told) or None


def prepare_all(config: Data, tokenizer: Any) -> Sequence[Tokenised]:
    """Every usable row of the held-out file, or where there is none of ``config.path``, in order and unsplit.

    For measuring a model outside a run; of a folder of prepared rows the held-out ones. Raises: DataError as
    ``prepare`` does.
    """
    if folder := folder_of(datasets.heldout_place(config) or datasets.train_place(config)):
        return open_folder(folder, config, tokenizer, as_it_is=True).heldout
    gathered = gather_measured(config, tokenizer)
    examples: Sequence[Example] = gathered.sources["heldout"].rows.examples
    tally = Tally()
    examples = seen(examples, view_of(config, gathered.template, train=False), train=False)
    outcomes = encoded(examples, Encoder.of(config, tokenizer, gathered.template), workers=1)
    rows = tuple(_used(examples, outcomes, tally, []))
    tally.check("usable", config.max_prompt_tokens)
    return rows


def encode(
    gathered: Gathered,
    config: Data,
    tokenizer: Any,
    keep: Keep,
    *,
    workers: int = 1,
    views: Mapping[str, View] = {},
) -> Prepared:
    """Split the rows and make ids of them, by one process or several: the result is the same.

    Args:
        keep: given the name of a split and its rows one by one, keeps them, and gives what they are read from.
        views: what is asked of the train rows beside, by name.
    Raises: DataError for too few rows, or a split of which none can be used.
    """
    sources = gathered.sources
    heldout = sources["heldout"].rows.examples if "heldout" in sources else None
    parts = split(sources["train"].rows.examples, heldout, config)
    drawn = subsample(parts.train, config.subsample, config.subsample_seed)
    shown = {
        name: seen(rows, view_of(config, gathered.template, train=name == "train"), train=name == "train")
        for name, rows in (("train", drawn), ("validation", parts.validation), ("heldout", parts.heldout))
    }
    encoder = Encoder.of(config, tokenizer, gathered.template)
    kept: dict[str, Sequence[Tokenised]] = {}
    tallies = {name: Tally() for name in SPLITS}
    used: dict[str, list[Example]] = {name: [] for name in SPLITS}
    of_all = chain.from_iterable(shown[name] for name in SPLITS)
    with closing(encoded(of_all, encoder, workers)) as outcomes:  # and so the processes, where it stops early
        for name in SPLITS:
            examples = shown[name]
            own = islice(outcomes, len(examples))
            kept[name] = keep(name, _used(examples, own, tallies[name], used[name]))
            tallies[name].check(name, config.max_prompt_tokens)
    files = {name: source.counts for name, source in sources.items()}
    given_away = overlap(used["heldout"], used["train"])
    counts = {"format": config.format, "template": gathered.template}
    apart = {
        "unused_heldout": parts.num_unused,
        "not_in_subsample": len(parts.train) - len(drawn),
        "without_target": len(drawn) - len(shown["train"]),
    }
    counts |= totals(files, tallies, apart=apart, overlap=given_away)
    others = {name: _viewed(drawn, name, view, encoder, config, counts) for name, view in views.items()}
    return Prepared(kept["train"], kept["validation"], kept["heldout"], counts, others)


def _viewed(
    rows: Sequence[Example], name: str, view: View, encoder: Encoder, config: Data, counts: dict[str, Any]
) -> tuple[Tokenised, ...]:
    """The train rows under another view, counted."""
    examples, tally = seen(rows, view, train=True), Tally()
    shown = tuple(_used(examples, encoded(examples, encoder, workers=1), tally, []))
    tally.check(f"{name} train", config.max_prompt_tokens)
    counts.setdefault("views", {})[name] = {
        "asks": view.target,
        "rows": len(rows),
        "without_target": len(rows) - len(examples),
        **tally.skips(),
        **tally.sizes(),
    }
    return shown


def _used(
    examples: Sequence[Example], outcomes: Iterator[Encoded], tally: Tally, used: list[Example]
) -> Iterator[Tokenised]:
    """The rows that can be used; all are counted, and the examples of the used ones noted."""
    for example, outcome in zip(examples, outcomes, strict=True):
        tally.add(outcome)
        if isinstance(outcome.ids, Tokenised):
            used.append(example)
            yield outcome.ids
