"""Summaries: CNN/DailyMail, XSum and SAMSum, which differ in what their columns are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from potstill.data.catalogue.dataset import Card, Dataset
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.rows import id_of, items_of
from potstill.data.formats import text_of
from potstill.data.reader import BadRow, Row

PROMPT = "summarize: {text}\n"  # T5's word for it


def reader(long: str, short: str) -> Callable[[Path], Iterator[Item | BadRow]]:
    """Reads rows of ``id``, the column ``long`` and its summary in ``short``, exactly as they stand."""

    def item(row: Row) -> Item:
        text, summary = text_of(row.values, long), text_of(row.values, short)
        return Item(id_of(row, "id"), PROMPT.format(text=text), (summary,), content=text)

    return lambda file: items_of(file, item)


def _files(split: str, *hub: str, own: str | None = None) -> tuple[str, ...]:
    names = (split, own) if own else (split,)
    return *(f"{name}.{kind}" for name in names for kind in ("csv", "jsonl", "json", "parquet")), *hub


SPLITS = ("train", "validation", "test")
CNN_DAILYMAIL = Dataset(
    Card(
        "cnn_dailymail",
        "CNN/DailyMail 3.0.0 (See et al. 2017)",
        "https://huggingface.co/datasets/abisee/cnn_dailymail (3.0.0)",
        "Apache-2.0 for the set; the articles are CNN's and the Daily Mail's",
        "Summarise a news article in a few highlights.",
        notes=(
            "Highlights stand on lines of their own; ROUGE-Lsum needs those line ends.",
            "The first sentences are a strong summary: compare with them.",
        ),
        published={"train": 287_113, "validation": 13_368, "test": 11_490},
    ),
    {split: _files(split, f"3.0.0/{split}-*.parquet") for split in SPLITS},
    reader("article", "highlights"),
)
XSUM = Dataset(
    Card(
        "xsum",
        "XSum (Narayan et al. 2018)",
        "https://huggingface.co/datasets/EdinburghNLP/xsum",
        "not stated; the articles are the BBC's",
        "Say in one sentence what a news article is about.",
        notes=(
            "The summary is the article's own first sentence, taken out: it often says what the rest does not.",
            "A few articles are empty or almost so; empty ones are bad rows here.",
        ),
        published={"train": 204_045, "validation": 11_332, "test": 11_334},
    ),
    {split: _files(split, f"data/{split}-*.parquet") for split in SPLITS},
    reader("document", "summary"),
)
SAMSUM = Dataset(
    Card(
        "samsum",
        "SAMSum (Gliwa et al. 2019)",
        "https://huggingface.co/datasets/Samsung/samsum",
        "CC BY-NC-ND 4.0",
        "Summarise a chat between friends.",
        notes=("The published validation file is called val.json.",),
        published={"train": 14_732, "validation": 818, "test": 819},
    ),
    {split: _files(split, f"data/{split}-*.parquet", own="val" if split == "validation" else None) for split in SPLITS},
    reader("dialogue", "summary"),
)
