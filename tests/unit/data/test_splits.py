"""Which rows are held out: the same for every run, and almost the same when rows are added."""

from __future__ import annotations

from hashlib import sha256

import pytest

from potstill.data.examples import Example
from potstill.data.splits import split
from potstill.errors import DataError
from potstill.recipe import Data


def examples(count, prefix="row"):
    return [Example(f"p{n}", "r", f"{prefix}-{n}") for n in range(count)]


def ids(rows):
    return [row.id for row in rows]


def test_every_row_is_in_exactly_one_split_and_train_keeps_the_files_order():
    rows = examples(200)
    made = split(rows, None, Data(heldout_fraction=0.1, validation_fraction=0.05))
    assert [len(part) for part in (made.heldout, made.validation, made.train)] == [20, 9, 171]
    assert sorted(ids(made.train + made.validation + made.heldout)) == sorted(ids(rows))
    assert made.train == tuple(row for row in rows if row in made.train)


def test_the_held_out_rows_are_those_of_smallest_hash_and_validation_the_next():
    rows = examples(100)
    by_hash = ids(sorted(rows, key=lambda row: sha256(row.prompt.encode()).hexdigest()))
    made = split(rows, None, Data(heldout_fraction=0.1, validation_fraction=0.05))
    assert ids(made.heldout) == by_hash[:10]
    assert ids(made.validation) == by_hash[10:14]  # 5% of 90, rounded


def test_the_order_of_the_file_does_not_matter():
    rows = examples(100)
    one, other = split(rows, None, Data()), split(rows[::-1], None, Data())
    assert (one.heldout, one.validation) == (other.heldout, other.validation)


def test_neither_does_the_files_name_nor_where_a_row_stands_in_it():
    rows = examples(100)
    renamed = [Example(row.prompt, row.response, f"copy.jsonl:{n}") for n, row in enumerate(rows[::-1])]
    one, other = split(rows, None, Data()), split(renamed, None, Data())
    assert [row.prompt for row in one.heldout] == [row.prompt for row in other.heldout]
    assert {row.prompt for row in one.train} == {row.prompt for row in other.train}


def test_rows_of_one_prompt_stand_together():
    rows = [Example(f"p{n % 40}", f"r{n}", f"row-{n}") for n in range(120)]
    made = split(rows, None, Data(heldout_fraction=0.1, validation_fraction=0.25))  # 12 rows, and 27 of 108
    assert {row.prompt for row in made.heldout}.isdisjoint(row.prompt for row in made.train + made.validation)
    assert {row.prompt for row in made.validation}.isdisjoint(row.prompt for row in made.train)


def test_adding_rows_moves_few():
    before = split(examples(1000), None, Data(max_heldout=1000))
    after = split(examples(1100), None, Data(max_heldout=1000))
    assert len(set(ids(before.heldout)) & set(ids(after.heldout))) > 0.8 * len(before.heldout)
    # The rows at the edge come from and go to validation, so what was held out does not train, nor the other way round.
    assert set(ids(before.heldout)).isdisjoint(ids(after.train))
    assert set(ids(before.train)).isdisjoint(ids(after.heldout))


def test_rows_over_a_cap_train():
    made = split(
        examples(1000), None, Data(heldout_fraction=0.5, max_heldout=20, validation_fraction=0.5, max_validation=7)
    )
    assert [len(part) for part in (made.heldout, made.validation, made.train)] == [20, 7, 973]
    assert made.num_unused == 0


def test_a_held_out_file_is_held_out_whole_and_what_is_over_the_cap_never_trains():
    rows, heldout = examples(100), examples(30, "held")
    made = split(rows, heldout, Data(max_heldout=20))
    assert (len(made.heldout), made.num_unused) == (20, 10)
    assert ids(made.heldout) == ids(sorted(heldout, key=lambda row: sha256(row.prompt.encode()).hexdigest())[:20])
    assert sorted(ids(made.train + made.validation)) == sorted(ids(rows))


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_three_rows_are_enough_for_one_in_each_split(fraction):
    made = split(examples(3), None, Data(heldout_fraction=fraction, validation_fraction=fraction))
    assert [len(part) for part in (made.heldout, made.validation, made.train)] == [1, 1, 1]


@pytest.mark.parametrize(("count", "heldout"), [(2, None), (1, None), (1, examples(5, "held"))])
def test_fewer_are_refused(count, heldout):
    with pytest.raises(DataError, match="too few"):
        split(examples(count), heldout, Data())


def test_two_rows_are_enough_beside_a_held_out_file():
    made = split(examples(2), examples(1, "held"), Data())
    assert [len(part) for part in (made.heldout, made.validation, made.train)] == [1, 1, 1]
