"""Multiple choice: CommonsenseQA, in its own layouts and in CoS-E's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.data.catalogue.dataset import Card, Dataset
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.rows import id_of, items_of, optional_text
from potstill.data.examples import Unusable
from potstill.data.formats import text_of
from potstill.data.reader import BadRow, Row, kind_of

LETTERS = "abcdefghij"


def read(file: Path) -> Iterator[Item | BadRow]:
    """Rows of ``question``, ``choices`` and ``answer`` (text), or ``answerKey`` (a letter), which may be empty."""
    return items_of(file, cqa_item)


def cqa_item(row: Row) -> Item:
    """A row in any of these layouts. Raises: Unusable."""
    values = row.values
    inner = values.get("question")
    asked = inner if isinstance(inner, dict) else values  # CommonsenseQA's own files: {"stem": ..., "choices": [...]}
    question = text_of(asked, "stem" if asked is inner else "question")
    options, letters = _options(asked)
    answer = _answer(values, options, letters)
    return Item(
        id_of(row, "id"),
        asked_with(question, options),
        () if answer is None else (options[answer],),
        options=options,
        answer=answer,
        rationale=optional_text(values, "abstractive_explanation"),
    )


def asked_with(question: str, options: Sequence[str]) -> str:
    """The prompt of distilling step-by-step: the options below the question, each with its letter."""
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, "Answer Choices:", *lines])


def _options(values: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options, and the letters that an answerKey means them by."""
    choices = values.get("choices")
    if isinstance(choices, dict):  # the hub's parquet: {"label": [...], "text": [...]}
        letters, texts = _list(choices, "label"), _list(choices, "text")
    elif isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        letters, texts = [choice.get("label") for choice in choices], [choice.get("text") for choice in choices]
    else:
        texts = _list(values, "choices")
        letters = list(LETTERS.upper()[: len(texts)])
    if not 2 <= len(texts) <= len(LETTERS) or len(texts) != len(letters):
        raise Unusable(f"field 'choices' has {len(texts)} options and {len(letters)} letters")
    named = {f"choices[{index}]": option for index, option in enumerate(texts)}
    return tuple(text_of(named, name) for name in named), tuple(str(letter) for letter in letters)


def _list(values: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(values.get(name), list):
        raise Unusable(f"field {name!r} is {kind_of(values.get(name))}, not a list")
    found: list[Any] = values[name]
    return found


def _answer(values: dict[str, Any], options: tuple[str, ...], letters: tuple[str, ...]) -> int | None:
    if "answerKey" not in values and "answer" in values:
        right = text_of(values, "answer")
        return _index(right, options, "answer")
    key = optional_text(values, "answerKey")
    return None if key is None else _index(key, letters, "answerKey")


def _index(value: str, among: tuple[str, ...], name: str) -> int:
    if value not in among:
        raise Unusable(f"field {name!r} is {value[:40]!r}, which is none of the choices")
    return among.index(value)


def _files(cos_e: str, own: str, hub: str) -> tuple[str, ...]:
    return f"cqa_{cos_e}.json", own, f"data/{hub}-*.parquet", f"v1.11/{hub}-*.parquet"


CQA = Dataset(
    Card(
        "cqa",
        "CommonsenseQA 1.11 (Talmor et al. 2019), with CoS-E's explanations (Rajani et al. 2019)",
        "https://huggingface.co/datasets/tau/commonsense_qa, or datasets/Salesforce/cos_e there (v1.11)",
        "MIT (CommonsenseQA); BSD-3-Clause (CoS-E)",
        "Choose the one of five answers that common sense says.",
        notes=(
            "test is the published validation split, as in most papers: the test answers are kept back (hidden).",
            "Some rows have one option twice, at times the right one: the answer is the first of them.",
            "CoS-E's explanations are often of no use; its train rows are CommonsenseQA's.",
        ),
        published={"train": 9741, "test": 1221, "hidden": 1140},
    ),
    {
        "train": _files("train", "train_rand_split.jsonl", "train"),
        "test": _files("test", "dev_rand_split.jsonl", "validation"),
        "hidden": ("test_rand_split_no_answers.jsonl", "data/test-*.parquet"),
    },
    read,
    folders=("cqa", "dss_raw/cqa"),
)
