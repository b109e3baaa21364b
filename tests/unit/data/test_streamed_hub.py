"""Streams that the datasets library opens, of files here: the network is not asked for."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from potstill import recipe
from potstill.data.corpus import Streamed
from potstill.data.corpus.hub import HubRows, named_split
from potstill.data.plain_text import StreamedText, a_block, plain_text
from potstill.errors import ConfigError, DataError

ROWS = [{"text": f"The heron waits for fish {n}.", "n": n} for n in range(40)]
ORDERS = [{}, {"seed": 1, "buffer_rows": 6}, {"seed": 2}]


@pytest.fixture
def name(rows_file: Callable[..., Path]) -> str:
    """Three shards of 19, 6 and 15 rows, and one of another split."""
    pytest.importorskip("datasets", reason="needs the datasets library: pip install 'potstill[streaming]'")
    rows_file(ROWS[:19], "train-0.jsonl")
    rows_file(ROWS[19:25], "train-1.jsonl")
    rows_file([{"text": "held out", "n": 99}], "test-0.jsonl")
    return f"datasets:{rows_file(ROWS[25:], 'train-2.jsonl').parent}"


def numbers(stream: Streamed, count: int | None = None) -> list[int]:
    return [row.values["n"] for row in islice(stream, count)]


def test_in_order_the_rows_are_those_of_the_shards(name: str) -> None:
    rows = HubRows(name)
    assert numbers(Streamed(rows)) == list(range(40))
    assert numbers(Streamed(HubRows(f"{name}:test"))) == [99]
    assert [len(list(rows.rows(shard, 0))) for shard in range(3)] == [19, 6, 15]
    assert next(iter(rows.rows(1, 2))).where == f"{name.removeprefix('datasets:')}:train, shard 2 of 3, row 3"


def test_only_the_column_of_the_text_is_read_and_another_name_says_which_there_are(name: str, tokenizer: Any) -> None:
    assert [row.values for row in islice(Streamed(HubRows(name, "text")), 2)] == [
        {"text": row["text"]} for row in ROWS[:2]
    ]
    text = plain_text(recipe.DatasetSource(view="plain_text", path=name, field="body"), tokenizer)
    with pytest.raises(DataError, match=r"missing field 'body'.*'text', 'n'"):
        a_block(text)


@pytest.mark.parametrize("order", ORDERS)
def test_stopped_at_any_row_it_goes_on_at_the_next(name: str, order: dict[str, Any]) -> None:
    """What lies in the shuffle buffer is not lost, as it is with the library's own state."""
    rows = HubRows(name)
    expected = numbers(Streamed(rows, repeat=True, **order), 90)
    assert sorted(expected[:40]) == list(range(40))
    before = Streamed(rows, repeat=True, **order)
    for stop in range(85):
        state = json.loads(json.dumps(before.state_dict()))
        after = Streamed(HubRows(name) if stop % 10 == 0 else rows, repeat=True, **order)
        after.load_state_dict(state)
        assert numbers(after, 5) == expected[stop : stop + 5]
        assert numbers(before, 1) == expected[stop : stop + 1]


def test_the_library_reads_kinds_that_files_alone_are_not_read_in(tmp_path: Path, name: str, tokenizer: Any) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    with gzip.open(folder / "train.jsonl.gz", "wt") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in ROWS)
    spec = recipe.DatasetSource(view="plain_text", path=f"datasets:{folder}", block_tokens=8, buffer_rows=5)
    text = plain_text(spec, tokenizer)
    assert isinstance(text, StreamedText)
    assert [row.values for row in Streamed(text.shards)] == [{"text": row["text"]} for row in ROWS]
    blocks = text.blocks(1)
    expected = [next(blocks).tolist() for _ in range(100)]
    again = text.blocks(1)
    for _ in range(37):
        next(again)
    last = text.blocks(1)
    last.load_state_dict(again.state_dict())
    assert [next(last).tolist() for _ in range(63)] == expected[37:]


def test_a_state_of_another_split_is_refused(name: str) -> None:
    state = Streamed(HubRows(f"{name}:test")).state_dict()
    with pytest.raises(DataError, match="another stream: split was test and is train; shards was 1 and is 3"):
        Streamed(HubRows(name)).load_state_dict(state)


def test_a_row_that_the_library_cannot_read_is_refused_with_its_shard(name: str) -> None:
    file = Path(name.removeprefix("datasets:")) / "train-1.jsonl"
    file.write_text('{"text": "a", "n": 1}\n{"text": \n')
    stream = Streamed(HubRows(name))
    assert numbers(stream, 19) == list(range(19))
    for _ in range(2):
        with pytest.raises(DataError, match="could not be read any further than row 0 of shard 2"):
            next(stream)


@pytest.mark.parametrize(
    ("changed", "settings", "said"),
    [
        (":nope", {}, "split nope, could not be opened: ValueError: Bad split"),
        ("/gone", {}, "could not be opened"),
        ("", {"subset": "of none"}, "could not be opened: ValueError: .*of none"),
    ],
)
def test_what_the_library_cannot_open_is_refused(name: str, changed: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        HubRows(name + changed, **settings)
    assert "look at the name, split, subset" in str(caught.value)


def test_without_the_library_it_is_said_how_to_install_it(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as Python has it where an import fails
    spec = recipe.DatasetSource(view="plain_text", path="datasets:some/corpus:train")
    with pytest.raises(ConfigError, match=r'pip install "potstill\[streaming\]"'):
        plain_text(spec, tokenizer)


def test_the_name_and_split_of_a_path() -> None:
    assert named_split("datasets:org/corpus") == ("org/corpus", "train")
    assert named_split("datasets:org/corpus:validation") == ("org/corpus", "validation")
    for wrong in ("datasets:", "datasets::train", "datasets:a:b:c"):
        with pytest.raises(ConfigError, match="names no data set"):
            named_split(wrong)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"streamed": True}, "streamed is only for plain text"),
        ({"field": "body"}, "field is only for plain text"),
        ({"view": "plain_text", "path": "a.txt", "buffer_rows": 5}, "buffer_rows is only for what is streamed"),
        ({"view": "plain_text", "path": "a.txt", "subset": "en"}, "subset is only for path datasets:NAME"),
        ({"view": "plain_text", "path": "a", "streamed": True, "revision": "1"}, "revision is only for path datasets"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe.DatasetSource(**settings)
    recipe.DatasetSource(view="plain_text", path="datasets:a/b", buffer_rows=5, subset="en", revision="1", field="body")
