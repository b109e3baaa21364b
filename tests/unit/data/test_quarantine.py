"""Bad rows are written down with their reasons, and too many stop the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.data.examples import Example, Unusable
from potstill.data.quarantine import Sifted, judge, sift, write_quarantine
from potstill.data.reader import BadRow, Row
from potstill.errors import DataError


def example_of(row):
    if "id" not in row.values:
        raise Unusable("missing field 'id'")
    return Example("p", "r", row.values["id"])


def rows_of(*ids):
    return [Row(f"f:{n}", {"id": id} if id else {}) for n, id in enumerate(ids, 1)]


def sifted(good, bad, reason="not JSON"):
    return Sifted(
        tuple(Example("p", "r", str(n)) for n in range(good)),
        tuple(BadRow(f"f.jsonl:{n}", reason, "x") for n in range(1, bad + 1)),
    )


def test_both_kinds_keep_their_order_and_every_row_is_one_or_the_other():
    unreadable = BadRow("f:9", "not JSON", "x")
    made = sift([*rows_of("a", None, "b"), unreadable], example_of)
    assert [example.id for example in made.examples] == ["a", "b"]
    assert [(row.where, row.reason) for row in made.bad] == [("f:2", "missing field 'id'"), ("f:9", "not JSON")]
    assert made.num_rows == 4


def test_the_second_of_two_rows_with_one_id_is_bad():
    made = sift(rows_of("a", "b", "a", "a"), example_of)
    assert [example.id for example in made.examples] == ["a", "b"]
    assert [row.reason for row in made.bad] == ["duplicate id 'a' (first at f:1)"] * 2


def test_a_deeply_nested_row_can_be_written_down():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    (bad,) = sift([Row("f:1", {"x": deep})], example_of).bad
    assert len(bad.row) <= 200


def test_the_quarantine_file_says_where_and_why_whatever_the_row_holds(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    bad = [BadRow("f:1", "half a character", '{"a": "\ud800 \0 \x1b[31m"}'), BadRow("f:2", "é", "x\ny")]
    write_quarantine(file, bad)
    assert [json.loads(line) for line in file.read_bytes().decode("ascii").splitlines()] == [vars(row) for row in bad]
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.jsonl"]


def test_no_bad_rows_no_file_and_no_stale_one(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    write_quarantine(file, [BadRow("f:1", "r", "x")])
    write_quarantine(file, [])
    assert not file.exists()


@pytest.mark.parametrize(("good", "bad", "limit"), [(99, 1, 0.01), (100, 0, 0.0), (1, 99, 0.99), (1, 99, 1.0)])
def test_a_share_up_to_the_limit_is_allowed(good, bad, limit):
    judge(Path("f.jsonl"), sifted(good, bad), limit)


@pytest.mark.parametrize(("good", "bad", "limit"), [(98, 1, 0.01), (100, 1, 0.0), (0, 3, 1.0), (0, 0, 1.0)])
def test_a_share_above_it_and_a_file_without_a_usable_row_are_not(good, bad, limit):
    with pytest.raises(DataError):
        judge(Path("f.jsonl"), sifted(good, bad), limit)


def test_the_message_has_the_share_three_rows_the_file_of_them_and_the_way_out():
    with pytest.raises(DataError) as caught:
        judge(Path("d/f.jsonl"), sifted(96, 4), 0.01, Path("runs/a/quarantine.jsonl"))
    cause, fix = caught.value.cause, caught.value.fix
    assert cause == (
        "4 of the 100 rows of d/f.jsonl (4.0%) cannot be used, more than data.max_bad_rows=0.01 allows: "
        "f.jsonl:1: not JSON; f.jsonl:2: not JSON; f.jsonl:3: not JSON; all are in runs/a/quarantine.jsonl"
    )
    assert fix == "mend these rows, or allow them with data.max_bad_rows=0.04"
    judge(Path("d/f.jsonl"), sifted(96, 4), 0.04)  # the fix it names works


@pytest.mark.parametrize(("good", "bad"), [(2, 1), (6, 1), (999, 1), (130, 7), (1, 2), (93, 7), (71, 29)])
def test_the_named_limit_is_always_enough(good, bad):
    with pytest.raises(DataError) as caught:
        judge(Path("f.jsonl"), sifted(good, bad), 0.0)
    judge(Path("f.jsonl"), sifted(good, bad), float(caught.value.fix.split("=")[-1]))


def test_where_a_field_is_missing_from_most_rows_the_way_out_is_to_name_it():
    with pytest.raises(DataError) as caught:
        judge(Path("f.jsonl"), sifted(1, 9, "missing field 'prompt' (there are: 'question')"), 0.01)
    assert "data.fields.prompt=question" in caught.value.fix
