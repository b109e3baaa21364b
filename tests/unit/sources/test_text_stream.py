"""Batches of streamed text: the same for any number of processes, and for a run that was broken off."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import potstill
from potstill import bench, recipe, recipe_io, recipes, streams
from potstill.data.corpus import build_corpus
from potstill.data.corpus.blocks import CorpusBlocks
from potstill.data.corpus.scatter import scattered
from potstill.data.indexed import write_indexed
from potstill.data.plain_text import StreamedText, plain_text
from potstill.data.prepare import Prepared
from potstill.errors import DataError, ModelError
from potstill.recipes import METHODS
from potstill.sources.dataset import DatasetSource
from potstill.sources.rollout import seed_of
from potstill.sources.source import Share, Source
from potstill.sources.text_stream import TextStreamSource
from tests import rollouts, tiny
from tests.e2e.conftest import SMALL, teacher_folder, workspace
from tests.unit.test_streams import SEED, parts

__all__ = ["teacher_folder", "workspace"]
TOKENIZER = tiny.tokenizer()
TEXTS = [f"Goat {n} ate the hat of fox {n}. " + "The sky is blue. " * (n % 4) for n in range(60)]
SIZE = 16


def write(folder: Path, name: str = "text.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def opened(file: Path, *, seed: int = 3) -> TextStreamSource:
    spec = recipe.DatasetSource(view="plain_text", path=str(file), block_tokens=SIZE, streamed=True, buffer_rows=10)
    text = plain_text(spec, TOKENIZER)
    assert isinstance(text, StreamedText)
    return TextStreamSource(text.name, text.blocks(seed), pad_id=TOKENIZER.eos_token_id)


def ids_of(batches: list[Any]) -> list[list[int]]:
    return [row for batch in batches for row in torch.cat([batch.prompt_ids, batch.response_ids], 1).tolist()]


def names_of(batches: list[Any]) -> list[str]:
    return [name for batch in batches for name in batch.example_ids]


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_shares_of_all_processes_are_the_batch_of_one(tmp_path: Path, processes: int) -> None:
    file = write(tmp_path)
    alone, shared = opened(file), [opened(file) for _ in range(processes)]
    for _ in range(30):
        whole = alone.next(Share(6, 4))
        parts = [source.next(Share(6, 2, rank, processes)) for rank, source in enumerate(shared)]
        assert [row for part in parts for row in ids_of(part)] == ids_of(whole)
        assert [name for part in parts for name in names_of(part)] == names_of(whole)
        assert [len(batch.example_ids) for batch in whole] == [4, 2]
        assert all(source.state_dict()["counts"] == alone.state_dict()["counts"] for source in shared)


def test_the_rows_are_blocks_in_order_and_only_their_first_token_is_not_predicted(tmp_path: Path) -> None:
    (batch,) = opened(write(tmp_path)).next(Share(4, 4))
    assert (batch.prompt_ids.shape, batch.response_ids.shape) == ((4, 1), (4, SIZE - 1))
    assert batch.prompt_mask.all()
    assert batch.response_mask.all()
    assert batch.example_ids == tuple(f"text.jsonl, block {number}" for number in (1, 2, 3, 4))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_goes_on_after_any_batch(tmp_path: Path, rank: int) -> None:
    file, share, count = write(tmp_path), Share(4, 2, rank, 2), 40
    whole: Source = opened(file)
    expected = [whole.next(share, 0.0) for _ in range(count)]
    before = opened(file)
    for stop in range(count):
        after = opened(file)
        after.load_state_dict(before.state_dict())
        found = [after.next(share) for _ in range(min(4, count - stop))]
        assert list(map(ids_of, found)) == list(map(ids_of, expected[stop : stop + 4]))
        assert list(map(names_of, found)) == list(map(names_of, expected[stop : stop + 4]))
        before.next(share)
    assert before.figures() == whole.figures()
    assert whole.figures()["documents"] > 60


def test_a_recipes_stream_is_shuffled_with_its_own_seed_and_blocks_in_an_order_that_is_not_held(tmp_path: Path) -> None:
    made = recipes.minillm(plain_text="text.jsonl", max_new_tokens=rollouts.LONGEST)
    spec = recipe.DatasetSource(view="plain_text", path=str(write(tmp_path)), block_tokens=SIZE, streamed=True)
    text = plain_text(spec, TOKENIZER)
    assert isinstance(text, StreamedText)
    _, stream = streams.build_streams(parts(tmp_path, made, plain_text={"plain_text": text}))
    drawn = ids_of(stream.source.next(Share(8, 8), 0.0))
    assert drawn == [block.tolist() for block in islice(text.blocks(seed_of(SEED, "plain_text")), 8)]
    assert drawn != [block.tolist() for block in islice(text.blocks(None), 8)]

    build_corpus(tmp_path / "text.jsonl", TOKENIZER, tmp_path / "corpus", block_size=SIZE)
    blocks = CorpusBlocks(tmp_path / "corpus", TOKENIZER, SIZE)
    _, stream = streams.build_streams(parts(tmp_path, made, plain_text={"plain_text": blocks}))
    places = scattered(0, 8, len(blocks), SEED)
    assert names_of(stream.source.next(Share(8, 8), 0.0)) == [blocks[place].example_id for place in places]


# --- before a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, 257])
def test_lengths_are_checked_by_one_block_and_no_other_is_read(workspace: Path, size: int) -> None:
    """The hundredth block cannot be read, which nothing meets; blocks longer than the model's 256 positions are."""
    ids = np.ones((300, size), np.int64)
    ids[100, 0] = len(TOKENIZER)
    write_indexed("corpus/train", ([block] for block in ids), 1000)
    source = {"name": "dataset", "view": "plain_text", "path": "corpus", "block_tokens": size}
    settings = {"student.model": "teacher", "data": "rows.jsonl", "streams.0.source": source, "student.keep_layers": 2}
    stage = recipe_io.load("sft", settings, methods=METHODS).stage
    text = streams.plain_text_of(stage, TOKENIZER)
    with pytest.raises(DataError, match="record 100 holds"):
        list(text[stage.streams[0].name])  # type: ignore[arg-type]
    data = Prepared(tuple(rollouts.rows()), (), (), {})
    if size == SIZE:
        bench.check_texts(stage, data, text, allow_remote_code=False)
    else:
        with pytest.raises(ModelError, match="corpus, block 1"):
            bench.check_texts(stage, data, text, allow_remote_code=False)


