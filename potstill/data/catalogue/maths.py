"""Word problems: SVAMP, whose answers are equations, and GSM8K, whose answers are numbers after some working."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.data.catalogue.dataset import Card, Dataset
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.rows import id_of, items_of, optional_text
from potstill.data.examples import Unusable
from potstill.data.formats import text_of
from potstill.data.reader import BadRow, Row, kind_of

CALCULATOR = re.compile(r"<<[^<>]*>>")
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)")
SLIPS = {"Common-Divison": "Common-Division"}  # one row of the published file


def read_svamp(file: Path) -> Iterator[Item | BadRow]:
    """Rows of ``Body``, ``Question``, ``Equation``, ``Answer``; or of ``input`` and ``label``, the equation."""
    return items_of(file, svamp_item)


def svamp_item(row: Row) -> Item:
    """A row in either layout; the references are the equation, and the number where there is one. Raises: Unusable."""
    values = row.values
    if "input" in values:
        return Item(id_of(row, "id"), text_of(values, "input"), (text_of(values, "label"),))
    kind = optional_text(values, "Type") or ""
    return Item(
        id_of(row, "ID"),
        f"{text_of(values, 'Body')}\n{text_of(values, 'Question')}",
        (text_of(values, "Equation"), _number(values, "Answer")),
        group=SLIPS.get(kind, kind),
    )


def _number(values: dict[str, Any], name: str) -> str:
    """A number without a fraction that is nothing, as a person writes it."""
    value = values.get(name)
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # of any size: a float need not hold it
    if not isinstance(value, float) or not math.isfinite(value):
        raise Unusable(f"field {name!r} is {kind_of(value)}, not a number")
    return str(int(value)) if value == value // 1 else repr(value)


def read_gsm8k(file: Path) -> Iterator[Item | BadRow]:
    """Rows of ``question`` and ``answer``: the working, then the number on a last line after ``####``."""
    return items_of(file, gsm8k_item)


def gsm8k_item(row: Row) -> Item:
    """The reference is the number without thousands separators; the rationale is the working. Raises: Unusable."""
    answer = text_of(row.values, "answer")
    working, mark, result = answer.rpartition("####")
    number = result.strip().replace(",", "").removeprefix("$")
    if not mark or not NUMBER.fullmatch(number):
        raise Unusable("field 'answer' does not end in a number after ####")
    rationale = CALCULATOR.sub("", working).strip()
    return Item(id_of(row, "id"), text_of(row.values, "question"), (number,), rationale=rationale or None)


SVAMP = Dataset(
    Card(
        "svamp",
        "SVAMP (Patel et al. 2021); train and test as distilling step-by-step cuts it",
        "https://github.com/arkilpatel/SVAMP (SVAMP.json)",
        "MIT",
        "Give the arithmetic that answers a short problem.",
        notes=(
            "Equations are compared by value, not by their characters.",
            "all is the published file, train and test the same 1,000 rows cut 800 and 200: never train on all.",
            "The hub has another cut, 700 and 300; figures on it are of another test.",
            "In row chal-680 the published answer, 1, is not what the equation gives, 5.",
        ),
        published={"all": 1000, "train": 800, "test": 200},
    ),
    {"train": ("svamp_train.json",), "test": ("svamp_test.json",), "all": ("SVAMP.json",)},
    read_svamp,
    folders=("svamp", "dss_raw/svamp"),
)
GSM8K = Dataset(
    Card(
        "gsm8k",
        "Grade School Math 8K (Cobbe et al. 2021)",
        "https://github.com/openai/grade-school-math (grade_school_math/data), or https://huggingface.co/datasets/openai/gsm8k",
        "MIT",
        "Work out a problem of several steps, and give the number.",
        notes=(
            "The working has its calculator marks, <<48/2=24>>, taken out.",
            "There is no validation split: set rows of train aside.",
        ),
        published={"train": 7473, "test": 1319},
    ),
    {part: (f"{part}.jsonl", f"main/{part}-*.parquet") for part in ("train", "test")},
    read_gsm8k,
)
