"""How figures, sizes, times and unknown JSON objects are written."""

from __future__ import annotations

import math

import pytest

from potstill.reporting.facts import blocks, label, shown
from potstill.reporting.formats import duration, percent, scaled, significant, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (5.4, "5.400"),
        (0.0123449, "0.01234"),
        (391.93, "391.9"),
        (999.96, "1,000"),
        (61234.5, "61,230"),
        (-1.5, "-1.500"),
        (1.23456e12, "1.235e+12"),
        (1e-7, "1.000e-07"),
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "-"),
        ("5", "-"),
        (True, "-"),
    ],
)
def test_significant(value: object, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.48274, "48.27%"), (1.0000000275, "100.00%"), (0, "0.00%"), (None, "-")])
def test_percent(value: object, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "as_size", "as_count"),
    [
        (127_200_000, "127 MB", "127 M"),
        (63_600_000, "63.6 MB", "63.6 M"),
        (999_999, "1 MB", "1 M"),
        (512, "512 B", "512"),
        (0, "0 B", "0"),
        (7e15, "7e+03 TB", "7e+03 T"),
        (None, "-", "-"),
        (math.nan, "-", "-"),
    ],
)
def test_sizes_and_counts(value: object, as_size: str, as_count: str) -> None:
    assert (size(value), scaled(value)) == (as_size, as_count)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (4.21, "4.21 s"), (59.6, "59.6 s"), (203.4, "3 min 23 s"), (3600, "1 h 00 min"), (None, "-")],
)
def test_duration(seconds: object, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("training_s", 203.4, "3 min 23 s"),
        ("tokens_per_s", 203.4, "203.4"),
        ("peak_memory_bytes", 3_210_000_000, "3.21 GB"),
        ("truncated_share", 0.25, "25.00%"),
        ("rows", 3000, "3,000"),
        ("freeze", True, "yes"),
        ("note", None, "not measured"),
        ("layers", [0, 1, 29], "0, 1, 29"),
        ("file", "rows.jsonl", "rows.jsonl"),
    ],
)
def test_a_value_in_the_unit_of_its_key(key: str, value: object, text: str) -> None:
    assert shown(key, value) == text


def test_labels() -> None:
    assert [label(key) for key in ("training_s", "tokens_per_s", "peak_memory_bytes", "rows")] == [
        "training",
        "tokens per s",
        "peak memory",
        "rows",
    ]


def test_objects_with_the_same_keys_become_one_table() -> None:
    content = {"rows": 3, "splits": {"train": {"rows": 2, "used": 1}, "heldout": {"rows": 1, "used": 1}}}
    facts, splits = blocks(content)
    assert (facts.title, facts.columns, facts.rows) == ("", (), (("rows", "3"),))
    assert splits.title == "splits"
    assert splits.columns == ("train", "heldout")
    assert splits.rows == (("rows", "2", "1"), ("used", "1", "1"))


def test_other_objects_become_a_block_each() -> None:
    content = {"files": {"train": {"file": "a"}}, "overlap": {"rows": 0}, "none": {}}
    assert [block.title for block in blocks(content)] == ["files / train", "overlap"]
    assert list(blocks({})) == []
