"""Rows tokenised beforehand: the same as from their file, whole or not there, refused where they do not fit."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from potstill.data import encoding
from potstill.data import prepare as prepare_module
from potstill.data.examples import Tokenised
from potstill.data.prepare import prepare, prepare_all
from potstill.data.prepared import arrow, building
from potstill.data.prepared.arrow import ArrowRows, write_arrow
from potstill.data.prepared.building import prepare_rows
from potstill.data.prepared.card import overrides_of
from potstill.errors import DataError
from potstill.recipe import Data
from tests import tiny
from tests.unit.data.conftest import CHAT_TEMPLATE, good_rows, make_tokenizer

SPLITS = ("train", "validation", "heldout")
Writer = Callable[..., Path]


@pytest.fixture
def config(rows_file: Writer) -> Data:
    """Rows of every kind: bad, too long, truncated, with an id, beyond ASCII; more than one batch of them."""
    rows: list[Any] = good_rows(700)
    rows[3], rows[4] = {"prompt": "p"}, "{"
    rows[5] = {"prompt": "long " * 100, "response": "r"}
    rows[6] = {"prompt": "p", "response": "long " * 100}
    rows[7] = {"id": "über", "prompt": "ünï ¶ 東京 🦆", "response": "🦆🦆"}
    return Data(path=str(rows_file(rows)), max_prompt_tokens=60, max_response_tokens=50, long_prompts="shorten")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def refusal(config: Data, tokenizer: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config, tokenizer)
    return str(caught.value)


# --- the same rows ----------------------------------------------------------------------------------------------------


def test_a_folder_gives_the_rows_splits_and_counts_that_its_file_gives(
    config: Data, tokenizer: Any, tmp_path: Path
) -> None:
    prepare_rows(config, tokenizer, tmp_path / "made")
    there = tmp_path / "run" / "quarantine.jsonl"
    from_file = prepare(config, tokenizer, quarantine_file=tmp_path / "quarantine.jsonl")
    opened = prepare(config.model_copy(update={"path": str(tmp_path / "made")}), tokenizer, quarantine_file=there)
    for name in SPLITS:
        assert tuple(getattr(opened, name)) == getattr(from_file, name)
    assert opened.counts == from_file.counts
    assert opened.counts["shortened_prompts"] == 1
    assert there.read_bytes() == (tmp_path / "quarantine.jsonl").read_bytes() != b""


def test_nothing_is_tokenised_again(
    config: Data, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_rows(config, tokenizer, tmp_path / "made")
    Path(config.path).unlink()
    monkeypatch.setattr(prepare_module, "encode", None)
    monkeypatch.setattr(type(tokenizer), "__call__", None)
    assert len(prepare(config.model_copy(update={"path": str(tmp_path / "made")}), tokenizer).train) > 500


def test_chats_and_a_held_out_file(rows_file: Writer, chat_tokenizer: Any, tmp_path: Path) -> None:
    def chats(start: int) -> list[dict[str, Any]]:
        pairs = [(f"q{n}", f"a{n}") for n in range(start, start + 30)]
        roles = ("user", "assistant")
        return [{"messages": [{"role": r, "content": c} for r, c in zip(roles, pair, strict=True)]} for pair in pairs]

    train, held = rows_file(chats(0), "train.jsonl"), rows_file(chats(100), "held.jsonl")
    config = Data(path=str(train), heldout=str(held), format="chat", max_heldout=20)
    prepare_rows(config, chat_tokenizer, tmp_path / "made")
    opened = config.model_copy(update={"path": str(tmp_path / "made"), "heldout": None})
    made, expected = prepare(opened, chat_tokenizer), prepare(config, chat_tokenizer)
    assert tuple(made.heldout) == expected.heldout
    assert (made.counts, made.counts["unused_heldout"]) == (expected.counts, 10)
    assert tuple(prepare_all(opened, chat_tokenizer)) == expected.heldout


def test_one_worker_and_two_write_the_same_bytes(
    config: Data, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BATCH_EXAMPLES", 8)  # many more batches than wait for a worker
    for workers in (1, 2):
        prepare_rows(config, tokenizer, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    names = ["heldout.arrow", "quarantine.jsonl", "rows.json", "train.arrow", "validation.arrow"]
    assert sorted(contents(tmp_path / "1")) == names


def test_rows_are_read_at_any_place_as_slices_and_by_a_copy(tmp_path: Path) -> None:
    rows = [Tokenised(str(n), (n + 1,) * (n % 3 + 1), (), f"p{n}", "", n % 2 == 0) for n in range(2 * 256 + 3)]
    assert write_arrow(tmp_path / "rows", rows) == len(rows)
    read = ArrowRows(tmp_path / "rows", len(rows))
    assert (len(read), list(read)) == (len(rows), rows)
    for place in (0, 255, 256, 511, 512, 514, -1, -515):
        assert read[place] == rows[place]
    for place in (515, -516):
        with pytest.raises(IndexError):
            read[place]
    assert read[250:260] == tuple(rows[250:260])
    assert read[510:600] == tuple(rows[510:])
    sent = pickle.dumps(read)
    assert len(sent) < 1000
    assert list(pickle.loads(sent)) == rows


def test_measuring_on_a_folder_takes_its_held_out_rows_as_they_are(
    config: Data, tokenizer: Any, tmp_path: Path
) -> None:
    prepare_rows(config, tokenizer, tmp_path / "made")
    assert tuple(prepare_all(Data(path=str(tmp_path / "made")), tokenizer)) == prepare(config, tokenizer).heldout


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_prompt_tokens": 256}, "data.max_prompt_tokens is 60 there and 256 here"),
        ({"format": "dolly"}, "data.format is prompt_response there and dolly here"),
        ({"template": "chat"}, "data.template is none there and chat here"),
        ({"long_prompts": "skip"}, "data.long_prompts is shorten there and skip here"),
        ({"heldout_fraction": 0.5}, "data.heldout_fraction is 0.1 there and 0.5 here"),
        ({"fields": {"prompt": "q"}}, "data.fields is {} there and {'prompt': 'q'} here"),
        ({"heldout": "test.jsonl"}, "data.heldout=test.jsonl, and "),
    ],
)
def test_a_recipe_that_asks_for_other_rows_is_refused_with_both_values(
    config: Data, tokenizer: Any, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    prepare_rows(config, tokenizer, tmp_path / "made")
    config = config.model_copy(update={"path": str(tmp_path / "made")})
    assert len(prepare(config.model_copy(update={"template": "none", "max_bad_rows": 0.5}), tokenizer).train)
    assert said in refusal(config.model_copy(update=changed), tokenizer)


def test_what_the_card_says_to_add_makes_a_recipe_of_defaults_fit(config: Data, tokenizer: Any, tmp_path: Path) -> None:
    made = prepare_rows(config, tokenizer, tmp_path / "made")
    said = overrides_of(made)
    assert said == ["data.max_prompt_tokens=60", "data.max_response_tokens=50", "data.long_prompts=shorten"]
    refused = refusal(Data(path=str(tmp_path / "made")), tokenizer)
    assert f"fix: set {' '.join(said)}, or prepare" in refused


def test_another_tokenizer_template_or_end_is_refused(config: Data, tokenizer: Any, tmp_path: Path) -> None:
    prepare_rows(config, tokenizer, tmp_path / "plain")
    there = config.model_copy(update={"path": str(tmp_path / "plain")})
    assert "differ in its rules and vocabulary" in refusal(there, make_tokenizer())
    assert "differ in its end-of-sequence token" in refusal(there, make_tokenizer("<s> $A", eos="<s>"))
    assert len(prepare(there, make_tokenizer("<s> $A", chat=True)).train)  # no prompt went through the template
    chatty = make_tokenizer("<s> $A", chat=True)
    prepare_rows(config, chatty, tmp_path / "chat")
    there = config.model_copy(update={"path": str(tmp_path / "chat")})
    assert len(prepare(there, chatty).train)
    chatty.chat_template = CHAT_TEMPLATE.replace("</s>", "")
    assert "differ in its chat template" in refusal(there, chatty)


def test_a_changed_file_is_refused_by_name(
    config: Data, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    prepare_rows(config, tokenizer, whole)

    def changed(name: str, change: Callable[[bytes], bytes | None]) -> str:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        if (now := change((folder / name).read_bytes())) is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(now)
        return refusal(config.model_copy(update={"path": str(folder)}), tokenizer)

    assert "changed has no heldout.arrow" in changed("heldout.arrow", lambda _: None)
    assert "train.arrow has " in changed("train.arrow", lambda data: data[:-1])
    flipped = changed("train.arrow", lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    assert "train.arrow is not what it was when it was written" in flipped
    assert "rows.json is no card of prepared rows" in changed("rows.json", lambda data: data[:-20])
    assert "kind" in changed("rows.json", lambda data: data.replace(b"potstill rows 1", b"potstill rows 2"))
    rows = json.loads((whole / "rows.json").read_text())["files"]["train.arrow"]["rows"]
    wrong = changed(
        "rows.json", lambda data: data.replace(f'"rows": {rows},'.encode(), f'"rows": {rows - 1},'.encode(), 1)
    )
    assert f"it has {rows:,} rows, and its card says {rows - 1:,}" in wrong
    monkeypatch.setattr("potstill.data.prepared.card.HASHED_BYTES", 1000)  # a file too large to be hashed each time
    assert "is not the file of rows" in changed("train.arrow", lambda data: bytes(len(data)))


def test_a_corpus_of_text_and_any_other_folder_are_no_rows(tokenizer: Any, tmp_path: Path, rows_file: Writer) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.json").write_text("{}")
    said = refusal(Data(path=str(tmp_path / "corpus")), tokenizer)
    assert "is a corpus of text" in said
    assert "plain_text=" in said
    rows_file(good_rows(3))
    assert "is a folder, not a file\n  fix: name one file in it: rows.jsonl" in refusal(
        Data(path=str(tmp_path)), tokenizer
    )


# --- written whole, or not at all -------------------------------------------------------------------------------------


def test_what_cannot_be_prepared_leaves_nothing(rows_file: Writer, tokenizer: Any, tmp_path: Path) -> None:
    file, out = rows_file(good_rows(20)), tmp_path / "out" / "made"
    bad = rows_file([*good_rows(5), "{"], "bad.jsonl")
    for config, said in (
        (Data(path=str(bad)), "1 of the 6 rows"),
        (Data(path=str(tmp_path / "none.jsonl")), "no data file"),
        (Data(path=str(file), max_prompt_tokens=2), "no train rows are left"),
        (Data(path=str(tmp_path)), "is a folder, and rows are prepared from files"),
    ):
        with pytest.raises(DataError, match=said):
            prepare_rows(config, tokenizer, out)
        assert not out.parent.exists() or not any(out.parent.iterdir())
    with pytest.raises(DataError, match="0 workers"):
        prepare_rows(Data(path=str(file)), tokenizer, out, workers=0)


def test_a_folder_with_content_stays_as_it_is(rows_file: Writer, tokenizer: Any, tmp_path: Path) -> None:
    config, out = Data(path=str(rows_file(good_rows(20)))), tmp_path / "made"
    out.mkdir()
    prepare_rows(config, tokenizer, out)  # an empty one is as good as none
    before = contents(out)
    with pytest.raises(DataError, match="never overwritten"):
        prepare_rows(config.model_copy(update={"max_response_tokens": 3}), tokenizer, out)
    assert contents(out) == before


def test_a_full_disk_is_said_and_leaves_nothing(config: Data, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match="made cannot be written") as error:
            prepare_rows(config, tokenizer, tmp_path / "out" / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in str(error.value.fix)
    assert os.listdir(tmp_path / "out") == []


def killed(work: Callable[[], Any]) -> None:
    """Do it in a process that is to kill itself."""
    if not (child := os.fork()):
        try:
            work()
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_at_any_moment_nothing_has_the_name_and_the_next_one_is_whole(
    config: Data, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "made"
    die: Callable[..., Any] = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    for module, name in (
        (arrow, "_columns"),
        (building, "file_card"),
        (building, "write_text"),
        (building.os, "rename"),
    ):
        monkeypatch.setattr(module, name, die)
        killed(lambda: prepare_rows(config, tokenizer, out))
        monkeypatch.undo()
        assert os.listdir(out.parent) == [".made.unfinished"]
    prepare_rows(config, tokenizer, out)
    assert os.listdir(out.parent) == ["made"]
    assert len(prepare(config.model_copy(update={"path": str(out)}), tokenizer).train) > 500


def test_workers_end_with_the_process_that_started_them(
    config: Data, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, say = os.pipe()
    real = arrow._columns

    def stalled(rows: Any) -> Any:
        os.write(say, b".")
        signal.pause()
        return real(rows)

    monkeypatch.setattr(arrow, "_columns", stalled)
    if not (child := os.fork()):
        try:
            prepare_rows(config, tokenizer, tmp_path / "made", workers=2)
        finally:
            os._exit(3)
    assert os.read(reading, 1) == b"."
    workers = [one for one in psutil.Process(child).children() if "spawn_main" in " ".join(one.cmdline())]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert workers
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert not (tmp_path / "made").exists()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``potstill data prepare`` with a model's tokenizer in ``model``; its exit code, output and errors."""
    from potstill import cli

    tokenizer.save_pretrained(tmp_path / "model")
    tiny.llama(vocab=len(tokenizer), layers=1).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potstill", "data", "prepare", *arguments, "--model", "model"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_the_command_prepares_rows_and_says_how_to_use_them(
    call: Callable[..., tuple[int, str, str]], rows_file: Writer, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"instruction": row["prompt"], "output": row["response"]} for row in good_rows(40)]
    rows_file(rows)
    code, out, err = call("--rows", "rows.jsonl", "--data-format", "dolly", "--out", "made", "data.max_heldout=3")
    assert (code, "error" in err) == (0, False)
    assert "use it: potstill train kd data=made data.format=dolly data.max_heldout=3" in out
    made = prepare(Data(path="made", format="dolly", max_heldout=3), tokenizer)
    assert (len(made.heldout), len(made.train) + len(made.validation)) == (3, 37)
    code, out, _ = call("--rows", "rows.jsonl", "--data-format", "dolly", "--out", "again", "--format", "json")
    assert (code, json.loads(out)["counts"]["rows"]) == (0, 40)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rows.jsonl"], "rows.jsonl has no 'text' but 'prompt' and 'response': these are rows"),
        (["cqa:train"], "cqa:train is a split of rows"),
        (["rows.jsonl", "data.max_heldout=3"], "data.max_heldout=3 is of rows"),
        (["rows.jsonl", "--data-format", "dolly"], "--data-format is of rows"),
        (["--rows", "rows.jsonl", "rows.jsonl"], "--rows prepares one file"),
        (["--rows", "text.txt"], "text.txt is text, a document on each line"),
        (["--rows", "rows.jsonl", "--valid-blocks", "3"], "--valid-blocks is of documents"),
        (["--rows", "rows.jsonl", "--block-size", "16"], "--block-size is of documents"),
        (["--rows", "rows.jsonl", "data.max_heldouts=3"], "max_heldout"),
    ],
)
def test_what_is_meant_is_asked_where_it_is_not_clear(
    call: Callable[..., tuple[int, str, str]], rows_file: Writer, arguments: list[str], said: str
) -> None:
    rows_file(good_rows(20))
    Path("text.txt").write_text("It rains.\n")
    code, _, err = call(*arguments, "--out", "made")
    assert code == 2
    assert said in err
    assert "fix:" in err or "did you mean" in err.lower()
    assert "Traceback" not in err
    assert not Path("made").exists()
