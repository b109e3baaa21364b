"""Instructions and answers in MiniLLM's layout: Dolly, and the sets that its students are tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from potstill.data.catalogue.dataset import Card, Dataset
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.rows import items_of, optional_text
from potstill.data.examples import Unusable
from potstill.data.formats import WITH_INPUT, WITHOUT_INPUT, example_of, text_of
from potstill.data.reader import BadRow, Row
from potstill.recipe import Data

LAYOUT = Data(format="dolly")


def read(file: Path) -> Iterator[Item | BadRow]:
    """Rows of ``instruction``, ``input`` (may be absent), ``output`` (text, or a list of acceptable texts)."""
    return items_of(file, _item)


def _item(row: Row) -> Item:
    example = example_of(row, LAYOUT)
    frame = WITH_INPUT if row.values.get("input") else WITHOUT_INPUT
    before, after = frame.index("{"), len(frame) - frame.rindex("}") - 1
    return Item(
        example.id,
        example.prompt,
        _outputs(row),
        group=optional_text(row.values, "topic", "category") or "",
        content=example.prompt[before:-after],
        input_span=example.input_span,
    )


def _outputs(row: Row) -> tuple[str, ...]:
    outputs = row.values["output"]
    if not isinstance(outputs, list):
        return (text_of(row.values, "output"),)
    named = {f"output[{index}]": output for index, output in enumerate(outputs)}
    texts = tuple(text_of(named, name) for name in named)
    if not texts:
        raise Unusable("field 'output' is an empty list")
    return texts


TASK = "Follow an instruction, with or without an input, in free text."
VALID = ("valid.jsonl",)
LONG = ("valid.jsonl", "11_/valid.jsonl")

DOLLY = Dataset(
    Card(
        "dolly",
        "databricks-dolly-15k, as MiniLLM splits it",
        "https://huggingface.co/datasets/MiniLLM/dolly",
        "CC BY-SA 3.0",
        TASK,
        notes=(
            "valid is the test split of the papers; dev is for choosing a checkpoint.",
            "raw.jsonl is train and dev in one: its first 1,000 usable rows are dev.",
        ),
        published={"dev": 1000, "valid": 500},
    ),
    {"train": ("train.jsonl",), "dev": ("dev.jsonl",), "valid": VALID, "raw": ("raw.jsonl",)},
    read,
    framed=True,
)
SELF_INST = Dataset(
    Card(
        "self_inst",
        "Self-Instruct, user-oriented instructions",
        "https://huggingface.co/datasets/MiniLLM/self-inst",
        "Apache-2.0",
        TASK,
        notes=("The MiniLLM paper says 252 rows; the published file has 242.",),
        published={"valid": 242},
    ),
    {"valid": VALID},
    read,
    framed=True,
)
VICUNA = Dataset(
    Card(
        "vicuna",
        "Vicuna's 80 questions, with answers that a GPT model wrote",
        "https://huggingface.co/datasets/MiniLLM/Vicuna",
        "Apache-2.0 (the questions)",
        TASK,
        notes=("The references are a model's: a score against them says how alike two models write.",),
        published={"valid": 80},
    ),
    {"valid": VALID},
    read,
    framed=True,
)
SINST = Dataset(
    Card(
        "sinst",
        "Super-NaturalInstructions, answers of at least 11 tokens",
        "https://huggingface.co/datasets/MiniLLM/sinst",
        "Apache-2.0",
        TASK,
        notes=("Several acceptable answers; the score is the best over them.",),
        published={"valid": 1694},
    ),
    {"valid": LONG},
    read,
    framed=True,
)
UINST = Dataset(
    Card(
        "uinst",
        "Unnatural Instructions, answers of at least 11 tokens",
        "https://huggingface.co/datasets/MiniLLM/uinst",
        "Apache-2.0 (MiniLLM's copy)",
        TASK,
        notes=("MiniLLM scores the first 10,000 rows of its file.",),
    ),
    {"valid": LONG},
    read,
    framed=True,
)
