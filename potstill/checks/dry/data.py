"""The rows of a dry run: a few of the recipe's own, or some that stand in for what is not on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from potstill import recipe as schema
from potstill.checks.dry.tokenizers import Chosen, starter_rows
from potstill.data.annotations import LAYOUTS as PALM_LAYOUTS
from potstill.data.annotations import PALM, has_outputs
from potstill.data.catalogue import DATASETS, is_there, load
from potstill.data.catalogue.loading import data_root
from potstill.data.catalogue.step_by_step import place_of
from potstill.data.corpus.blocks import holds_blocks
from potstill.data.corpus.hub import PREFIX
from potstill.data.datasets import STARTER, Named, Place, heldout_place, train_place
from potstill.data.prepared.opening import folder_of
from potstill.data.reader import read_rows
from potstill.errors import DataError
from potstill.recipe import Data, DatasetSource
from potstill.run import write_text

ROWS = 64  # of the recipe's own that are trained on, at most
MADE_UP = 24  # rows of a stand-in
MEASURED = 4  # rows of the other splits, at most
LABELS = ("yes", "no", "maybe")
Say = Callable[[str, str], None]  # what is not here, and what stands in for it


def rows_for(stage: schema.Stage, folder: Path, *, own_tokenizer: bool, say: Say) -> Data:
    """A stage's data with what is not here replaced by files in ``folder``, and a few rows of what is.

    Args:
        own_tokenizer: whether the tokenizer is the model's own, so that rows of token ids mean what they meant.
        say: is told of each stand-in.
    Raises: DataError for a data set or a split that is not known.
    """
    config = stage.data
    train, heldout = train_place(config), heldout_place(config)
    missing = [place for place in (train, heldout) if place is not None and not _here(place, own_tokenizer)]
    there = config.annotations is None or _annotations_here(config, train)
    if not missing and there and not (config.path == STARTER and _asks_for_reasons(stage)):
        return _few(config, train, whole=bool(groups_of(stage)))
    fields = {"group": "group"} if groups_of(stage) else {}
    changed: dict[str, Any] = {"format": "prompt_response", "fields": fields, "template": _template(config, train)}
    if train in missing or not missing or (isinstance(train, Path) and config.path != STARTER):
        changed |= {"path": str(_write(stage, folder, "train")), "annotations": None}
        _tell(say, train, f"{MADE_UP} rows made of the starter rows")
        if config.annotations is not None:
            say(f"annotations {config.annotations}", "labels and rationales of those rows")
    if heldout is not None and (heldout in missing or not isinstance(heldout, Named)):
        changed["heldout"] = str(_write(stage, folder, "heldout"))
        _tell(say, heldout, f"{MADE_UP} other rows made of them")
    return _few(config.model_copy(update=changed), train if "path" not in changed else None)


def groups_of(stage: schema.Stage) -> tuple[str, ...]:
    """The groups of rows that a stage's streams are about."""
    sources = (stream.source for stream in stage.streams)
    wheres = (source.where for source in sources if isinstance(source, DatasetSource) and source.where)
    return tuple(dict.fromkeys(name for where in wheres for name in where.group))


def _asks_for_reasons(stage: schema.Stage) -> bool:
    """Whether rows are to have more than an answer, which the starter rows have not."""
    views = {stream.source.view for stream in stage.streams if isinstance(stream.source, schema.DatasetSource)}
    return "rationale" in views or stage.data.target != "response" or stage.data.labels == "llm"


def _tell(say: Say, place: Place, by: str) -> None:
    say(f"rows of {place}", by)


def _here(place: Place, own_tokenizer: bool) -> bool:
    """Whether rows can be read. Raises: DataError for a split that the data set does not have."""
    if isinstance(place, Named):
        if place.split not in DATASETS[place.name].splits:
            load(place.name, place.split)  # which says so
        return is_there(place.name, place.split)
    return place.exists() and (own_tokenizer or not place.is_dir() or folder_of(place) is None)


def _annotations_here(config: Data, train: Place) -> bool:
    if config.annotations != PALM:
        return Path(config.annotations or "").expanduser().is_file()
    if not isinstance(train, Named) or not has_outputs(train):
        return True  # the run itself says what is wrong with that
    name, splits = PALM_LAYOUTS[train.name]
    try:
        root = data_root()
    except DataError:
        return False
    return place_of(root, name, splits[train.split]) != root


def _template(config: Data, train: Place) -> str:
    """The template that the recipe's rows would have: that of rows in potstill's own layout may be another."""
    framed = isinstance(train, Named) and DATASETS[train.name].framed
    if config.template != "auto":
        return config.template
    return "chat" if config.format == "chat" else "none" if config.format == "dolly" or framed else "auto"


def _few(config: Data, place: Place | None, *, whole: bool = False) -> Data:
    """The data with a share that is a few rows; a folder of token ids is read from where it is needed anyway.

    ``whole``: with all its rows, where a few might lack a group that a stream is about.
    """
    limits = {"max_heldout": min(config.max_heldout, MEASURED), "max_validation": min(config.max_validation, MEASURED)}
    if whole or place is None or (isinstance(place, Path) and place.is_dir()):
        return config.model_copy(update=limits)
    count = len(load(place.name, place.split).items) if isinstance(place, Named) else sum(1 for _ in read_rows(place))
    share = min(config.subsample, ROWS / max(count, ROWS))
    return config.model_copy(update={**limits, "subsample": share})


def _write(stage: schema.Stage, folder: Path, split: str) -> Path:
    """Rows in potstill's own layout, with a label of an LLM's and a rationale each; short ones, which any limit lets
    through."""
    file = folder / f"{stage.name}-{split}.jsonl"
    found = sorted(starter_rows(), key=lambda row: len(row["prompt"]) + len(row["response"]))
    chosen = found[:MADE_UP] if split == "train" else found[MADE_UP : 2 * MADE_UP]
    groups = groups_of(stage)
    lines = (
        _row(at, row, stage.evaluation.accuracy) | ({"group": groups[at % len(groups)]} if groups else {})
        for at, row in enumerate(chosen)
    )
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    return file


def _row(at: int, row: dict[str, Any], accuracy: str) -> dict[str, str]:
    response = {"none": row["response"], "exact": LABELS[at % 3], "equation": f"( {at} + {at % 5} )"}[accuracy]
    return {
        "id": f"stand-in-{at}",
        "prompt": row["prompt"],
        "response": response,
        "rationale": row["response"],
        "llm_label": response,
    }


# --- plain text -------------------------------------------------------------------------------------------------------


def text_for(source: DatasetSource, chosen: Chosen, folder: Path, *, say: Say) -> DatasetSource:
    """A stream's plain text: its own where it is here, else a file of the starter rows, long enough for some blocks."""
    path = Path(source.path or "")
    ids = holds_blocks(path)
    if source.path is None or (not source.path.startswith(PREFIX) and path.exists() and (chosen.own or not ids)):
        return source
    file = folder / "plain-text.txt"
    write_text(file, "".join(f"{line}\n" for line in _lines(chosen.tokenizer, MADE_UP * source.block_tokens)))
    say(f"text of {source.path}", "that of the starter rows")
    return DatasetSource(view="plain_text", path=str(file), block_tokens=source.block_tokens)


def _lines(tokenizer: Any, tokens: int) -> Iterator[str]:
    """Lines that make about as many tokens."""
    texts = [" ".join(row["response"].split()) for row in starter_rows()]
    each = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts) / len(texts)
    return islice(cycle(texts), int(tokens / each) + 1)
