"""Rows joined by position to an LLM's outputs: what is parsed, what is counted, and what must not slip by a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.data.catalogue.item import Item
from potstill.data.catalogue.llm_outputs import LAYOUTS, Said
from potstill.data.catalogue.step_by_step import Joined, joined
from potstill.data.examples import Unusable
from potstill.data.reader import Row
from potstill.errors import DataError
from potstill.evaluation.metrics import arithmetic

NEXT = "\n\nQ: Another?\nAnswer Choices:\n(a) x\nA: Odd. So the answer is (a) x."
OPTIONS = ["clerk", "Old fish", "moon.", "fish", "fish"]


def question(number: int, answer: str = "fish") -> dict[str, Any]:
    return {"id": f"q{number}", "question": f"Number {number}?", "choices": OPTIONS, "answer": answer}


def write(folder: Path, rows: list[Any], chunks: list[list[Any]], name: str = "cqa", split: str = "train") -> Path:
    (folder / "llm").mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / f"{name}_{split}.json").write_text(text, encoding="utf-8")
    for number, chunk in enumerate(chunks):
        (folder / "llm" / f"{split}_CoT_{number}.json").write_text(json.dumps(chunk), encoding="utf-8")
    return folder


def says(label: str) -> str:
    return f"It swims. So the answer is {label}.{NEXT}"


# --- the join ---------------------------------------------------------------------------------------------------------


def test_items_have_the_llms_label_and_reason_and_gold_stands_beside(tmp_path: Path) -> None:
    rows = [question(0) | {"abstractive_explanation": "A person's."}, question(1)]
    found = joined(write(tmp_path, rows, [[says("(a) clerk"), says("(d) fish")]]), "cqa", "train")
    assert [(i.id, i.references, i.answer, i.rationale) for i in found.items] == [
        ("q0", ("clerk",), 0, "It swims."),
        ("q1", ("fish",), 3, "It swims."),
    ]
    assert [(i.id, i.references, i.answer) for i in found.gold] == [("q0", ("fish",), 3), ("q1", ("fish",), 3)]
    assert found.gold[0].rationale == "A person's."
    assert found.items[0].prompt == found.gold[0].prompt
    assert (found.agreement, found.num_failures, found.num_rows) == (50.0, 0, 2)


def test_chunks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Ten comes after nine: a sort of names would put it second, and every row after the first would be wrong."""
    chunks = [[f"Chunk {k}. So the answer is (d) fish."] for k in range(12)]
    found = joined(write(tmp_path, [question(k) for k in range(12)], chunks), "cqa", "train")
    assert [item.rationale for item in found.items] == [f"Chunk {k}." for k in range(12)]


@pytest.mark.parametrize(("num_rows", "num_outputs"), [(3, 2), (2, 3), (1, 0)])
def test_another_number_of_outputs_is_refused_with_both_counts(tmp_path: Path, num_rows: int, num_outputs: int) -> None:
    write(tmp_path, [question(k) for k in range(num_rows)], [[says("(d) fish")] * num_outputs])
    with pytest.raises(DataError, match=f"has {num_rows} rows and .* {num_outputs} outputs.*misaligned"):
        joined(tmp_path, "cqa", "train")


def test_a_missing_chunk_is_named(tmp_path: Path) -> None:
    write(tmp_path, [question(k) for k in range(3)], [[says("(d) fish")]] * 3)
    (tmp_path / "llm" / "train_CoT_1.json").unlink()
    with pytest.raises(DataError, match=r"there is no .*train_CoT_1\.json"):
        joined(tmp_path, "cqa", "train")


def test_no_outputs_at_all_is_said(tmp_path: Path) -> None:
    write(tmp_path, [question(0)], [])
    with pytest.raises(DataError, match=r"there is no .*train_CoT_0\.json"):
        joined(tmp_path, "cqa", "train")


