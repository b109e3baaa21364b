"""MiniLLM's .bin and .idx of prompts and responses, as rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.data.corpus import build_corpus
from potstill.data.indexed import write_indexed
from potstill.data.prepare import prepare, prepare_all
from potstill.errors import DataError
from potstill.recipe import Data
from potstill.sources.dataset import DatasetSource
from potstill.sources.source import Share
from tests.unit.data.test_prepare import balanced

Pair = tuple[list[int], list[int]]
SPLITS = ("train", "validation", "heldout")


def pair(tokenizer: Any, prompt: str, response: str, ends: int = 1) -> Pair:
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return tokenizer(prompt)["input_ids"], [*ids, *[tokenizer.eos_token_id] * ends]


def pairs(tokenizer: Any, count: int, start: int = 0) -> list[Pair]:
    return [pair(tokenizer, f"Say {n}.", f" The number {n}.") for n in range(start, start + count)]


def write(folder: Path, tokenizer: Any, **sets: Sequence[Sequence[Any]]) -> Data:
    for name, records in sets.items():
        write_indexed(folder / name, records, len(tokenizer), max_records_per_shard=25)
    return Data(path=str(folder))


def ids_of(rows: Any) -> list[Pair]:
    return [(list(row.prompt_ids), list(row.response_ids)) for row in rows]


def refusal(config: Data, tokenizer: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config, tokenizer)
    return str(caught.value)


def test_records_are_rows_in_their_order_decoded_and_of_every_shard(tokenizer: Any, tmp_path: Path) -> None:
    records, valid = pairs(tokenizer, 60), pairs(tokenizer, 10, 100)
    made = prepare(write(tmp_path, tokenizer, train=records, valid=valid), tokenizer)
    assert ids_of(made.train) == records
    assert ids_of([made.train[0], made.train[-1], *made.train[30:32]]) == [records[i] for i in (0, 59, 30, 31)]
    row = made.train[26]
    assert (row.example_id, row.prompt, row.response) == ("train:26", "Say 26.", " The number 26.")
    assert not row.truncated
    with pytest.raises(IndexError):
        made.train[60]


def test_validation_rows_are_not_held_out_ones_and_do_not_move_with_the_limits(tokenizer: Any, tmp_path: Path) -> None:
    config = write(tmp_path, tokenizer, train=pairs(tokenizer, 9), valid=pairs(tokenizer, 21, 100))
    made = prepare(config, tokenizer)
    ids = [{row.example_id for row in getattr(made, name)} for name in SPLITS]
    assert [len(some) for some in ids] == [9, 11, 10]
    assert ids[1] | ids[2] == {f"valid:{n}" for n in range(21)}
    few = prepare(config.model_copy(update={"max_validation": 4, "max_heldout": 3}), tokenizer)
    assert {row.example_id for row in few.heldout} < ids[2]
    assert {row.example_id for row in few.validation}.isdisjoint(row.example_id for row in few.heldout)
    assert (len(few.validation), len(few.heldout), few.counts["unused_heldout"]) == (4, 3, 14)
    assert balanced(few.counts) == few.counts["rows"] == 30
    fewer = prepare(config.model_copy(update={"max_validation": 4}), tokenizer)
    assert tuple(fewer.heldout) == tuple(made.heldout)
    other = prepare(config.model_copy(update={"max_heldout": 3}), tokenizer)
    assert tuple(other.validation) == tuple(made.validation)
    assert tuple(prepare_all(config, tokenizer)) == tuple(made.heldout)


def test_what_is_held_out_does_not_go_by_the_order_of_the_records(tokenizer: Any, tmp_path: Path) -> None:
    train, valid = pairs(tokenizer, 9), pairs(tokenizer, 20, 100)
    one, other = (
        prepare(write(tmp_path / name, tokenizer, train=train, valid=some), tokenizer)
        for name, some in (("as it is", valid), ("turned", valid[::-1]))
    )
    assert ids_of(one.heldout) == ids_of(other.heldout) != valid[:10]
    assert ids_of(one.validation) == ids_of(other.validation)


def test_a_prompt_of_just_the_limit_is_used(tokenizer: Any, tmp_path: Path) -> None:
    records, longest = pairs(tokenizer, 40), len(pairs(tokenizer, 40)[39][0])
    config = write(tmp_path, tokenizer, train=records, valid=pairs(tokenizer, 9, 0))
    assert max(len(prompt) for prompt, _ in records) == longest
    made = prepare(config.model_copy(update={"max_prompt_tokens": longest}), tokenizer)
    assert made.counts["skipped_long_prompts"] == 0
    fewer = prepare(config.model_copy(update={"max_prompt_tokens": longest - 1}), tokenizer)
    assert fewer.counts["skipped_long_prompts"] > 0


def test_a_test_set_is_held_out_and_valid_is_for_validation(tokenizer: Any, tmp_path: Path) -> None:
    sets = {"train": pairs(tokenizer, 9), "valid": pairs(tokenizer, 8, 100), "test": pairs(tokenizer, 7, 200)}
    made = prepare(write(tmp_path, tokenizer, **sets).model_copy(update={"max_heldout": 5}), tokenizer)
    names = [{row.example_id.split(":")[0] for row in getattr(made, name)} for name in SPLITS]
    assert names == [{"train"}, {"valid"}, {"test"}]
    assert [len(getattr(made, name)) for name in SPLITS] == [9, 8, 5]
    assert balanced(made.counts) == 24
    assert set(made.counts["files"]) == {"train", "valid", "test"}


@pytest.mark.parametrize("tested", [False, True])
def test_without_valid_rows_are_set_apart_from_train(tokenizer: Any, tmp_path: Path, tested: bool) -> None:
    sets = {"train": pairs(tokenizer, 40)} | ({"test": pairs(tokenizer, 5, 100)} if tested else {})
    made = prepare(write(tmp_path, tokenizer, **sets), tokenizer)
    assert [len(getattr(made, name)) for name in SPLITS] == ([38, 2, 5] if tested else [34, 2, 4])
    ids = [row.example_id for name in SPLITS for row in getattr(made, name)]
    assert len(set(ids)) == len(ids)
    assert made.train[0].example_id < made.train[9].example_id  # the file's order
    assert balanced(made.counts) == made.counts["rows"]


def test_a_response_ends_once_and_one_that_ends_before_its_end_is_no_row(tokenizer: Any, tmp_path: Path) -> None:
    eos = tokenizer.eos_token_id
    records = pairs(tokenizer, 30)
    records[1] = pair(tokenizer, "No end.", " r", ends=0)
    records[2] = pair(tokenizer, "Three.", " r", ends=3)
    records[3] = (records[3][0], [5, eos, 6, eos])
    records[4] = pair(tokenizer, "Long.", " r" * 40)
    config = write(tmp_path, tokenizer, train=records, valid=pairs(tokenizer, 9, 100))
    config = config.model_copy(update={"max_bad_rows": 0.1, "max_response_tokens": 20})
    made = prepare(config, tokenizer, quarantine_file=tmp_path / "run" / "quarantine.jsonl")
    rows = {row.example_id: row for row in made.train}
    for n in (1, 2):
        assert rows[f"train:{n}"].response_ids == tuple(pair(tokenizer, "", " r")[1])
    assert (rows["train:4"].response_ids, rows["train:4"].truncated) == (tuple(records[4][1][:20]), True)
    assert rows["train:4"].response == " r" * 40
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == "train:3"
    assert "before its end" in json.loads(line)["reason"]
    assert (made.counts["quarantined"], made.counts["truncated_responses"], len(made.train)) == (1, 1, 29)
    assert "1 of the 30 rows" in refusal(config.model_copy(update={"max_bad_rows": 0.01}), tokenizer)


def test_long_and_empty_ones_are_left_out_and_the_counts_are_of_what_is_there(tokenizer: Any, tmp_path: Path) -> None:
    records: list[Any] = pairs(tokenizer, 30)
    records[5] = pair(tokenizer, "long " * 100, " r")
    records[6] = ([], records[6][1])
    records[7] = (records[7][0], [tokenizer.eos_token_id])
    config = write(tmp_path, tokenizer, train=records, valid=pairs(tokenizer, 10, 100))
    made = prepare(config.model_copy(update={"max_prompt_tokens": 50}), tokenizer)
    skips = [made.counts[f"skipped_{what}"] for what in ("long_prompts", "empty_prompts", "empty_responses")]
    assert (skips, balanced(made.counts)) == ([1, 1, 1], 40)
    assert {row.example_id for row in made.train}.isdisjoint({"train:5", "train:6", "train:7"})
    for name in SPLITS:
        rows, own = getattr(made, name), made.counts["splits"][name]
        assert own["prompt_tokens"] == sum(len(row.prompt_ids) for row in rows)
        assert own["response_tokens"] == sum(len(row.response_ids) for row in rows)
        assert own["used"] == len(rows)
    assert json.loads(json.dumps(made.counts)) == made.counts


def test_records_made_of_rows_train_as_the_rows_do(rows_file: Any, tokenizer: Any, tmp_path: Path) -> None:
    """The same ids in the same order, and the same overlap, for the frame is taken off what is decoded."""
    rows = [
        {"instruction": f"Name bird {n}.", "input": "In lakes." * (n % 2), "output": f"A heron {n}."} for n in range(50)
    ]
    heldout = [*rows[:3], *({"instruction": f"Where is {n}?", "output": f"Here, at {n}."} for n in range(9))]
    train, held = rows_file(rows), rows_file(heldout, "held.jsonl")
    limits: dict[str, Any] = {"max_prompt_tokens": 1000, "validation_fraction": 0.2}
    expected = prepare(Data(path=str(train), heldout=str(held), format="dolly", **limits), tokenizer)
    names = {"train": "train", "valid": "validation", "test": "heldout"}
    sets = {name: ids_of(getattr(expected, part)) for name, part in names.items()}
    made = prepare(write(tmp_path / "bin", tokenizer, **sets).model_copy(update=limits), tokenizer)
    for name in SPLITS:
        assert sorted(ids_of(getattr(made, name))) == sorted(ids_of(getattr(expected, name)))
    assert made.counts["overlap"] == expected.counts["overlap"]
    assert made.counts["overlap"]["duplicate_rows"] > 0
    sources = [DatasetSource(one.train, seed=3, pad_id=0) for one in (made, expected)]
    for _ in range(12):
        mine, theirs = ([batch.response_ids.tolist() for batch in s.next(Share(8, 4, 0, 1))] for s in sources)
        assert mine == theirs


# --- what is refused --------------------------------------------------------------------------------------------------


def test_blocks_of_text_and_prompts_alone_are_refused_by_the_record(tokenizer: Any, tmp_path: Path) -> None:
    records: list[Any] = pairs(tokenizer, 60)
    records[41] = ([3, 4, 5],)
    said = refusal(write(tmp_path, tokenizer, train=records, valid=pairs(tokenizer, 4)), tokenizer)
    assert "train: record 41 has no separator 65535" in said
    assert "plain_text" in said


def test_three_parts_are_refused_by_the_record(tokenizer: Any, tmp_path: Path) -> None:
    records: list[Any] = [*pairs(tokenizer, 3), ([3], [4], [5])]
    said = refusal(write(tmp_path, tokenizer, train=pairs(tokenizer, 9), valid=records), tokenizer)
    assert "valid: record 3 has 2 separators 65535" in said


def test_potstills_own_corpus_is_refused_as_text(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The heron waits.\n" * 50)
    build_corpus(tmp_path / "text.txt", tokenizer, tmp_path / "corpus", block_size=16)
    assert "is a corpus of text" in refusal(Data(path=str(tmp_path / "corpus")), tokenizer)
    (tmp_path / "corpus" / "corpus.json").unlink()
    assert "train: record 0 has no separator" in refusal(Data(path=str(tmp_path / "corpus")), tokenizer)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"format": "dolly"}, "data.format=dolly cannot be done"),
        ({"template": "chat"}, "data.template=chat cannot be done"),
        ({"long_prompts": "shorten"}, "data.long_prompts=shorten cannot be done"),
        ({"heldout": "test.jsonl"}, "data.heldout=test.jsonl cannot be done"),
        ({"fields": {"prompt": "q"}}, "data.fields={'prompt': 'q'} cannot be done"),
    ],
)
def test_settings_of_text_are_refused(tokenizer: Any, tmp_path: Path, setting: dict[str, Any], said: str) -> None:
    config = write(tmp_path, tokenizer, train=pairs(tokenizer, 9), valid=pairs(tokenizer, 4, 100))
    assert len(prepare(config.model_copy(update={"template": "none"}), tokenizer).train) == 9
    assert said in refusal(config.model_copy(update=setting), tokenizer)


def test_what_is_missing_or_twice_there_is_said(tokenizer: Any, tmp_path: Path) -> None:
    only = write(tmp_path / "a", tokenizer, valid=pairs(tokenizer, 4))
    assert "there is no train_0.idx" in refusal(only, tokenizer)
    one = write(tmp_path / "b", tokenizer, train=pairs(tokenizer, 9), valid=pairs(tokenizer, 1, 100))
    assert "valid has 1 records" in refusal(one, tokenizer)
    same = write(tmp_path / "c", tokenizer, train=pairs(tokenizer, 9), valid=pairs(tokenizer, 9))
    assert "hold the same records" in refusal(same, tokenizer)


def test_ids_of_another_tokenizer_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    write_indexed(tmp_path / "train", [([1, 2], [3, len(tokenizer)])] * 5, len(tokenizer) + 9)
    assert "is it the data of another tokenizer?" in refusal(Data(path=str(tmp_path)), tokenizer)


def test_ids_stay_on_disk(tokenizer: Any, tmp_path: Path) -> None:
    """What a folder's rows hold grows by a few bytes a record, whatever their length."""
    long = (list(range(5, 205)), list(range(5, 205)))
    config = write(tmp_path, tokenizer, train=[long] * 300, valid=pairs(tokenizer, 9))
    made = prepare(config.model_copy(update={"max_response_tokens": 500}), tokenizer)
    held = [value for value in vars(made.train).values() if isinstance(value, np.ndarray)]
    held += [value for value in vars(vars(made.train)["_read"]).values() if isinstance(value, np.ndarray)]
    assert 0 < sum(array.nbytes for array in held) <= 300 * 20
