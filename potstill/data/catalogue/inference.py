"""Natural language inference: does a hypothesis follow from a premise? ANLI and e-SNLI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.data.catalogue.dataset import Card, Dataset
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.rows import id_of, items_of, name_of, optional_text, text
from potstill.data.examples import Unusable
from potstill.data.formats import text_of
from potstill.data.reader import BadRow, Row

LABELS = ("entailment", "neutral", "contradiction")  # in the order of the hub's numbers
# Klinge's prompt for ANLI (MiniLLM_Seq2Seq), options in its order.
CONTENT = "{premise}\nCan we infer the following and why?\n{hypothesis}"
PROMPT = CONTENT + "\n\nOPTIONS:\n- entailment\n- contradiction\n- neutral"
ROUND = re.compile(r"(?:^|[_/-])[rR]([123])(?=[_./-])")
JOINED_INPUT = re.compile(r"premise: (.*)\nhypothesis: (.*)", re.DOTALL)


def read_anli(file: Path) -> Iterator[Item | BadRow]:
    """Rows of ``uid``, ``premise`` (originally ``context``), ``hypothesis``, ``label``, ``reason``.

    The round is taken from the file's name or its folder's: no row says it.
    """
    found = ROUND.search(f"{file.parent.name}/{file.name}")
    group = f"r{found[1]}" if found else ""
    return items_of(file, lambda row: nli_item(row, group))


def read_esnli(file: Path) -> Iterator[Item | BadRow]:
    """The published csv, the hub's columns, and lines of an ``input`` that holds premise and hypothesis."""
    return items_of(file, nli_item)


def nli_item(row: Row, group: str = "") -> Item:
    """A row in any of these layouts. Raises: Unusable."""
    values = row.values
    premise, hypothesis = _pair(values)
    gold = label_of(values, name_of(values, "label", "gold_label"))
    words = {"premise": premise, "hypothesis": hypothesis}
    return Item(
        id_of(row, "uid", "pairID", "id"),
        PROMPT.format(**words),
        (gold,),
        options=LABELS,
        answer=LABELS.index(gold),
        group=group,
        rationale=optional_text(values, "reason", "explanation_1", "Explanation_1", "human_rationale"),
        content=CONTENT.format(**words),
        input_span=(0, len(premise)),  # the prompt begins with it
    )


def _pair(values: dict[str, Any]) -> tuple[str, str]:
    if "input" not in values:
        return text(values, "premise", "context", "Sentence1"), text(values, "hypothesis", "Sentence2")
    if not (found := JOINED_INPUT.fullmatch(text_of(values, "input"))):
        raise Unusable("field 'input' is not 'premise: ...' and 'hypothesis: ...' on two lines")
    named = {"premise": found[1], "hypothesis": found[2]}
    return text_of(named, "premise"), text_of(named, "hypothesis")


def label_of(values: dict[str, Any], name: str) -> str:
    """The label as a word, from a word, its first letter, or the hub's number. Raises: Unusable."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        value = text_of(values, name).strip().lower()
    for number, word in enumerate(LABELS):
        if value in (number, str(number), word, word[0]):
            return word
    raise Unusable(f"field {name!r} is {str(value)[:40]!r}, not one of {', '.join(LABELS)}, e, n, c, 0, 1, 2")


def _anli_files(part: str, round: int) -> tuple[str, ...]:
    hub = f"{part}_r{round}-*.parquet"
    return f"r{round}_{part}.jsonl", f"R{round}/{part}.jsonl", f"plain_text/{hub}", hub


def _esnli_files(split: str, published: str) -> tuple[str, ...]:
    return published, f"{split}.jsonl", f"esnli_{split}.jsonl", f"esnli_{split}.json"


ROUNDS = {1: (16946, 1000, 1000), 2: (45460, 1000, 1000), 3: (100459, 1200, 1200)}
PARTS = ("train", "dev", "test")
TASK = "Say whether a hypothesis follows from a premise, contradicts it, or neither."
ANLI = Dataset(
    Card(
        "anli",
        "Adversarial NLI, rounds 1 to 3 (Nie et al. 2020)",
        "https://huggingface.co/datasets/facebook/anli, or https://dl.fbaipublicfiles.com/anli/anli_v1.0.zip",
        "CC BY-NC 4.0",
        TASK,
        notes=(
            "Rounds differ much in difficulty: figures are given by round.",
            "The reason is the annotator's, and often speaks of why a model would be fooled.",
        ),
        published={f"r{at}_{part}": n for at, counts in ROUNDS.items() for part, n in zip(PARTS, counts, strict=True)},
    ),
    {f"r{at}_{part}": _anli_files(part, at) for at in ROUNDS for part in PARTS},
    read_anli,
)
ESNLI = Dataset(
    Card(
        "esnli",
        "e-SNLI: SNLI with human explanations (Camburu et al. 2018)",
        "https://github.com/OanaMariaCamburu/e-SNLI (dataset/)",
        "explanations as in the repository's LICENSE (MIT-style); SNLI CC BY-SA 4.0",
        TASK,
        notes=("Of three explanations the first is taken; train has one, and some rows have none.",),
        published={"train": 549_367, "valid": 9842, "test": 9824},
    ),
    {
        "train": _esnli_files("train", "esnli_train_1.csv + esnli_train_2.csv"),
        "valid": _esnli_files("valid", "esnli_dev.csv"),
        "test": _esnli_files("test", "esnli_test.csv"),
    },
    read_esnli,
    folders=("esnli", "dss_esnli"),
)
