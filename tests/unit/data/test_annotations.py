"""What a teacher said is joined to the rows it was said about, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from potstill.data.annotations import annotated
from potstill.data.datasets import Named
from potstill.data.examples import Example, prompt_sha256
from potstill.data.prepare import prepare
from potstill.errors import DataError
from potstill.recipe import Data
from tests import tiny

ROWS = [Example(f"Is {at} even?", "yes" if at % 2 == 0 else "no", f"q{at}") for at in range(6)]
PLACE = Path("rows.jsonl")


def line(row: Example, **said: str) -> dict[str, str]:
    return {"id": row.id, "prompt_sha256": prompt_sha256(row.prompt), **said}


def written(file: Path, *lines: dict[str, str]) -> str:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(file)


def test_lines_are_joined_by_id_whatever_their_order_and_the_first_sample_is_taken(tmp_path: Path) -> None:
    first, second = line(ROWS[4], rationale="Half of it is 2.", llm_label="yes"), line(ROWS[1], rationale="It is odd.")
    file = written(tmp_path / "said.jsonl", first, second, line(ROWS[4], rationale="Because."))
    found = annotated(ROWS, PLACE, file)
    assert [(row.rationale, row.llm_label) for row in found] == [
        (None, None),
        ("It is odd.", None),
        (None, None),
        (None, None),
        ("Half of it is 2.", "yes"),
        (None, None),
    ]
    assert [(row.id, row.prompt, row.response) for row in found] == [(r.id, r.prompt, r.response) for r in ROWS]


def test_what_a_teacher_said_takes_the_place_of_a_rows_own_and_what_it_did_not_say_leaves_that(tmp_path: Path) -> None:
    rows = [replace(row, rationale="It was there.", llm_label="maybe") for row in ROWS[:3]]
    file = written(tmp_path / "said.jsonl", line(ROWS[0], rationale="It is 0."), line(ROWS[1], llm_label="no"))
    assert [(row.rationale, row.llm_label) for row in annotated(rows, PLACE, file)] == [
        ("It is 0.", "maybe"),
        ("It was there.", "no"),
        ("It was there.", "maybe"),
    ]


def test_annotations_of_shifted_rows_are_refused(tmp_path: Path) -> None:
    shifted = [line(ROWS[at], rationale="Why.") | {"id": ROWS[at + 1].id} for at in range(5)]
    with pytest.raises(DataError, match=r"said\.jsonl:1: what is said about 'q1' was said about another prompt"):
        annotated(ROWS, PLACE, written(tmp_path / "said.jsonl", *shifted))


def test_annotations_of_other_rows_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "said.jsonl", line(Example("p", "r", "another"), rationale="Why."))
    with pytest.raises(DataError, match=r"nothing that .*said\.jsonl says is about a row of rows\.jsonl"):
        annotated(ROWS, PLACE, file)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"id": "q1"}, r"said\.jsonl:1: missing field 'prompt_sha256'"),
        ({"prompt_sha256": "00"}, r"said\.jsonl:1: missing field 'id'"),
        ({"id": "q1", "prompt_sha256": prompt_sha256(ROWS[1].prompt), "rationale": 7}, r"said\.jsonl:1: .*'rationale'"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, broken: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        annotated(ROWS, PLACE, written(tmp_path / "said.jsonl", broken))


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.annotations=.*plam: there is no such file\n.*or palm"):
        annotated(ROWS, PLACE, str(tmp_path / "plam"))


def test_held_out_rows_are_not_looked_for_in_a_file_of_train_rows(tmp_path: Path) -> None:
    rows = [{"id": f"r{at}", "prompt": f"Is {at} even?", "response": "yes"} for at in range(30)]
    test = [{"id": f"r{at}", "prompt": f"Is {at} odd?", "response": "no"} for at in range(5)]
    said = [line(Example(row["prompt"], "", row["id"]), rationale="Because.") for row in rows]
    config = Data(
        path=written(tmp_path / "train.jsonl", *rows),
        heldout=written(tmp_path / "test.jsonl", *test),
        annotations=written(tmp_path / "said.jsonl", *said),
        target="label_then_rationale",
    )
    found = prepare(config, tiny.tokenizer())
    assert {row.response for row in (*found.train, *found.validation)} == {"yes: Because."}
    assert {row.response for row in found.heldout} == {"no"}


# --- the outputs beside the data sets of distilling step-by-step ------------------------------------------------------


def test_palm_said_nothing_about_a_file() -> None:
    with pytest.raises(
        DataError, match=r"no outputs of it for rows\.jsonl\n  fix: there are for cqa:train, .*anli:r1_dev"
    ):
        annotated(ROWS, PLACE, "palm")
    with pytest.raises(DataError, match="no outputs of it for gsm8k:train"):
        annotated(ROWS, Named("gsm8k", "train"), "palm")


@pytest.mark.parametrize(
    ("name", "num_labels"), [("svamp:train", 765), ("cqa:test", 1190), ("anli:r1_dev", 991), ("anli:r1_test", 990)]
)
def test_palms_labels_and_rationales_reach_the_rows(data_dir: Path, name: str, num_labels: int) -> None:
    from potstill.data.gathering import gather

    rows = gather(Data(path=name, annotations="palm"), tiny.tokenizer()).sources["train"].rows.examples
    assert sum(row.llm_label is not None for row in rows) == num_labels
    assert sum(bool(row.rationale) for row in rows) >= num_labels
    gold = gather(Data(path=name), tiny.tokenizer()).sources["train"].rows.examples
    assert [(row.id, row.prompt, row.response) for row in rows] == [(row.id, row.prompt, row.response) for row in gold]
    if not name.startswith("svamp"):  # whose equations are compared by value elsewhere
        agreement = sum(row.llm_label == row.response for row in rows) / len(rows)
        assert agreement == pytest.approx(
            {"cqa:test": 0.772, "anli:r1_dev": 0.668, "anli:r1_test": 0.656}[name],
            abs=0.015,  # options are compared as the data set spells them
        )


def test_a_file_is_of_train_rows_though_palm_spoke_of_the_held_out_ones(data_dir: Path, tmp_path: Path) -> None:
    from potstill.data.gathering import gather

    config = Data(path="svamp:train", heldout="svamp:test")
    first, *_ = gather(config, tiny.tokenizer()).sources["train"].rows.examples
    file = written(tmp_path / "said.jsonl", line(first, rationale="Because."))
    found = gather(config.model_copy(update={"annotations": file}), tiny.tokenizer()).sources
    assert found["train"].rows.examples[0].rationale == "Because."
    assert not any(row.rationale for row in found["heldout"].rows.examples)
