"""Blocks packed from a stream: which tokens they are, that any stop is gone on from exactly, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import recipe
from potstill.data.corpus import Streamed, tokenising
from potstill.data.corpus.packed_stream import PackedStream
from potstill.data.corpus.shards import Files, Texts
from potstill.data.examples import Tokenised
from potstill.data.plain_text import StreamedText, a_block, plain_text, plain_text_blocks
from potstill.errors import DataError
from tests.unit.data.conftest import make_tokenizer

STORIES = [f"Story {n}. " + "The heron waits for a small fish. " * (n % 3) for n in range(150)]
SIZE = 16
ORDERS = [{}, {"seed": 1, "buffer_rows": 7}, {"seed": 2, "buffer_rows": 1000}]


@pytest.fixture
def folder(rows_file: Callable[..., Path]) -> Path:
    """Three files: 60, 30 and 60 stories, each file of another kind or length."""
    rows_file([{"text": text} for text in STORIES[:60]], "a.jsonl")
    rows_file([text.strip() for text in STORIES[60:90]], "b.txt")
    return rows_file([{"text": text} for text in STORIES[90:]], "c.jsonl").parent


def opened(folder: Path, tokenizer: Any, **order: Any) -> PackedStream:
    files = Files(sorted(folder.glob("*.*")))
    return PackedStream(Streamed(Texts(files, "text"), repeat=True, **order), tokenizer, SIZE)


def taken(blocks: PackedStream, count: int) -> list[list[int]]:
    return [block.tolist() for block in islice(blocks, count)]


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def source(path: Path, **settings: Any) -> recipe.DatasetSource:
    return recipe.DatasetSource(view="plain_text", path=str(path), **{"block_tokens": SIZE} | settings)


def test_in_order_they_are_the_blocks_of_text_that_is_held(folder: Path, tokenizer: Any) -> None:
    held = plain_text_blocks(str(folder), tokenizer, SIZE)
    ids = [token for row in held for token in (*row.prompt_ids, *row.response_ids)]
    streamed = taken(opened(folder, tokenizer), len(held))
    assert [token for block in streamed for token in block] == ids
    assert len(held) > 150


def test_the_next_pass_begins_in_the_block_in_which_the_last_one_ends(folder: Path, tokenizer: Any) -> None:
    texts = [text.strip() for text in STORIES]
    one = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    assert len(one) % SIZE
    count = 3 * len(one) // SIZE
    joined = [token for block in taken(opened(folder, tokenizer), count) for token in block]
    assert joined == (one * 3)[: count * SIZE]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_stopped_after_any_block_the_rest_is_the_same(
    rows_file: Callable[..., Path], tokenizer: Any, order: dict[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a document, a batch of them and a buffer, at the end of a file and of a pass; as a checkpoint keeps it."""
    monkeypatch.setattr(tokenising, "BATCH_DOCUMENTS", batch)
    rows_file([{"text": text} for text in STORIES[:11]], "a.jsonl")
    folder = rows_file([{"text": text} for text in STORIES[11:18]], "b.jsonl").parent
    count = 70
    whole = opened(folder, tokenizer, **order)
    expected = taken(whole, count)
    assert whole.state_dict()["rows"]["place"]["epoch"] >= 2
    places = set()
    for stop in range(count + 1):
        before = opened(folder, tokenizer, **order)
        assert taken(before, stop) == expected[:stop]
        state = saved_and_loaded(before.state_dict())
        places.add(json.dumps(state["rows"]))
        after = opened(folder, tokenizer, **order)
        taken(after, 3)
        after.load_state_dict(state)
        assert taken(after, count - stop) == expected[stop:]
        assert after.counts == whole.counts
    assert len(places) > {1: 25, 3: 10, 64: 0}[batch]


def test_the_state_does_not_grow(folder: Path, tokenizer: Any) -> None:
    blocks = opened(folder, tokenizer, seed=1)
    sizes = []
    for _ in range(30):
        taken(blocks, 40)
        file = io.BytesIO()
        torch.save(blocks.state_dict(), file)
        sizes.append(file.tell())
    assert max(sizes) < 30_000  # a batch of 64 short documents


def test_a_seed_shuffles_the_documents_and_loses_none(folder: Path, tokenizer: Any) -> None:
    def documents(**order: Any) -> list[str]:
        joined = [token for block in taken(opened(folder, tokenizer, **order), 220) for token in block]
        return tokenizer.decode(joined).split("</s>")[: len(STORIES)]

    in_order, shuffled = documents(), documents(seed=1, buffer_rows=1000)
    assert in_order == [text.strip() for text in STORIES]
    assert sorted(shuffled) == sorted(in_order)
    assert shuffled != in_order
    assert documents(seed=2, buffer_rows=1000) != shuffled


# --- what is refused --------------------------------------------------------------------------------------------------


def streamed(file: Path, tokenizer: Any, size: int = SIZE, seed: int | None = None, **settings: Any) -> PackedStream:
    """As a recipe has it."""
    text = plain_text(source(file, streamed=True, **settings | {"block_tokens": size}), tokenizer)
    assert isinstance(text, StreamedText)
    return text.blocks(seed)


