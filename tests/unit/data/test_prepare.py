"""From a file to token ids in three splits, with every row counted once."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from potstill.data import datasets
from potstill.data.prepare import SKIPS, left_out, prepare, prepare_all
from potstill.errors import DataError
from potstill.recipe import Data
from tests.unit.data.conftest import good_rows


def balanced(counts):
    skipped = sum(counts[key] for key in SKIPS.values())
    return counts["quarantined"] + skipped + counts["used"] + counts["unused_heldout"]


def test_a_file_of_good_rows(rows_file, tokenizer):
    file = rows_file(good_rows(40))
    made = prepare(Data(path=str(file)), tokenizer)
    assert left_out(made, Data()) is None
    assert [len(part) for part in (made.train, made.validation, made.heldout)] == [34, 2, 4]
    ids = [row.example_id for part in (made.train, made.validation, made.heldout) for row in part]
    assert sorted(ids) == sorted(f"rows.jsonl:{n}" for n in range(1, 41))
    assert tokenizer.decode(made.train[0].response_ids).endswith(".</s>")
    assert made.counts["files"]["train"] == {
        "file": str(file),
        "sha256": sha256(file.read_bytes()).hexdigest(),
        "rows": 40,
        "quarantined": 0,
    }
    assert (made.counts["format"], made.counts["template"]) == ("prompt_response", "none")


def test_counts_are_the_rows_they_count(rows_file, tokenizer):
    """Bad, long, truncated and good rows in one file: each is where its count says."""
    rows = good_rows(40)
    rows[3] = {"prompt": "p"}
    rows[11] = "{"
    for n in (5, 15, 25):
        rows[n] = {"prompt": "long " * 100, "response": "r"}
    for n in (7, 17):
        rows[n] = {"prompt": "p", "response": "long " * 100}
    made = prepare(
        Data(path=str(rows_file(rows)), max_prompt_tokens=60, max_response_tokens=50, max_bad_rows=0.05), tokenizer
    )
    counts, parts = made.counts, {"train": made.train, "validation": made.validation, "heldout": made.heldout}
    assert (counts["rows"], counts["quarantined"], counts["skipped_long_prompts"], counts["used"]) == (40, 2, 3, 35)
    assert (counts["truncated_responses"], counts["truncated_share"]) == (2, round(2 / 35, 6))
    assert left_out(made, Data(max_prompt_tokens=60, max_response_tokens=50)) == (
        "3 of 40 rows are left out: their prompts are longer than data.max_prompt_tokens, 60; "
        "2 of 35 responses are cut at data.max_response_tokens, 50"
    )
    assert balanced(counts) == counts["rows"]
    for name, part in parts.items():
        own = counts["splits"][name]
        assert own["used"] == len(part)
        assert own["truncated_responses"] == sum(row.truncated for row in part)
        assert own["prompt_tokens"] == sum(len(row.prompt_ids) for row in part)
        assert own["response_tokens"] == sum(len(row.response_ids) for row in part)
    assert counts["response_tokens"] == sum(own["response_tokens"] for own in counts["splits"].values())
    assert json.loads(json.dumps(counts)) == counts


def test_bad_rows_are_written_down_and_good_ones_are_used(rows_file, tokenizer, tmp_path):
    rows = good_rows(30)
    rows[4], rows[9] = {"prompt": "p", "response": 3}, b'{"prompt": "caf\xe9"}'
    rows[20] = {"prompt": "p", "response": "a</s>b"}
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    made = prepare(Data(path=str(rows_file(rows)), max_bad_rows=0.1), tokenizer, quarantine_file=quarantine)
    written = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [(row["where"], row["reason"][:30]) for row in written] == [
        ("rows.jsonl:5", "field 'response' is int, not t"),
        ("rows.jsonl:10", "not UTF-8: byte 0xe9 at byte 1"),
        ("rows.jsonl:21", "the response holds '</s>', the"),
    ]
    assert json.loads(written[0]["row"]) == rows[4]
    assert made.counts["quarantined"] == 3
    assert made.counts["used"] == 27


def test_too_many_bad_rows_are_written_down_all_the_same(rows_file, tokenizer, tmp_path):
    quarantine = tmp_path / "quarantine.jsonl"
    with pytest.raises(DataError, match=r"4 of the 10 rows .*\(40.0%\).*quarantine.jsonl"):
        prepare(Data(path=str(rows_file([*good_rows(6), *["{"] * 4]))), tokenizer, quarantine_file=quarantine)
    assert len(quarantine.read_text().splitlines()) == 4


def test_the_same_again_is_the_same(rows_file, tokenizer):
    config = Data(path=str(rows_file(good_rows(50))))
    assert prepare(config, tokenizer) == prepare(config, tokenizer)


def test_the_held_out_rows_do_not_depend_on_limits(rows_file, tokenizer):
    """Otherwise what one stage trains on could be what another is measured on."""
    rows = good_rows(40)
    for n in range(0, 40, 4):
        rows[n] = {"prompt": f"{n} " + "long " * 50, "response": "r"}
    config = Data(path=str(rows_file(rows)), heldout_fraction=0.3, validation_fraction=0.2)
    wide, narrow = prepare(config, tokenizer), prepare(config.model_copy(update={"max_prompt_tokens": 30}), tokenizer)
    held = [{row.example_id for row in made.heldout} for made in (wide, narrow)]
    assert set() < held[1] < held[0]
    assert held[0].isdisjoint(row.example_id for row in narrow.train + narrow.validation)


def test_a_held_out_file(rows_file, tokenizer):
    train, heldout = rows_file(good_rows(20)), rows_file([*good_rows(3) * 3, "{"], "held.jsonl")
    made = prepare(Data(path=str(train), heldout=str(heldout), max_heldout=6, max_bad_rows=0.1), tokenizer)
    assert len(made.train) + len(made.validation) == 20
    assert len(made.heldout) == 6
    assert all(row.example_id.startswith("held.jsonl:") for row in made.heldout)
    assert made.counts["files"]["heldout"]["quarantined"] == 1
    assert (made.counts["unused_heldout"], made.counts["rows"]) == (3, 30)
    assert balanced(made.counts) == 30
    prompts = {row.prompt for row in made.train}
    assert made.counts["overlap"]["duplicate_prompts"] == sum(row.prompt in prompts for row in made.heldout) > 3


def test_each_file_is_judged_by_its_own_share(rows_file, tokenizer):
    train, heldout = rows_file(good_rows(500)), rows_file([*good_rows(9), "{"], "held.jsonl")
    with pytest.raises(DataError, match=r"1 of the 10 rows of .*held.jsonl"):
        prepare(Data(path=str(train), heldout=str(heldout), max_bad_rows=0.05), tokenizer)


def test_rows_are_not_held_out_from_themselves(rows_file, tokenizer):
    train, copy = rows_file(good_rows(20)), rows_file(good_rows(20), "copy.jsonl")
    with pytest.raises(DataError, match="holds the same rows"):
        prepare(Data(path=str(train), heldout=str(copy)), tokenizer)


def test_where_every_prompt_is_too_long_the_limit_is_named(rows_file, tokenizer):
    with pytest.raises(DataError) as caught:
        prepare(Data(path=str(rows_file(good_rows(20))), max_prompt_tokens=2), tokenizer)
    assert caught.value.cause == "no train rows are left: 17 of 17 prompts are longer than data.max_prompt_tokens=2"
    assert "data.max_prompt_tokens" in caught.value.fix


def test_chats(rows_file, chat_tokenizer):
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(20)
    ]
    rows[6]["messages"].insert(0, {"role": "tool", "content": "42"})
    made = prepare(Data(path=str(rows_file(rows)), format="chat", max_bad_rows=0.05), chat_tokenizer)
    assert (made.counts["template"], made.counts["quarantined"]) == ("chat", 1)
    assert chat_tokenizer.decode(made.train[0].prompt_ids) == f"<s>user\n{made.train[0].prompt}</s>\n<s>assistant\n"


def test_all_rows_of_a_file_unsplit(rows_file, tokenizer):
    rows = [*good_rows(8), {"prompt": "long " * 300, "response": "r"}]
    made = prepare_all(Data(path=str(rows_file(rows))), tokenizer)
    assert [row.example_id for row in made] == [f"rows.jsonl:{n}" for n in range(1, 9)]
    assert len(prepare_all(Data(path=str(rows_file([{"prompt": "p", "response": "r"}], "one.jsonl"))), tokenizer)) == 1


# --- the starter rows -------------------------------------------------------------------------------------------------


@pytest.fixture
def starter(tmp_path: Path, monkeypatch) -> Path:
    """A folder in the place of the packaged one."""
    folder = tmp_path / "starter"
    folder.mkdir()
    for name, start, count in (("train", 0, 30), ("heldout", 100, 5)):
        rows = [{"id": f"{name}-{n}", **row, "kind": "story"} for n, row in enumerate(good_rows(count, start))]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(datasets, "_STARTER_FOLDER", folder)
    return folder


def test_starter_is_held_out_by_its_own_file(starter, tokenizer):
    made = prepare(Data(), tokenizer)
    assert {row.example_id for row in made.heldout} == {f"heldout-{n}" for n in range(5)}
    assert len(made.train) + len(made.validation) == 30
    files = {name: counts["file"] for name, counts in made.counts["files"].items()}
    assert files == {"train": "starter/train.jsonl", "heldout": "starter/heldout.jsonl"}


def test_starter_may_be_held_out_by_another(starter, tokenizer, rows_file):
    made = prepare(Data(heldout=str(rows_file(good_rows(4, 50), "mine.jsonl"))), tokenizer)
    assert {row.example_id for row in made.heldout} == {f"mine.jsonl:{n}" for n in range(1, 5)}


def test_measuring_on_starter_is_measuring_on_its_held_out_rows(starter, tokenizer):
    assert {row.example_id for row in prepare_all(Data(), tokenizer)} == {f"heldout-{n}" for n in range(5)}


def test_an_installation_without_starter_rows_says_so(starter, tokenizer):
    (starter / "train.jsonl").unlink()
    with pytest.raises(DataError, match="starter rows are not in this installation"):
        prepare(Data(), tokenizer)


def test_the_packaged_rows_are_all_usable_and_not_given_away(tokenizer):
    if not (Path(datasets.__file__).parent / "starter" / "train.jsonl").is_file():
        pytest.skip("the starter rows are not made yet; tools/make_starter_data.py makes them")
    counts = prepare(Data(max_prompt_tokens=2000, max_response_tokens=2000), tokenizer).counts
    assert counts["rows"] == counts["used"]
    assert counts["overlap"]["duplicate_prompts"] == 0


# --- real rows --------------------------------------------------------------------------------------------------------


def test_dolly(data_dir, tokenizer):
    config = Data(
        path=str(data_dir / "dolly/dev.jsonl"), format="dolly", max_prompt_tokens=10_000, max_response_tokens=10_000
    )
    made = prepare(config, tokenizer)
    assert (made.counts["rows"], made.counts["used"], made.counts["template"]) == (1000, 1000, "none")
    assert [len(part) for part in (made.train, made.validation, made.heldout)] == [855, 45, 100]
    assert replace(made.train[0], prompt_ids=(), response_ids=()).example_id == "dev.jsonl:1"
