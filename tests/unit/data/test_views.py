"""What is asked of a row: labels, rationales, both, and which rows are left out."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.data.examples import Example
from potstill.data.prepare import prepare, prepare_all
from potstill.data.splits import subsample
from potstill.data.views import View, answer_of, rationale_of, seen
from potstill.errors import DataError
from potstill.recipe import Data, DatasetSource
from potstill.streams import views_of
from tests import tiny

WHOLE = Example("Is a hen a bird?", "yes", "a", rationale="It has feathers.", llm_label="no")
BARE = Example("Is a pot a bird?", "no", "b")


def texts(view: View, *, train: bool = True) -> list[tuple[str, str]]:
    return [(row.prompt, row.response) for row in seen([WHOLE, BARE], view, train=train)]


def test_a_view_asks_for_one_thing() -> None:
    hen, pot = WHOLE.prompt, BARE.prompt
    assert texts(View()) == [(hen, "yes"), (pot, "no")]
    assert texts(View(labels="llm")) == [(hen, "no")]
    assert texts(View("rationale")) == [(hen, "It has feathers.")]
    assert texts(View("input")) == [(hen, hen), (pot, pot)]
    assert texts(View("label_then_rationale")) == [(hen, "yes: It has feathers.")]
    assert texts(View("rationale_then_label")) == [(hen, "It has feathers. So the answer is yes")]
    assert texts(View("rationale_then_label", labels="llm")) == [(hen, "It has feathers. So the answer is no")]


@pytest.mark.parametrize("target", ["label_then_rationale", "rationale_then_label"])
def test_rows_that_are_measured_keep_their_label_where_they_have_no_rationale(target: Any) -> None:
    assert [response for _, response in texts(View(target), train=False)][1] == "no"


def test_a_prefix_stands_before_the_prompt_and_moves_what_may_be_cut() -> None:
    row = Example("Read: a tale", "x", "a", input_span=(6, 12), content="a tale")
    (asked,) = seen([row], View(prefix="predict: "), train=True)
    assert asked.prompt == "predict: Read: a tale"
    assert asked.input_span is not None
    assert asked.prompt[slice(*asked.input_span)] == "a tale"
    assert asked.own_words == "a tale"
    (bare,) = seen([BARE], View(prefix="predict: "), train=True)
    assert bare.own_words == BARE.prompt


def test_a_prefix_of_a_chat_stands_before_its_last_turn() -> None:
    row = Example(
        "user: a\nassistant: b\nuser: c", "d", "x", messages=(("user", "a"), ("assistant", "b"), ("user", "c"))
    )
    (asked,) = seen([row], View(prefix="explain: "), train=True)
    assert asked.messages == (("user", "a"), ("assistant", "b"), ("user", "explain: c"))


@pytest.mark.parametrize("count", [2, 3, 17])
def test_shuffled_rationales_are_each_another_rows(count: int) -> None:
    rows = [Example(f"p{at}", "r", str(at), rationale=f"why {at}") for at in range(count)]
    rows.insert(1, BARE)
    for seed in range(5):
        shown = seen(rows, View("rationale", seed=seed), train=True)
        given = [row.response for row in shown]
        assert [row.id for row in shown] == [str(at) for at in range(count)]
        assert sorted(given) == sorted(f"why {at}" for at in range(count))
        assert all(response != f"why {row.id}" for row, response in zip(shown, given, strict=True))
    orders = {tuple(row.response for row in seen(rows, View("rationale", seed=s), train=True)) for s in range(20)}
    assert len(orders) > 1 or count == 2


def test_one_rationale_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="1 train rows have a rationale, and shuffling needs two"):
        seen([WHOLE, BARE], View("rationale", seed=0), train=True)


@pytest.mark.parametrize(
    ("view", "key"),
    [
        (View("rationale"), "rationale"),
        (View("label_then_rationale"), "rationale"),
        (View(labels="llm"), "llm_label"),
        (View("rationale_then_label", labels="llm"), "llm_label"),
    ],
)
def test_rows_that_all_lack_what_is_asked_for_are_refused_with_the_key_to_set(view: View, key: str) -> None:
    with pytest.raises(DataError, match=rf"data\.fields\.{key}=NAME"):
        seen([BARE, BARE], view, train=True)


@pytest.mark.parametrize(
    ("target", "text", "label", "rationale"),
    [
        ("response", " yes ", "yes", ""),
        ("label_then_rationale", "yes: it has: feathers", "yes", "it has: feathers"),
        ("label_then_rationale", "yes", "yes", ""),
        (
            "rationale_then_label",
            "2 and 2. So the answer is 4. So the answer is 5",
            "5",
            "2 and 2. So the answer is 4.",
        ),
        ("rationale_then_label", "no mark", "no mark", ""),
    ],
)
def test_label_and_rationale_are_read_from_a_text(target: Any, text: str, label: str, rationale: str) -> None:
    assert (answer_of(target, text), rationale_of(target, text)) == (label, rationale)


@pytest.mark.parametrize("target", ["label_then_rationale", "rationale_then_label"])
def test_what_a_view_puts_together_is_read_apart(target: Any) -> None:
    (row,) = seen([WHOLE], View(target), train=True)
    assert (answer_of(target, row.response), rationale_of(target, row.response)) == ("yes", "It has feathers.")


@pytest.mark.parametrize("ours", ["rationale", "llm_label"])
def test_a_field_that_no_row_has_is_refused_by_its_name(tmp_path: Path, ours: Any) -> None:
    config = Data(path=str(rows_file(tmp_path)), fields={"response": "answer", ours: "whyy"})
    with pytest.raises(
        DataError, match=rf"no row of .*reasons\.jsonl has text in a field 'whyy', which data\.fields\.{ours}"
    ):
        prepare(config, tiny.tokenizer())


# --- a share of the rows ----------------------------------------------------------------------------------------------

MANY = tuple(Example(f"prompt {at}", f"response {at}", str(at)) for at in range(200))


def test_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    shares = [subsample(MANY, fraction, 3) for fraction in (0.005, 0.125, 0.25, 0.5, 1.0)]
    assert [len(share) for share in shares] == [1, 25, 50, 100, 200]
    for small, large in pairwise(shares):
        assert set(small) < set(large)
        assert list(small) == [row for row in large if row in set(small)]
    assert len(subsample(MANY[:3], 0.01, 0)) == 1


def test_another_seed_draws_other_rows_and_their_order_in_the_file_changes_nothing() -> None:
    assert set(subsample(MANY, 0.25, 0)) != set(subsample(MANY, 0.25, 1))
    assert set(subsample(MANY, 0.25, 0)) == set(subsample(MANY[::-1], 0.25, 0))


def test_rows_of_one_prompt_are_drawn_by_their_responses() -> None:
    rows = tuple(Example("one prompt", f"response {at}", str(at)) for at in range(40))
    assert set(subsample(rows, 0.25, 0)) != set(subsample(rows, 0.25, 1))
    assert set(subsample(rows, 0.25, 0)) == set(subsample(rows[::-1], 0.25, 0))


# --- through prepare --------------------------------------------------------------------------------------------------


def rows_file(folder: Path) -> Path:
    rows = [
        {"prompt": f"Is {at} even?", "answer": "yes", "why": f"It is {at}."} | ({} if at % 4 else {"why": ""})
        for at in range(40)
    ]
    file = folder / "reasons.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_streams_see_the_same_rows_under_their_own_views_and_all_are_counted(tmp_path: Path) -> None:
    fields = {"response": "answer", "rationale": "why"}
    config = Data(path=str(rows_file(tmp_path)), fields=fields, prefix={"text": "predict: "}, subsample=0.5)
    asks = {"why": DatasetSource(view="rationale", prefix={"text": "explain: "}), "again": DatasetSource(view="input")}
    found = prepare(config, tiny.tokenizer(), streams=asks)
    assert {row.prompt.split(" ")[0] for row in (*found.train, *found.validation, *found.heldout)} == {"predict:"}
    assert {row.response for row in found.train} == {"yes"}
    asked = {row.example_id: row for row in found.train}
    for row in found.views["why"]:
        own = asked[row.example_id]
        assert row.prompt == own.prompt.replace("predict: ", "explain: ")
        assert row.response == "It is {}.".format(own.prompt.split(" ")[2])
    assert [row.example_id for row in found.views["again"]] == list(asked)
    assert all(row.prompt == f"predict: {row.response}" for row in found.views["again"])
    counts = found.counts
    whole = counts["splits"]["train"]["rows"] + counts["not_in_subsample"]
    assert whole + counts["splits"]["validation"]["rows"] + counts["splits"]["heldout"]["rows"] == 40
    assert counts["views"]["why"]["rows"] == len(found.train)
    assert counts["views"]["why"]["without_target"] == len(found.train) - len(found.views["why"])


def test_a_stream_with_words_of_its_own_answers_what_the_data_asks(tmp_path: Path) -> None:
    own, same = DatasetSource(prefix={"text": "why: "}), DatasetSource()
    stage: Any = SimpleNamespace(
        streams=[SimpleNamespace(name="own", source=own), SimpleNamespace(name="same", source=same)]
    )
    assert views_of(stage) == {"own": own}
    fields = {"response": "answer", "rationale": "why"}
    config = Data(path=str(rows_file(tmp_path)), fields=fields, target="label_then_rationale")
    found = prepare(config, tiny.tokenizer(), streams=views_of(stage))
    assert [row.response for row in found.views["own"]] == [row.response for row in found.train]
    assert all(row.prompt.startswith("why: ") for row in found.views["own"])


def test_each_row_is_counted_once_where_some_lack_a_rationale_and_some_are_not_drawn(tmp_path: Path) -> None:
    fields = {"response": "answer", "rationale": "why"}
    config = Data(path=str(rows_file(tmp_path)), fields=fields, target="label_then_rationale", subsample=0.5)
    counts = prepare(config, tiny.tokenizer()).counts
    apart = [counts["not_in_subsample"], counts["without_target"]]
    assert all(apart)
    assert sum(apart) + sum(split["rows"] for split in counts["splits"].values()) == 40


def test_rationales_are_shuffled_by_the_runs_seed(tmp_path: Path) -> None:
    config = Data(path=str(rows_file(tmp_path)), fields={"response": "answer", "rationale": "why"})
    asks = {"why": DatasetSource(view="rationale", shuffled=True)}
    first, again, other = (
        [row.response for row in prepare(config, tiny.tokenizer(), streams=asks, seed=seed).views["why"]]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_a_share_is_of_the_train_rows_alone_and_of_those_that_its_seed_draws(tmp_path: Path) -> None:
    file = str(rows_file(tmp_path))
    whole, half, other = (
        prepare(Data(path=file, fields={"response": "answer"}, **settings), tiny.tokenizer())
        for settings in ({}, {"subsample": 0.5}, {"subsample": 0.5, "subsample_seed": 1})
    )
    drawn = [{row.example_id for row in found.train} for found in (whole, half, other)]
    assert len(drawn[1]) == len(drawn[2]) == len(drawn[0]) // 2
    assert drawn[1] != drawn[2]
    assert drawn[1] | drawn[2] <= drawn[0]
    assert (half.validation, half.heldout) == (other.validation, other.heldout) == (whole.validation, whole.heldout)


def test_labels_of_a_teacher_are_for_train_rows_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {at} even?", "response": "gold", "llm_label": "silver"} for at in range(40)]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = prepare(Data(path=str(file), labels="llm"), tiny.tokenizer())
    assert {row.response for row in found.train} == {"silver"}
    assert {row.response for row in (*found.validation, *found.heldout)} == {"gold"}
    gold = prepare(Data(path=str(file)), tiny.tokenizer())
    assert [row.example_id for row in gold.heldout] == [row.example_id for row in found.heldout]


def test_what_is_measured_outside_a_run_answers_with_the_gold_label(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {at} even?", "response": "gold", "llm_label": "silver"} for at in range(4)]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = prepare_all(Data(path=str(file), labels="llm"), tiny.tokenizer())
    assert [row.response for row in found] == ["gold"] * 4


def test_a_folder_of_rows_has_no_other_view(tmp_path: Path) -> None:
    from potstill.data.prepared.building import prepare_rows

    prepare_rows(Data(path=str(tiny.data_file(tmp_path))), tiny.tokenizer(), tmp_path / "rows")
    with pytest.raises(DataError, match="stream why asks for another view"):
        prepare(Data(path=str(tmp_path / "rows")), tiny.tokenizer(), streams={"why": DatasetSource(view="rationale")})