# --- a run ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an error that anything handles."""


def files(folder: Path) -> str:
    write(folder)
    return "text.jsonl"


def library(folder: Path) -> str:
    pytest.importorskip("datasets", reason="needs the datasets library: pip install 'potstill[streaming]'")
    (folder / "hub").mkdir()
    write(folder / "hub")
    return "datasets:hub"


def blocks(folder: Path) -> str:
    build_corpus(write(folder), potstill_tokenizer(folder), folder / "corpus", block_size=SIZE)
    return "corpus"


def potstill_tokenizer(folder: Path) -> Any:
    from potstill.models.loading import load_tokenizer

    return load_tokenizer(str(folder / "teacher"))


@pytest.mark.parametrize("make", [files, library, blocks])
def test_a_run_broken_off_between_checkpoints_and_resumed_is_the_uninterrupted_one(
    workspace: Path, make: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps; broken off in the fifth, with a checkpoint of the third: the same weights, to the last bit."""
    path = make(workspace)
    source = {"name": "dataset", "view": "plain_text", "path": path, "block_tokens": SIZE}
    streamed = {"streamed": True, "buffer_rows": 10} if make is files else {}
    term = {"objective": {"name": "cross_entropy"}}
    settings = {key: value for key, value in SMALL.items() if key != "teacher"} | {
        "student.model": "teacher",
        "budget.steps": 6,
        "streams": [{"name": "plain_text", "source": source | streamed, "terms": [term]}],
        "checkpoint.best_by": "perplexity",
        "evaluation.max_examples": 2,
    }
    potstill.train("sft", run="whole", **settings)
    kind = DatasetSource if make is blocks else TextStreamSource
    calls, draw = [0], kind.next

    def dying(self: Any, share: Share, progress: float = 0.0) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            draw(self, share, progress)
            raise Killed
        return draw(self, share, progress)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "next", dying)
        with pytest.raises(Killed):
            potstill.train("sft", run="broken", **settings)
    assert calls == [5]
    potstill.resume("broken")
    weights = [(Path("runs") / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    untrained = Path("teacher/model.safetensors").read_bytes()
    assert weights[0] == weights[1] != untrained
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
            for line in (Path("runs") / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "broken")
    ]
    assert lines[0] == lines[1]
    assert ("source/plain_text_documents" in lines[0][1]) == (make is not blocks)
