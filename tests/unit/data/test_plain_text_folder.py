"""plain_text=FOLDER: the blocks of a corpus as rows, in the memory of one of them."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill import recipe
from potstill.data.corpus import build_corpus
from potstill.data.corpus.blocks import CorpusBlocks
from potstill.data.corpus.scatter import permuted, scattered
from potstill.data.indexed import write_indexed
from potstill.data.indexed.layout import Layout
from potstill.data.plain_text import a_block, plain_text, plain_text_blocks
from potstill.errors import ConfigError, DataError
from tests.unit.data.conftest import make_tokenizer

STORIES = [f"Story {n}. " + "The heron waits for a small fish. " * (n % 5) + "End." for n in range(80)]
SIZE = 32


@pytest.fixture
def corpus(rows_file: Callable[..., Path], tokenizer: Any) -> Path:
    file = rows_file([{"text": text} for text in STORIES])
    build_corpus(file, tokenizer, file.parent / "corpus", block_size=SIZE, dev_blocks=2)
    return file.parent / "corpus"


def source(path: Path, **settings: Any) -> recipe.DatasetSource:
    return recipe.DatasetSource(view="plain_text", path=str(path), **{"block_tokens": SIZE} | settings)


def ids(row: Any) -> list[int]:
    return [*row.prompt_ids, *row.response_ids]


def test_the_rows_are_the_blocks_of_the_text(corpus: Path, tokenizer: Any) -> None:
    held = plain_text_blocks(str(corpus.parent / "rows.jsonl"), tokenizer, SIZE)
    rows = plain_text(source(corpus), tokenizer)
    assert isinstance(rows, CorpusBlocks)
    assert list(map(ids, rows)) == list(map(ids, held[2:]))  # the first two are valid's
    assert {(len(row.prompt_ids), len(row.response_ids)) for row in rows} == {(1, SIZE - 1)}
    assert [row.example_id for row in rows[:2]] == ["corpus, block 1", "corpus, block 2"]
    assert rows[-1] == rows[len(rows) - 1] == list(rows)[-1] == rows[-2:][1]
    assert a_block(rows) == rows[0]
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_blocks_of_minillm_have_no_card_and_are_read(tmp_path: Path, tokenizer: Any) -> None:
    blocks = np.arange(4 * SIZE).reshape(4, SIZE)
    write_indexed(tmp_path / "train", ([block] for block in blocks), len(tokenizer))
    rows = plain_text(source(tmp_path), tokenizer)
    assert [ids(row) for row in rows] == blocks.tolist()  # type: ignore[union-attr]


def test_blocks_of_another_tokenizer_are_refused_by_the_card(corpus: Path) -> None:
    other = make_tokenizer(eos="<e>")
    with pytest.raises(DataError, match=r"corpus was made with the tokenizer of .*different ids"):
        CorpusBlocks(corpus, other, SIZE)


def test_padding_makes_no_other_tokenizer(corpus: Path, tokenizer: Any) -> None:
    same = make_tokenizer("<s> $A")
    same(["a", "a heron"], padding=True, truncation=True, max_length=8)
    assert len(CorpusBlocks(corpus, same, SIZE)) > 0


def test_ids_of_a_larger_vocabulary_are_refused_where_there_is_no_card(tmp_path: Path, tokenizer: Any) -> None:
    """In any block: all are looked at where there are few, and when it is read where there are many."""
    blocks = np.zeros((300, SIZE), np.int64)
    blocks[299, 5] = blocks[150, 3] = len(tokenizer)
    write_indexed(tmp_path / "a" / "train", ([block] for block in blocks), 1000)
    with pytest.raises(DataError, match=r"record 299 holds \d+ at place 5, and token ids are 0 to"):
        CorpusBlocks(tmp_path / "a", tokenizer, SIZE)
    blocks[299, 5] = 0
    write_indexed(tmp_path / "b" / "train", ([block] for block in blocks), 1000)
    rows = CorpusBlocks(tmp_path / "b", tokenizer, SIZE)
    with pytest.raises(DataError, match="record 150 holds"):
        rows[150]


def test_another_length_is_refused_with_the_setting_that_fits(corpus: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=f"has blocks of {SIZE} tokens.* is 512") as caught:
        plain_text(source(corpus, block_tokens=512), tokenizer)
    assert f"set source.block_tokens to {SIZE}" in str(caught.value)
    assert "--block-size 512" in str(caught.value)


def test_records_that_are_no_blocks_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    write_indexed(tmp_path / "a" / "train", [[np.arange(SIZE)], [np.arange(SIZE - 1)]], 400)
    with pytest.raises(DataError, match=f"records have {SIZE - 1} to {SIZE} ids"):
        CorpusBlocks(tmp_path / "a", tokenizer, SIZE)
    write_indexed(tmp_path / "b" / "train", [[np.arange(SIZE - 8), np.arange(7)]] * 3, 400)
    with pytest.raises(DataError, match="record 0 holds a prompt and its response"):
        CorpusBlocks(tmp_path / "b", tokenizer, SIZE)


def test_a_folder_of_other_splits_or_a_broken_card_is_refused(corpus: Path, tokenizer: Any) -> None:
    (corpus / "corpus.json").write_text("{}")
    with pytest.raises(DataError, match=r"corpus.json is not the card of a corpus"):
        CorpusBlocks(corpus, tokenizer, SIZE)
    (corpus / "corpus.json").unlink()
    for file in corpus.glob("train*"):
        file.unlink()
    with pytest.raises(DataError, match=r"there is no train_0.idx") as caught:
        plain_text(source(corpus), tokenizer)
    assert "valid" in str(caught.value)


@pytest.mark.parametrize("settings", [{"streamed": True}, {"field": "body"}])
def test_settings_of_text_are_refused_for_blocks(corpus: Path, tokenizer: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"source.{next(iter(settings))} is .* is a folder of blocks"):
        plain_text(source(corpus, **settings), tokenizer)


# --- memory -----------------------------------------------------------------------------------------------------------

MEMORY = """
import re, resource, sys
from pathlib import Path
from potstill import recipe
from potstill.data.corpus.scatter import scattered
from potstill.data.plain_text import a_block, plain_text
from potstill.sources.dataset import DatasetSource
from potstill.sources.source import Share