def test_a_few_bad_rows_are_left_out_and_counted(rows_file: Callable[..., Path], tokenizer: Any) -> None:
    """1 in 100, all before the good ones, so more for a while in later passes: those are not judged."""
    rows: list[Any] = [{"text": text} for text in (STORIES * 7)[:990]]
    file = rows_file(["{", {"text": 3}] * 5 + rows)
    blocks, there = streamed(file, tokenizer), streamed(rows_file(rows, "good.jsonl"), tokenizer)
    assert taken(blocks, 100) == taken(there, 100)
    assert (blocks.num_left_out, there.num_left_out) == (10, 0)
    assert taken(blocks, 1700) == taken(there, 1700)
    assert blocks.state_dict()["rows"]["place"]["epoch"] == 1
    assert blocks.num_left_out == 20


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"body": "a heron"}] * 3000, "1000 of the first 1000 rows.* rows.jsonl:1000: missing field 'text'"),
        ([{"body": "a heron"}], "1 of the first 1 rows.* rows.jsonl:1: missing field 'text'"),
        ([{"text": "a heron"}] * 40 + ["{"], "1 of the first 41 rows.* rows.jsonl:41: not JSON"),
        ([{"text": "a heron"}] * 1200 + ["{"] * 900, "13 of the first 1213 rows.*rows.jsonl:1213"),
        ([{"text": "  "}] * 5, "every row is empty"),
        ([{"text": "one</s>two"}] * 5, "documents hold the end-of-sequence token"),
    ],
    ids=["another field", "another field of one", "one of few", "many of many", "empty", "ends inside"],
)
def test_rows_that_cannot_be_trained_on_are_refused_each_time_they_are_met(
    rows_file: Callable[..., Path], tokenizer: Any, rows: list[Any], said: str, seed: int | None
) -> None:
    blocks = streamed(rows_file(rows), tokenizer, 9000, seed)
    for _ in range(3):
        with pytest.raises(DataError, match=said):
            next(blocks)


def test_a_row_that_nothing_took_out_is_refused(rows_file: Callable[..., Path], tokenizer: Any) -> None:
    blocks = PackedStream(Streamed(rows_file([{"text": "a"}, {"body": "a"}])), tokenizer, SIZE)
    with pytest.raises(DataError, match=r"rows.jsonl:2: missing field 'text'"):
        next(blocks)


def test_what_cannot_be_packed_is_refused(folder: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="blocks of 1 tokens"):
        PackedStream(Streamed(sorted(folder.iterdir())), tokenizer, 1)
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        PackedStream(Streamed(sorted(folder.iterdir())), endless, SIZE)


def test_a_state_of_other_files_is_refused(folder: Path, tokenizer: Any) -> None:
    state = opened(folder, tokenizer, seed=1).state_dict()
    with (folder / "c.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(DataError, match=r"another stream: files was .*c.jsonl"):
        opened(folder, tokenizer, seed=1).load_state_dict(state)


def test_a_stream_that_ends_ends(folder: Path, tokenizer: Any) -> None:
    once = PackedStream(Streamed(Texts(Files(sorted(folder.iterdir())), "text")), tokenizer, SIZE)
    held = plain_text_blocks(str(folder), tokenizer, SIZE)
    assert len(list(once)) == len(held)
    assert list(once) == []


# --- from a recipe ----------------------------------------------------------------------------------------------------


def test_what_a_recipe_says_is_what_is_streamed(rows_file: Callable[..., Path], tokenizer: Any) -> None:
    folder = rows_file([{"body": text} for text in STORIES], "one.jsonl").parent
    text = plain_text(source(folder, streamed=True, field="body", buffer_rows=9), tokenizer)
    assert isinstance(text, StreamedText)
    named = rows_file([{"text": text.strip()} for text in STORIES], "two.jsonl").rename(folder.parent / "two.jsonl")
    straight = PackedStream(Streamed(named, seed=5, buffer_rows=9), tokenizer, SIZE)
    assert taken(text.blocks(5), 50) == taken(straight, 50)
    assert taken(text.blocks(6), 50) != taken(text.blocks(5), 50) == taken(text.blocks(5), 50)
    first = a_block(text)
    assert isinstance(first, Tokenised)
    assert [*first.prompt_ids, *first.response_ids] == taken(text.blocks(None), 1)[0]


def test_a_field_that_is_not_there_shows_before_training(folder: Path, tokenizer: Any) -> None:
    (folder / "b.txt").unlink()
    text = plain_text(source(folder, streamed=True, field="body"), tokenizer)
    with pytest.raises(DataError, match="missing field 'body'"):
        a_block(text)
    with pytest.raises(DataError, match="missing field 'body'"):
        plain_text(source(folder, field="body"), tokenizer)


def test_a_folder_without_text_is_named(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "read.me").write_text("no")
    for streamed in (False, True):
        with pytest.raises(DataError, match="holds neither text nor blocks"):
            plain_text(source(tmp_path, streamed=streamed), tokenizer)
    with pytest.raises(DataError, match=r"there is no data file .*gone.jsonl"):
        plain_text(source(tmp_path / "gone.jsonl", streamed=True), tokenizer)
