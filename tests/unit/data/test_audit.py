"""What two files have in common."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.audit import audit, near_duplicates
from potstill.data.examples import Example
from potstill.data.overlap import SHINGLE, words
from potstill.errors import DataError
from potstill.recipe import Data

TEXT = "A small pot still makes a strong spirit from a weak wash, and a goat ate the hat of the man who made it"


def example(id: str, text: str) -> Example:
    return Example("", text, id)


def by_hand(one: str, other: str) -> float:
    sets = []
    for text in (one, other):
        said = words(text)
        sets.append(
            {tuple(said[at : at + SHINGLE]) for at in range(max(1, len(said) - SHINGLE + 1))} if said else set()
        )
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else 0.0


def test_a_word_changed_is_nearly_the_same_and_case_and_punctuation_are_nothing() -> None:
    changed = TEXT.replace("hat", "cap")
    (pair,) = near_duplicates(
        [example("a", TEXT)], [example("b", changed), example("c", "Something else entirely")], 0.7
    )
    assert (pair.one, pair.other) == ("a", "b")
    assert pair.similarity == pytest.approx(by_hand(TEXT, changed))
    (same,) = near_duplicates([example("a", TEXT)], [example("b", TEXT.upper() + "!")], 1.0)
    assert same.similarity == 1.0


def test_within_a_file_each_pair_is_found_once_and_no_row_is_its_own() -> None:
    rows = [example("a", TEXT), example("b", TEXT), example("c", TEXT), example("d", "Nothing of the sort here")]
    assert [(pair.one, pair.other) for pair in near_duplicates(rows)] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_texts_without_words_are_like_nothing() -> None:
    assert near_duplicates([example("a", "!!"), example("b", "??")]) == ()
    assert [p.similarity for p in near_duplicates([example("a", "yes"), example("b", "Yes.")])] == [1.0]


@given(st.integers(0, 2**31), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_nothing_is_missed_and_nothing_is_too_much(seed: int, threshold: float) -> None:
    """Against all pairs compared one by one."""
    random_ = random.Random(seed)
    texts = [" ".join(random_.choice("abcd") for _ in range(random_.randrange(0, 9))) for _ in range(12)]
    rows = [example(str(at), text) for at, text in enumerate(texts)]
    found = {(pair.one, pair.other) for pair in near_duplicates(rows[:6], rows[6:], threshold)}
    expected = {
        (one.id, other.id)
        for one in rows[:6]
        for other in rows[6:]
        if by_hand(one.response, other.response) >= threshold and words(one.response)
    }
    assert found == expected


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="a threshold of 0"):
        near_duplicates([], [], 0)


def test_two_files_are_compared_and_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n} about the goat?", "response": f"{TEXT}, number {n}."} for n in range(6)]
    unlike = {
        "prompt": "Why is the sky blue today?",
        "response": "Light of short waves is scattered more than other light.",
    }
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]) + "{oops\n")
    test.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], rows[5], unlike]))
    found = audit(train, test, Data(max_bad_rows=0.2), threshold=0.7)
    assert found.figures["train_rows"] == 4
    assert found.figures["test_rows"] == 3
    assert found.figures["unusable_rows"] == 1
    assert found.figures["duplicate_rows"] == 1
    assert found.figures["near_duplicate_rows"] == 2
    assert found.figures["train_rows_near_another"] == 4
    assert found.figures["shared_8gram_response_share"] == pytest.approx(2 / 3, abs=1e-6)
    assert found.across[0].similarity == 1.0
    assert len(found.within) == 6


def written(file: Path, *rows: dict[str, object]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("which", ["train", "test"])
def test_a_file_whose_rows_cannot_be_used_is_refused_by_its_name(tmp_path: Path, which: str) -> None:
    """An overlap of 0 would read as no leak."""
    files = {name: written(tmp_path / f"{name}.jsonl", {"prompt": "p", "response": TEXT}) for name in ("train", "test")}
    written(files[which], {"question": "p", "answer": TEXT})
    with pytest.raises(DataError, match=rf"1 of the 1 rows of .*{which}\.jsonl .*missing field 'prompt'") as caught:
        audit(files["train"], files["test"], Data(max_bad_rows=1.0))
    assert "data.fields.prompt=question" in str(caught.value.fix)
    written(files[which], *[{"prompt": f"p{n}", "response": TEXT} for n in range(4)], {"prompt": "p", "response": ""})
    with pytest.raises(DataError, match=r"more than data\.max_bad_rows=0\.1 allows"):
        audit(files["train"], files["test"], Data(max_bad_rows=0.1))
    assert audit(files["train"], files["test"], Data(max_bad_rows=0.2)).figures["unusable_rows"] == 1


def test_splits_of_named_data_sets_are_compared_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"How many goats, {n}?", "answer": f"{TEXT} #### {n}"} for n in range(3)]
    written(tmp_path / "gsm8k" / "train.jsonl", *rows)
    written(tmp_path / "gsm8k" / "test.jsonl", rows[1], {"question": "Why?", "answer": "Because. #### 7"})
    found = audit("gsm8k:train", "gsm8k:test", Data())
    assert (found.figures["train_rows"], found.figures["test_rows"]) == (3, 2)
    assert (found.figures["duplicate_prompts"], found.figures["duplicate_rows"]) == (1, 1)
    own = written(tmp_path / "own.jsonl", {"prompt": "Why?", "response": "Because."})
    assert audit("gsm8k:test", own, Data()).figures["duplicate_prompts"] == 1
    with pytest.raises(DataError, match="gsm8k has no split 'tset'"):
        audit("gsm8k:tset", own, Data())


def test_a_split_without_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    options = [{"label": label, "text": f"hat {label}"} for label in "ABCDE"]
    question = {"stem": "Which?", "choices": options}
    written(tmp_path / "cqa" / "test_rand_split_no_answers.jsonl", {"id": "q", "question": question})
    with pytest.raises(DataError, match=r"1 of the 1 rows of cqa:hidden .*has no reference to train on"):
        audit("cqa:hidden", "starter", Data())


def test_the_starter_rows_are_compared_with_those_held_out() -> None:
    figures = audit("starter", "starter", Data()).figures
    assert figures["train_rows"] > figures["test_rows"] > 0
    assert figures["duplicate_rows"] == 0


def test_the_threshold_is_that_of_both_comparisons(tmp_path: Path) -> None:
    """Of nine runs of three words, seven are in both rows."""
    rows = [{"prompt": "Count", "response": f"one two three four five six seven eight {n}"} for n in ("nine", "ten")]
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for file, some in ((train, rows), (test, rows[:1])):
        file.write_text("".join(json.dumps(row) + "\n" for row in some))
    loose, strict = (audit(train, test, Data(), threshold=threshold) for threshold in (0.7, 0.9))
    assert (loose.figures["train_rows_near_another"], strict.figures["train_rows_near_another"]) == (2, 0)
    assert (len(loose.across), len(strict.across)) == (2, 1)
    assert loose.figures["near_duplicate_rows"] == 1  # one row, near two
