"""A split of a named data set as the data of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.data.datasets import Named, train_place
from potstill.data.prepare import prepare, prepare_all
from potstill.errors import DataError
from potstill.recipe import Data
from tests import tiny

TOKENIZER = tiny.tokenizer(chat=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with small sets of our own."""
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    labels = ["entailment", "neutral", "contradiction"]
    for part, count in (("train", 30), ("dev", 9)):
        rows = [
            {
                "uid": f"{part}{n}",
                "premise": f"A goat ate hat {n}.",
                "hypothesis": "It is full.",
                "label": labels[n % 3],
            }
            for n in range(count)
        ]
        write(tmp_path / "anli" / f"r1_{part}.jsonl", rows)
    write(tmp_path / "dolly" / "valid.jsonl", [{"instruction": f"Say {n}.", "output": f"{n}!"} for n in range(20)])
    return tmp_path


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_split_is_trained_on_and_another_held_out(root: Path) -> None:
    made = prepare(Data(path="anli:r1_train", heldout="anli:r1_dev"), TOKENIZER)
    assert len(made.train) + len(made.validation) == 30
    assert sorted(row.example_id for row in made.heldout) == [f"dev{n}" for n in range(9)]
    assert {row.response for row in made.train} == {"entailment", "neutral", "contradiction"}
    assert made.counts["files"]["train"]["file"] == "anli:r1_train"
    assert made.counts["template"] == "chat"


def test_what_is_hashed_is_the_files(root: Path) -> None:
    config = Data(path="anli:r1_train", heldout="anli:r1_dev")
    first = prepare(config, TOKENIZER).counts["files"]["train"]["sha256"]
    assert prepare(config, TOKENIZER).counts["files"]["train"]["sha256"] == first
    with open(root / "anli" / "r1_train.jsonl", "a") as file:
        file.write("\n")
    assert prepare(config, TOKENIZER).counts["files"]["train"]["sha256"] != first


def test_a_data_set_with_a_frame_of_its_own_gets_no_chat_template_unless_asked(root: Path) -> None:
    (row, *_) = prepare_all(Data(path="dolly:valid"), TOKENIZER)
    assert row.prompt.startswith("Below is an instruction")
    assert TOKENIZER.decode(row.prompt_ids) == row.prompt
    (row, *_) = prepare_all(Data(path="dolly:valid", template="chat"), TOKENIZER)
    assert TOKENIZER.decode(row.prompt_ids).startswith("[user] Below")


def test_rows_that_cannot_be_trained_on_are_counted(root: Path) -> None:
    with open(root / "anli" / "r1_train.jsonl", "a") as file:
        file.write('{"uid": "odd", "premise": "A", "hypothesis": "B", "label": "maybe"}\n')
    made = prepare(Data(path="anli:r1_train", heldout="anli:r1_dev", max_bad_rows=0.1), TOKENIZER)
    assert made.counts["quarantined"] == 1
    with pytest.raises(DataError, match="1 of the 31 rows of anli:r1_train"):
        prepare(Data(path="anli:r1_train", heldout="anli:r1_dev"), TOKENIZER)


def test_names_that_are_none_are_refused_and_files_with_a_colon_are_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="there is no data set 'anly'") as caught:
        train_place(Data(path="anly:r1_train"))
    assert "anli" in str(caught.value)
    with pytest.raises(DataError, match="anli has no split 'r9'"):
        prepare(Data(path="anli:r9"), TOKENIZER)
    monkeypatch.chdir(root)
    Path("anli:mine").write_text("x")
    assert train_place(Data(path="anli:mine")) == Path("anli:mine")
    assert train_place(Data(path="anli:r1_dev")) == Named("anli", "r1_dev")
    assert train_place(Data(path="C:/rows.jsonl")) == Path("C:/rows.jsonl")