@pytest.mark.parametrize(
    "broken", ['{"id": "q1"', question(1, answer="sun"), question(0), question(1) | {"answer": ""}]
)
def test_a_row_that_cannot_be_read_stops_the_join(tmp_path: Path, broken: Any) -> None:
    """Left out, it would shift every later row by one."""
    write(tmp_path, [question(0), broken, question(2)], [[says("(d) fish")] * 3])
    with pytest.raises(DataError, match=r"cqa_train\.json:2: "):
        joined(tmp_path, "cqa", "train")


def test_rows_without_labels_stop_the_join(tmp_path: Path) -> None:
    row = {"id": "q0", "question": "Who?", "choices": OPTIONS, "answerKey": ""}
    with pytest.raises(DataError, match="q0 has no label"):
        joined(write(tmp_path, [row], [[says("(d) fish")]]), "cqa", "train")


@pytest.mark.parametrize(
    ("text", "said"), [('["a', "not a whole JSON array"), ('{"0": "a"}', "not a JSON array but an")]
)
def test_a_broken_chunk_is_refused(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, [question(0)], [[]])
    (tmp_path / "llm" / "train_CoT_0.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        joined(tmp_path, "cqa", "train")


def test_the_folder_above_will_do_and_a_missing_one_is_named(tmp_path: Path) -> None:
    write(tmp_path / "cqa", [question(0)], [[says("(d) fish")]])
    assert joined(tmp_path, "cqa", "train").num_rows == 1
    with pytest.raises(DataError, match=r"there is no cqa_test\.json in ") as caught:
        joined(tmp_path, "cqa", "test")
    assert "datasets.zip" in str(caught.value.fix)
    with pytest.raises(DataError, match="asdiv"):
        joined(tmp_path, "asdiv", "train")


# --- failures ---------------------------------------------------------------------------------------------------------

MIXED = [says("(d) fish"), "It swims and swims", says("either (a) clerk or (d) fish"), None, says("(a) clerk")]


def mixed(folder: Path, **options: Any) -> Joined:
    return joined(write(folder, [question(k) for k in range(5)], [MIXED[:2], MIXED[2:]]), "cqa", "train", **options)


def test_failures_are_counted_left_out_and_wrong(tmp_path: Path) -> None:
    found = mixed(tmp_path)
    assert [item.id for item in found.items] == [item.id for item in found.gold] == ["q0", "q4"]
    assert found.failures == {
        "the output does not say 'So the answer is'": 1,
        "the label names several options": 1,
        "the output is null, not text": 1,
    }
    assert (found.num_failures, found.num_rows, found.agreement) == (3, 5, 20.0)
    assert all(item.references[0].strip() for item in found.items)


def test_kept_failures_are_never_blanks(tmp_path: Path) -> None:
    found = mixed(tmp_path, keep_failures=True)
    assert [item.id for item in found.items] == [item.id for item in found.gold] == [f"q{k}" for k in range(5)]
    assert [item.references for item in found.items] == [("fish",), (), (), (), ("clerk",)]
    assert [(found.items[k].answer, found.items[k].rationale) for k in (1, 2, 3)] == [(None, None)] * 3
    with pytest.raises(ValueError, match="no reference"):
        found.items[1].example()
    assert (found.num_failures, found.agreement) == (3, 20.0)


# --- parsing ----------------------------------------------------------------------------------------------------------

GOLD = LAYOUTS["cqa"].item_of(Row("f:1", question(0)))


def said(name: str, output: Any) -> Said:
    return LAYOUTS[name].said(GOLD, output)


@pytest.mark.parametrize(
    ("label", "verbatim", "spelled", "answer"),
    [
        ("(d) fish", "fish", "fish", 3),  # of two that are alike the first
        ("(b) old Fish", "old Fish", "Old fish", 1),  # the data set's spelling is trained on
        ("(c) moon", "moon", "moon.", 2),
        ("(e) clerk", "clerk", "clerk", 0),  # the words count, not the letter
    ],
)
def test_a_choice_is_known_by_its_words(label: str, verbatim: str, spelled: str, answer: int) -> None:
    assert said("cqa", says(label)) == Said(verbatim, spelled, answer, "It swims.")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (says("(a) sun"), "none of the options"),
        (says("one of these"), "names no option"),
        (says(""), "names no option"),
        (says("(a) clerk or (b) Old fish"), "several options"),
        (f"It swims.{NEXT}", "does not say 'So the answer is'"),  # the next example's answer is not this one's
        (3, "the output is int, not text"),
    ],
)
def test_a_choice_that_cannot_be_read(output: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        said("cqa", output)


@pytest.mark.parametrize(
    ("label", "equation"),
    [
        ("(10 - (3 + 6)).", "(10 - (3 + 6))"),
        ("(16 * 17) * 4.", "(16 * 17) * 4"),
        ("(2.5 / 5)", "(2.5 / 5)"),
        ("7.", "7"),
    ],
)
def test_an_equation_is_taken_whole(label: str, equation: str) -> None:
    found = said("svamp", f"So 1 is left. The answer is {label}\n\nQ: There are 15 trees. The answer is (1).")
    assert found == Said(equation, equation, None, "So 1 is left.")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("(some - 8).", "not an equation"),
        ("(8 / 4) and (6 / 4).", "not an equation"),
        ("(14, 21).", "not an equation"),
        ("().", "not an equation"),
        ("__import__('os').", "not an equation"),
        ("((491 - 21", "do not close"),
        ("1) - (2.", "do not close"),
        ("", "not an equation"),
    ],
)
def test_what_is_no_equation_is_refused(label: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        said("svamp", f"Work. The answer is {label}")


def test_inference_is_cut_at_the_next_premise_and_may_lack_a_reason() -> None:
    output = (
        "It says so. So the answer is neutral.\n\nPremise: X.\nHypothesis: Y.\nAnswer: Z. So the answer is entailment."
    )
    assert said("anli1", output) == Said("neutral", "neutral", 1, "It says so.")
    assert said("anli1", "So the answer is contradiction.").rationale is None
    assert said("esnli", "It says so.\nAnswer: entailment\n\nPremise: X.") == Said(
        "entailment", "entailment", 0, "It says so."
    )


@pytest.mark.parametrize("label", ["", "yes.", "neutral or entailment.", "entailment\n\nPre"])
def test_inference_without_a_known_label_is_refused(label: str) -> None:
    with pytest.raises(Unusable, match="none of entailment, neutral, contradiction"):
        said("anli1", f"It says so. So the answer is {label}")


def test_anli_in_this_layout_has_numbers_for_labels(tmp_path: Path) -> None:
    row = {"uid": "a", "premise": "P.", "hypothesis": "H.", "label": 2, "reason": "A person's."}
    found = joined(write(tmp_path, [row], [["W. So the answer is neutral."]], "anli1", "valid"), "anli1", "valid")
    assert (found.gold[0].references, found.gold[0].group) == (("contradiction",), "r1")
    assert (found.items[0].references, found.items[0].answer, found.agreement) == (("neutral",), 1, 0.0)


def test_equations_are_compared_only_if_the_caller_says_how(tmp_path: Path) -> None:
    folder = write(
        tmp_path, [{"input": "q", "label": "( 4.0 + 3.0 )"}], [["W. The answer is (3 + 4)."]], "svamp", "test"
    )
    assert joined(folder, "svamp", "test").agreement is None
    seen: list[tuple[str, str]] = []
    assert joined(folder, "svamp", "test", equal=lambda a, b: not seen.append((a, b))).agreement == 100.0  # type: ignore[func-returns-value]
    assert seen == [("(3 + 4)", "( 4.0 + 3.0 )")]


# --- e-SNLI, joined already -------------------------------------------------------------------------------------------


def test_lines_that_are_joined_already(tmp_path: Path) -> None:
    row = {"input": "premise: P.\nhypothesis: H.", "label": "neutral", "llm_label": "neutral"}
    row |= {"rationale": "An LLM's.", "human_rationale": "A person's."}
    rows = [row, row | {"llm_label": ""}, row | {"llm_label": "entailment", "rationale": ""}]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = joined(tmp_path, "esnli", "valid")
    assert [(i.id, i.references, i.rationale) for i in found.items] == [
        ("valid.jsonl:1", ("neutral",), "An LLM's."),
        ("valid.jsonl:3", ("entailment",), None),
    ]
    assert [item.rationale for item in found.gold] == ["A person's.", "A person's."]
    assert (found.num_failures, round(found.agreement or 0, 1)) == (1, 33.3)


# --- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name", "split", "num_rows", "num_failures", "agreement"),
    [
        ("dss_raw", "cqa", "train", 9741, 318, 74.3),
        ("dss_raw", "cqa", "test", 1221, 31, 77.2),
        ("dss_raw", "anli1", "valid", 1000, 9, 66.8),
        ("dss_raw", "anli1", "test", 1000, 10, 65.6),
        ("dss_esnli", "esnli", "valid", 9842, 4, 73.2),
        ("dss_esnli", "esnli", "test", 9824, 1, 73.0),
    ],
)
def test_palms_labels_agree_with_gold_as_published(
    data_dir: Path, folder: str, name: str, split: str, num_rows: int, num_failures: int, agreement: float
) -> None:
    found = joined(data_dir / folder, name, split)
    assert found.agreement is not None
    assert (found.num_rows, found.num_failures, round(found.agreement, 1)) == (num_rows, num_failures, agreement)
    assert len(found.items) == len(found.gold) == num_rows - num_failures
    assert all(item.references[0].strip() and item.rationale for item in found.items)
    assert all(item.options[item.answer] == item.references[0] for item in found.items if item.answer is not None)


