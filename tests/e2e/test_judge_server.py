"""A judge from a result folder to figures, asked of a real OpenAI-compatible server with a real, if foolish, model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from potstill.cli_judge import app
from potstill.errors import ConfigError, DataError
from tests import tiny

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
NEEDED = f"transformers' server needs {', '.join(MISSING)}: pip install 'transformers[serving]'"
ASKED = 5


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.llama(1), tmp_path_factory.mktemp("judge") / "model", chat=True)


@pytest.fixture(scope="module")
def server(judge: Path) -> Iterator[str]:
    """The address of ``transformers serve`` with the judge, up before it is handed over."""
    if MISSING:
        pytest.skip(NEEDED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = shutil.which("transformers", path=str(Path(sys.executable).parent)) or "transformers"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = judge.parent / "serve.log"
    with open(log, "wb") as told:
        process = subprocess.Popen(
            [script, "serve", str(judge), *options],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=told,
            stderr=told,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        try:
            opener.open(url, timeout=2).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
    pytest.fail(f"the server did not come up: {log.read_text()}")


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result folder of the command ``evaluate``, in the current folder."""
    from potstill import api

    monkeypatch.chdir(tmp_path)
    tiny.data_file(tmp_path, ASKED)
    model = tiny.save(tiny.llama(2), tmp_path / "student")
    (made,) = api.evaluate_suites([str(model)], ["instruction"], data="rows.jsonl", max_new_tokens=6, device="cpu")
    return made.folder


def call(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def done(*words: object) -> dict[str, object]:
    found = call(*words, "--format", "json")
    assert found.exit_code == 0, (found.output, found.exception)
    return json.loads(found.stdout.splitlines()[-1] if "score" not in words else found.stdout)


def test_a_real_server_is_asked_once_about_each_pair_and_its_answers_are_scored(
    server: str, judge: Path, result: Path
) -> None:
    assert done("export", result, "--out", "pairs.jsonl")["num_pairs"] == ASKED
    asking = (
        "ask",
        "pairs.jsonl",
        "--url",
        server,
        "--model",
        judge,
        "--out",
        "answers.jsonl",
        "--set",
        "max_tokens=8",
    )
    first = done(*asking, "--concurrency", 2)
    assert (first["num_kept"], first["num_new"], first["num_cut"], first["unanswered"]) == (0, ASKED, ASKED, {})
    lines = Path("answers.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert all(isinstance(one["answer"], str) and one["answer"] for one in told)
    assert str(judge) in told[0]["served_model"]

    Path("answers.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:9])
    again = done(*asking)
    assert (again["num_kept"], again["num_new"]) == (2, ASKED - 2)
    both = {one["id"]: one["answer"] for one in map(json.loads, Path("answers.jsonl").read_text().splitlines())}
    assert both == {one["id"]: one["answer"] for one in told}  # temperature 0

    found = done("score", "pairs.jsonl", "answers.jsonl")
    assert found["num_parse_failures"] == ASKED  # eight tokens of a random model are no JSON
    assert found["sum_ratio"] == {"value": None, "low": None, "high": None}


def test_the_servers_refusals_are_told_with_a_fix(server: str, judge: Path, result: Path) -> None:
    done("export", result, "--out", "pairs.jsonl")
    to = ("ask", "pairs.jsonl", "--out", "answers.jsonl")
    for words, cause in (
        (("--url", server, "--model", "other"), "HTTP 400: Server is pinned to"),
        (("--url", f"{server}x", "--model", judge), "HTTP 404"),
        (("--url", server, "--model", judge, "--set", "no_such_setting=1"), "no_such_setting"),
        (("--url", "http://127.0.0.1:9/v1", "--model", judge), "nothing answers at"),
    ):
        found = call(*to, *words)
        assert isinstance(found.exception, ConfigError)
        assert cause in found.exception.cause
        assert found.exception.fix
    assert not Path("answers.jsonl").exists()


def test_by_hand_without_any_server(result: Path) -> None:
    done("export", result, "--out", "pairs.jsonl", "--prediction", "seed_1", "--seed", 5)
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    marks = [(6, 3) if pair["ours_is_first"] else (3, 6) for pair in pairs]
    lines = [{"id": pair["id"], "first": one, "second": two} for pair, (one, two) in zip(pairs, marks, strict=True)]
    Path("hand.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    found = call("score", "pairs.jsonl", "hand.jsonl")
    assert isinstance(found.exception, DataError)
    assert f"1 of {ASKED} pairs have no answer: pairs.jsonl:{ASKED}" in found.exception.cause
    assert done("score", "pairs.jsonl", "hand.jsonl", "--allow-missing")["num_missing"] == 1
    Path("hand.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert done("score", "pairs.jsonl", "hand.jsonl")["sum_ratio"] == {"value": 200, "low": 200, "high": 200}
    printed = call("score", "pairs.jsonl", "hand.jsonl").stdout
    assert "sum_ratio                200 [200, 200]" in printed
    assert f"wins                     {ASKED}" in printed


@pytest.mark.parametrize("words", ["x", "=1", "model=other", "messages=[]"])
def test_settings_that_are_none_are_refused(words: str, result: Path) -> None:
    done("export", result, "--out", "pairs.jsonl")
    told = ("--url", "http://127.0.0.1:9/v1", "--model", "m", "--out", "a.jsonl")
    found = call("ask", "pairs.jsonl", *told, "--set", words)
    assert isinstance(found.exception, ConfigError)
    assert "--set" in found.exception.cause