class Words:
    eos_token_id = 0
    def __len__(self): return 50257

spec = recipe.DatasetSource(view="plain_text", path=sys.argv[1], block_tokens=2048)
own = 1024 * int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (own + int(sys.argv[2]),) * 2)
text = plain_text(spec, Words())
source = DatasetSource(text, seed=1, pad_id=0, order=scattered)
drawn = {row.example_id for _ in range(5) for row in source.draw(Share(8, 8))}
print(len(text), len(a_block(text).response_ids), len(drawn))
"""


def test_a_corpus_of_ten_gigabytes_is_opened_and_drawn_from_in_constant_memory(tmp_path: Path) -> None:
    """2.5 million blocks of 2048 ids in two bytes, of which the disk holds almost nothing.

    The limit is on the memory of the process alone, at any moment. What is mapped can be taken back and is not in it.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux limits the memory of a process's own")
    count, size = 2_500_000, 2048
    with open(tmp_path / "train_0.bin", "wb") as handle:
        os.truncate(handle.fileno(), 2 * size * count)
        handle.write(struct.pack("<4H", 1, 2, 3, 4))
    with open(tmp_path / "train_0.idx", "wb") as handle:
        handle.write(Layout(np.dtype("<u2"), count, 1).header())
        np.full(count, size, "<i4").tofile(handle)
        (np.arange(count, dtype="<i8") * 2 * size).tofile(handle)
        np.zeros(1, "<i8").tofile(handle)
    assert (tmp_path / "train_0.bin").stat().st_size == 10_240_000_000
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(12_000_000)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(count), str(size - 1), "40"]


# --- the order of many ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 63, 64, 65, 1000])
def test_a_permutation_has_every_place_once(size: int) -> None:
    found = [permuted(place, size, "a") for place in range(size)]
    assert sorted(found) == list(range(size))
    assert size < 16 or found not in (sorted(found), [permuted(place, size, "b") for place in range(size)])


def test_each_epoch_is_another_order_and_any_position_is_gone_on_from() -> None:
    drawn = scattered(0, 300, 100, 7)
    epochs = [drawn[start : start + 100] for start in (0, 100, 200)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(scattered(at, 9, 100, 7) == drawn[at : at + 9] for at in range(291))
    assert scattered(0, 100, 100, 8) != epochs[0]
    assert scattered(0, 200, 100, 7, shuffled_from=1) == [*range(100), *epochs[1]]
    for wrong in ((-1, 1, 1), (0, -1, 1), (0, 1, 0)):
        with pytest.raises(ValueError, match="cannot draw"):
            scattered(*wrong, 0)


def test_the_places_of_neighbours_are_far_apart_as_in_a_random_order() -> None:
    """Mean distance of neighbours a third of the whole, and no correlation: four standard errors of each."""
    size = 20_000
    found = np.array([permuted(place, size, "1/0") for place in range(size)])
    assert abs(np.abs(np.diff(found)).mean() / size - 1 / 3) < 4 * np.sqrt(1 / 18 / size)
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 4 / np.sqrt(size)
    assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 4 / np.sqrt(size)


def test_the_card_is_that_of_the_tokenizer_the_corpus_was_made_with(corpus: Path, tokenizer: Any) -> None:
    card = json.loads((corpus / "corpus.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", card["tokenizer"]["sha256"])
    card["tokenizer"]["sha256"] = "0" * 64
    (corpus / "corpus.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="different ids"):
        CorpusBlocks(corpus, tokenizer, SIZE)
