"""Asking a server: what is asked again, what stops, that nothing is asked twice. The server is real, and badly kept."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from potstill.cli_judge import app
from potstill.errors import ConfigError, DataError, PotstillError, Stopped
from potstill.evaluation.judge.asking import Asked, ask
from potstill.evaluation.judge.pairs import pair_of, write_pairs
from potstill.served.asking import GIVE_UP
from potstill.served.endpoint import Endpoint, endpoint_at

PAIRS = [pair_of(f"p{n}", f"question {n}", "ours", "theirs") for n in range(8)]
KEY = "sk-very-secret-0123456789"
Turn = tuple[int, Any, dict[str, str]]  # status, body, headers
MARKS = '{"first": 7, "second": 4}'


def said(text: Any = MARKS, finish: str = "stop") -> Turn:
    return 200, {"model": "judge-1", "choices": [{"message": {"content": text}, "finish_reason": finish}]}, {}


def failed(status: int, message: str = "no", **headers: str) -> Turn:
    return status, {"error": {"message": message}}, {name.replace("_", "-"): value for name, value in headers.items()}


class Server:
    """Answers by ``reply``, a function of how many times the same question came before and of the question."""

    def __init__(self) -> None:
        self.reply: Callable[[int, str], Turn] = lambda before, question: said()
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"].split("question ")[1][0]
                with lock:
                    before = outer.asked.count(question)
                    outer.asked.append(question)
                    outer.bodies.append(body)
                    outer.keys.add(self.headers["Authorization"])
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    turn = outer.reply(before, question)
                finally:
                    with lock:
                        outer.at_once -= 1
                self._send(*turn)

            def do_GET(self) -> None:
                self._send(
                    200, {"data": [{"id": "judge-1"}, {"id": "judge-2"}]} if self.path == "/v1/models" else {}, {}
                )

            def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def asked(server: Server, out: Path, **options: Any) -> Asked:
    endpoint = options.pop("endpoint", Endpoint(server.url, timeout=5))
    return ask(PAIRS, endpoint, options.pop("model", "judge-1"), out, **{"backoff": 0.001} | options)


def ids(out: Path) -> list[str]:
    return sorted(json.loads(line)["id"] for line in out.read_text().splitlines())


ALL = sorted(pair.id for pair in PAIRS)


def test_every_pair_is_asked_once_and_written_as_it_comes(server: Server, tmp_path: Path) -> None:
    server.reply = lambda before, question: time.sleep(0.02) or said(finish="length" if question == "3" else "stop")
    out, heard = tmp_path / "new" / "a.jsonl", list[str]()
    assert asked(server, out, concurrency=3, say=heard.append) == Asked(0, 8, 1, {})
    assert ids(out) == ALL
    assert sorted(server.asked) == list("01234567")
    assert 1 < server.most_at_once <= 3
    assert heard[-1] == "judge: 8 of 8 answered"
    assert server.keys == {None}
    sent = {"model": "judge-1", "temperature": 0, "max_tokens": 256}
    assert all(body == sent | {"messages": body["messages"]} for body in server.bodies)
    line = json.loads(out.read_text().splitlines()[0])
    assert line == {
        "id": "p0",
        "answer": MARKS,
        "prompt_sha256": PAIRS[0].prompt_sha256,
        "request": sent,
        "served_model": "judge-1",
        "finish_reason": "stop",
    }


def test_what_is_answered_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    asked(server, out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])  # as a crash leaves it
    server.asked.clear()
    assert asked(server, out) == Asked(3, 5, 0, {})
    assert len(server.asked) == 5
    assert ids(out) == ALL
    assert out.read_text().startswith("".join(lines[:3]))


def test_an_answer_by_hand_is_kept_even_without_a_last_line_break(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text('{"id": "p2", "first": 3, "second": 4}')
    assert asked(server, out).num_kept == 1
    assert "2" not in server.asked
    assert ids(out) == ALL


def test_answers_of_another_judge_or_to_other_pairs_are_not_mixed(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    asked(server, out)
    with pytest.raises(DataError, match="answers of two judges are not added up"):
        asked(server, out, model="judge-2")
    with pytest.raises(DataError, match="answers of two judges are not added up"):
        asked(server, out, settings={"temperature": 1})
    with pytest.raises(DataError, match=r"a\.jsonl:\d is an answer to other pairs"):
        ask([pair_of("p0", "question 0", "other", "theirs")], Endpoint(server.url), "judge-1", out)
    assert len(server.asked) == 8


def test_settings_are_sent_and_none_leaves_one_out(server: Server, tmp_path: Path) -> None:
    asked(server, tmp_path / "a.jsonl", settings={"max_tokens": None, "max_completion_tokens": 9})
    assert {"max_completion_tokens": 9, "temperature": 0}.items() <= server.bodies[0].items()
    assert "max_tokens" not in server.bodies[0]


TRANSIENT = {
    "429": failed(429),
    "500": failed(500),
    "503": failed(503, Retry_After="0"),
    "529": failed(529),
    "html": (200, b"<html>busy</html>", {}),
    "cut json": (200, b'{"choices": [', {}),
    "cut body": (200, b'{"choices', {"Content-Length": "500"}),
    "no choices": (200, {"choices": []}, {}),
    "no text": said(None),
    "text is a number": said(3),
    "a list": (200, [], {}),
}


@pytest.mark.parametrize("turn", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_what_may_pass_is_asked_again_and_never_taken_for_an_answer(server: Server, tmp_path: Path, turn: Turn) -> None:
    server.reply = lambda before, question: turn if before < 2 else said()
    heard: list[str] = []
    assert asked(server, tmp_path / "a.jsonl", say=heard.append).num_new == 8
    assert sum("again in 0 s" in line for line in heard) == 2 * 8
    assert len(server.asked) == 3 * 8
    assert all(json.loads(line)["answer"] == MARKS for line in (tmp_path / "a.jsonl").read_text().splitlines())


def test_a_slow_answer_and_a_dropped_connection_are_asked_again(server: Server, tmp_path: Path) -> None:
    def reply(before: int, question: str) -> Turn:
        if before == 0 and question == "1":
            time.sleep(0.6)
        if before == 0 and question == "2":
            raise ConnectionResetError
        return said()

    server.http.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.reply = reply
    assert asked(server, tmp_path / "a.jsonl", endpoint=Endpoint(server.url, timeout=0.3)).num_new == 8
    assert (server.asked.count("1"), server.asked.count("2"), len(server.asked)) == (2, 2, 10)


@pytest.mark.parametrize("when", ["seconds", "date"])
def test_the_servers_own_waiting_time_is_kept(server: Server, tmp_path: Path, when: str) -> None:
    times: list[float] = []

    def reply(before: int, question: str) -> Turn:
        times.append(time.time())
        wait = "0.4" if when == "seconds" else formatdate(time.time() + 2, usegmt=True)  # whole seconds
        return failed(429, Retry_After=wait) if len(times) == 1 else said()

    server.reply = reply
    asked(server, tmp_path / "a.jsonl")
    assert times[1] - times[0] >= (0.4 if when == "seconds" else 0.9)


def test_a_server_that_asks_to_wait_an_hour_is_left_alone(server: Server, tmp_path: Path) -> None:
    server.reply = lambda before, question: failed(429, Retry_After="3600") if len(server.asked) > 3 else said()
    with pytest.raises(PotstillError, match=r"(?s)takes no more questions for now.*it goes on"):
        asked(server, tmp_path / "a.jsonl", concurrency=1)
    assert len(server.asked) == 4
    assert len(ids(tmp_path / "a.jsonl")) == 3


@pytest.mark.parametrize(
    ("turn", "cause", "fix"),
    [
        (failed(401, f"wrong key {KEY}"), "does not accept the key", "see that the key is right"),
        (failed(403), "does not allow this", "what the key may be used for"),
        (failed(404, "no model judge-9"), "does not have the model 'judge-9'", "judge-1, judge-2"),
        (failed(400, "no model"), "does not have the model 'judge-9'", "judge-1, judge-2"),
        (failed(302, Location="http://127.0.0.1:1/"), "sends on to another address", "--url"),
        (failed(429, "insufficient_quota"), "takes no more questions", "again later"),
    ],
)
def test_what_is_wrong_for_every_pair_stops_at_once(
    server: Server, tmp_path: Path, turn: Turn, cause: str, fix: str
) -> None:
    server.reply = lambda before, question: turn
    with pytest.raises(PotstillError) as caught:
        asked(server, tmp_path / "a.jsonl", model="judge-9", endpoint=Endpoint(server.url, KEY))
    assert cause in caught.value.cause
    assert fix in (caught.value.fix or "")
    assert KEY not in str(caught.value)
    assert len(server.asked) == (3 if turn[0] == 400 else 1)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_key_that_expires_half_way_keeps_what_was_paid_for(server: Server, tmp_path: Path) -> None:
    server.reply = lambda before, question: said() if len(server.asked) <= 4 else failed(401)
    with pytest.raises(ConfigError, match="does not accept the key"):
        asked(server, tmp_path / "a.jsonl", concurrency=1)
    assert len(server.asked) == 5
    server.reply = lambda before, question: said()
    server.asked.clear()
    assert asked(server, tmp_path / "a.jsonl") == Asked(4, 4, 0, {})
    assert len(server.asked) == 4


def test_a_pair_that_is_refused_for_itself_is_left_out_and_named(server: Server, tmp_path: Path) -> None:
    """The first of all among them."""
    server.reply = lambda before, question: failed(400, "too long") if question in "05" else said()
    found = asked(server, tmp_path / "a.jsonl")
    assert found == Asked(0, 6, 0, {"p0": "HTTP 400: too long", "p5": "HTTP 400: too long"})
    assert len(server.asked) == 8


def test_a_judge_that_declines_has_answered_nothing(server: Server, tmp_path: Path) -> None:
    server.reply = lambda before, question: said(None, finish="content_filter")
    assert asked(server, tmp_path / "a.jsonl").num_new == 8
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["answer"] == ""


def test_a_server_that_died_is_given_up(server: Server, tmp_path: Path) -> None:
    server.reply = lambda before, question: said() if question == "0" else failed(500, "out of\x1b[2J memory")
    with pytest.raises(PotstillError, match=r"3 pairs in a row .* HTTP 500: out of \[2J memory") as caught:
        asked(server, tmp_path / "a.jsonl", attempts=2, concurrency=1)
    assert "1 answers are kept" in (caught.value.fix or "")
    assert len(server.asked) in (1 + 2 * GIVE_UP, 2 + 2 * GIVE_UP)  # one more may be under way


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"(?s)nothing answers at http://127\.0\.0\.1:9/v1 .*start the server"):
        ask(PAIRS, endpoint_at("http://127.0.0.1:9/v1"), "x", tmp_path / "a.jsonl", backoff=10)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_the_command_and_the_same_goes_on(
    server: Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    def reply(before: int, question: str) -> Turn:
        if question == "3" and before == 0:
            until = time.monotonic() + 10
            while ids(out) != ALL[:3] and time.monotonic() < until:
                time.sleep(0.01)  # the one before was answered, and may be about to be written down
            os.kill(os.getpid(), number)
            time.sleep(0.5)
        return said()

    server.reply = reply
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "a.jsonl"
    write_pairs(PAIRS, pairs)
    words = ["ask", pairs, "--url", server.url, "--model", "judge-1", "--out", out, "--concurrency", "1"]
    stopped = CliRunner().invoke(app, [*map(str, words)])
    assert isinstance(stopped.exception, Stopped)
    assert stopped.exception.exit_code == code
    assert ids(out) == ALL[:3]
    assert CliRunner().invoke(app, [*map(str, words)]).exit_code == 0
    assert ids(out) == ALL
    assert [server.asked.count(question) for question in "01234567"] == [1, 1, 1, 2, 1, 1, 1, 1]


def test_two_commands_do_not_write_one_file(server: Server, tmp_path: Path) -> None:
    out, problems = tmp_path / "a.jsonl", list[Exception]()

    def reply(before: int, question: str) -> Turn:
        if question == "0" and before == 0:
            try:
                asked(server, out)
            except ConfigError as error:
                problems.append(error)
        return said()

    server.reply = reply
    asked(server, out)
    assert "another command is writing" in str(problems[0])
    assert len(server.asked) == 8


def test_the_key_is_sent_and_stands_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    endpoint = endpoint_at(server.url, key_env="JUDGE_KEY")
    assert KEY not in repr(endpoint)
    asked(server, tmp_path / "a.jsonl", endpoint=endpoint)
    assert server.keys == {f"Bearer {KEY}"}
    assert all(KEY not in file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize("value", ["", "  ", "two words", "a\nb", "schlüssel"])
def test_what_is_no_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ConfigError, match="JUDGE_KEY") as caught:
        endpoint_at("http://localhost/v1", key_env="JUDGE_KEY")
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://host/v1",
        "file:///etc/passwd",
        "http:///v1",
        "http://host:port/v1",
        "http://me:secret@host/v1",
        "http://host/v1?key=secret",
        "http://169.254.169.254/v1",
        "http://[::1",
    ],
)
def test_what_is_no_servers_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        endpoint_at(url)


def test_an_address_may_be_given_to_its_end() -> None:
    for end in ("", "/", "/chat/completions"):
        assert endpoint_at(f"https://host/v1{end}").url == "https://host/v1"