@pytest.mark.parametrize(
    ("split", "num_rows", "num_failures", "num_right"), [("train", 800, 35, 595), ("test", 200, 7, 155)]
)
def test_palms_equations(data_dir: Path, split: str, num_rows: int, num_failures: int, num_right: int) -> None:
    evaluate, same_value = arithmetic.evaluate, arithmetic.same_value
    found = joined(
        data_dir / "dss_raw", "svamp", split, equal=lambda a, b: same_value(evaluate(a).value, evaluate(b).value)
    )
    assert (found.num_rows, found.num_failures) == (num_rows, num_failures)
    assert found.agreement == pytest.approx(100 * num_right / num_rows)


def moved(data_dir: Path, folder: Path, name: str, split: str, start: int) -> Path:
    """A copy of a real split in which rows from ``start`` on stand beside the next row's output."""
    source = data_dir / "dss_raw" / name
    rows = (source / f"{name}_{split}.json").read_text(encoding="utf-8").splitlines()
    shifted = [*rows[:start], *rows[start + 1 :], rows[start]]
    (folder / f"{name}_{split}.json").write_text("\n".join(shifted) + "\n", encoding="utf-8")
    (folder / "llm").symlink_to(source / "llm")
    return folder


@pytest.mark.parametrize(("name", "split"), [("cqa", "test"), ("svamp", "train"), ("svamp", "test"), ("anli1", "test")])
def test_real_outputs_moved_by_one_row_are_refused(data_dir: Path, tmp_path: Path, name: str, split: str) -> None:
    with pytest.raises(DataError, match="shifted or shuffled"):
        joined(moved(data_dir, tmp_path, name, split, 0), name, split)


@pytest.mark.parametrize(
    ("name", "split", "start", "shown"),
    [
        ("cqa", "test", 600, "601 to 700"),
        ("svamp", "train", 420, "401 to 500"),
        ("svamp", "train", 720, "701 to 800"),
        ("anli1", "test", 830, "801 to 900"),
    ],
)
def test_real_outputs_moved_from_some_row_on_are_refused(
    data_dir: Path, tmp_path: Path, name: str, split: str, start: int, shown: str
) -> None:
    with pytest.raises(DataError, match=f"the labels of outputs {shown} agree with"):
        joined(moved(data_dir, tmp_path, name, split, start), name, split)


def test_the_label_stands_after_the_last_mark() -> None:
    gold = Item("q", "Who swims?", ("fish",), options=("clerk", "fish"), answer=1)
    said = LAYOUTS["cqa"].said(gold, "So the answer is not a clerk. It swims. So the answer is (b) fish.\n\nQ: Who")
    assert (said.label, said.answer, said.rationale) == ("fish", 1, "So the answer is not a clerk. It swims.")
