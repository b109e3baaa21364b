"""Rows of some groups alone: from the field of a file to the rows of a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.data.prepare import prepare
from potstill.data.prepared.building import prepare_rows
from potstill.errors import DataError
from potstill.recipe import Data, DatasetSource
from tests import tiny

DOMAINS = ("math", "code", 7, None)  # a number is a name too; a row may have none


def rows_file(folder: Path, **more: Any) -> Path:
    file = folder / "grouped.jsonl"
    rows = [row | {"domain": DOMAINS[at % 4], **more} for at, row in enumerate(tiny.rows(60))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def asks(*groups: str, **settings: Any) -> DatasetSource:
    return DatasetSource.model_validate({"where": {"group": list(groups)}} | settings)


def number_of(prompt: str) -> int:
    return int(prompt.rstrip(".").split("number ")[1])


def test_a_stream_has_the_train_rows_of_its_groups_and_they_are_counted(tmp_path: Path) -> None:
    config = Data(path=str(rows_file(tmp_path)), fields={"group": "domain"})
    found = prepare(config, tiny.tokenizer(), streams={"sums": asks("math"), "rest": asks("code", "7")})
    sums, rest = ([number_of(row.prompt) for row in found.views[name]] for name in ("sums", "rest"))
    trained = [number_of(row.prompt) for row in found.train]
    assert sums == [number for number in trained if number % 4 == 0]
    assert rest == [number for number in trained if number % 4 in (1, 2)]
    assert len(sums) > 5
    assert found.counts["views"] == {"sums": {"rows_of_groups": len(sums)}, "rest": {"rows_of_groups": len(rest)}}


def test_a_stream_may_have_words_of_its_own_for_its_groups(tmp_path: Path) -> None:
    config = Data(path=str(rows_file(tmp_path)), fields={"group": "domain"})
    streams = {"sums": asks("math", prefix={"text": "sum: "})}
    found = prepare(config, tiny.tokenizer(), streams=streams)
    assert {row.prompt[:5] for row in found.views["sums"]} == {"sum: "}
    assert {number_of(row.prompt) % 4 for row in found.views["sums"]} == {0}
    assert found.counts["views"]["sums"]["rows"] == len(found.train)
    assert found.counts["views"]["sums"]["rows_of_groups"] == len(found.views["sums"])


def test_rows_that_are_prepared_keep_their_groups(tmp_path: Path) -> None:
    config = Data(path=str(rows_file(tmp_path)), fields={"group": "domain"})
    prepare_rows(config, tiny.tokenizer(), tmp_path / "prepared")
    streams = {"sums": asks("math")}
    from_file = prepare(config, tiny.tokenizer(), streams=streams)
    from_folder = prepare(Data(path=str(tmp_path / "prepared")), tiny.tokenizer(), streams=streams)
    assert list(from_folder.views["sums"]) == list(from_file.views["sums"])
    assert list(from_folder.train) == list(from_file.train)
    assert from_folder.train[3:6] == from_file.train[3:6]


def test_without_a_field_for_it_nothing_of_prepared_rows_changes(tmp_path: Path) -> None:
    """Not even where a field is called group: today's files are the same bytes."""
    plain, with_field = tmp_path / "a", tmp_path / "b"
    for folder, more in ((plain, {}), (with_field, {"group": "math"})):
        folder.mkdir()
        prepare_rows(Data(path=str(rows_file(folder, **more))), tiny.tokenizer(), folder / "prepared")
    first, second = ((one / "prepared" / "train.arrow").read_bytes() for one in (plain, with_field))
    assert first == second
    import pyarrow as pa

    names = pa.ipc.open_file(pa.BufferReader(first)).schema.names
    assert names == ["prompt_ids", "response_ids", "id", "prompt", "response", "truncated"]


def test_a_group_without_rows_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    config = Data(path=str(rows_file(tmp_path)), fields={"group": "domain"})
    with pytest.raises(DataError, match="stream sums is about group maths, and no train row is of it") as caught:
        prepare(config, tiny.tokenizer(), streams={"sums": asks("math", "maths")})
    for name in ("math (", "code (", "7 ("):
        assert name in str(caught.value)


def test_rows_without_groups_are_refused_with_the_key_to_set(tmp_path: Path) -> None:
    file = rows_file(tmp_path)
    with pytest.raises(DataError, match=r"none of the \d+ train rows has a group\n  fix: set data.fields.group"):
        prepare(Data(path=str(file)), tiny.tokenizer(), streams={"sums": asks("math")})
    with pytest.raises(DataError, match=r"no row of .* has text in a field 'dmain', which data.fields.group names"):
        prepare(Data(path=str(file), fields={"group": "dmain"}), tiny.tokenizer())


def test_a_group_is_a_field_of_rows_in_every_format(tmp_path: Path) -> None:
    file = tmp_path / "dolly.jsonl"
    rows = [
        {"instruction": row["prompt"], "output": row["response"], "category": ("qa", "chat")[at % 2]}
        for at, row in enumerate(tiny.rows(40))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = Data(path=str(file), format="dolly", fields={"group": "category"})
    found = prepare(config, tiny.tokenizer(), streams={"qa": asks("qa")})
    assert {row.group for row in found.train} == {"qa", "chat"}
    assert {row.group for row in found.views["qa"]} == {"qa"}
