"""A teacher behind a server: what it is sent, what it cannot be asked, and that an answer is paid for once."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from potstill.annotation.annotator import draw_seed
from potstill.errors import ConfigError, PotstillError, Stopped
from tests.unit.annotation.asking_tiny import annotate, lines, told, write


class Server:
    """Answers each question by ``reply``, a function of its last message: a status, a text, why it ended."""

    def __init__(self) -> None:
        self.reply: Callable[[str], tuple[int, str, str]] = lambda asked: (
            200,
            "It is so. So the answer is yes.",
            "stop",
        )
        self.bodies: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                status, text, finish = outer.reply(body["messages"][-1]["content"])
                choice = {"message": {"content": text}, "finish_reason": finish}
                self.answer(status, {"model": "m", "choices": [choice]} if status == 200 else {"error": text})

            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": "big"}]})

            def answer(self, status: int, content: Any) -> None:
                told = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

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


def ask(server: Server, *words: str, **other: Any) -> dict[str, Any]:
    return annotate(*words, "--url", server.url, model="big", **other)


def test_each_row_is_asked_once_with_its_shots_as_turns(server: Server, here: Path) -> None:
    write("shots.jsonl", [{"prompt": "Is it wet?", "label": "yes", "rationale": "It rains."}])
    card = ask(server, "--want", "rationale_and_label", "--shots", "shots.jsonl", "--filters", "none")
    assert len(server.bodies) == 4
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"], "seed" in body) == ("big", 0.0, 6, False)
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == "It rains. So the answer is yes."
    assert (lines()[0]["rationale"], lines()[0]["llm_label"], lines()[0]["finished"]) == ("It is so.", "yes", True)
    assert card["counts"]["agreement"]["same"] == 2
    ask(server, "--want", "rationale_and_label", "--shots", "shots.jsonl", "--filters", "none")
    assert len(server.bodies) == 4
    assert server.url not in Path("out.card.json").read_text()


def test_a_draw_is_sent_its_own_seed(server: Server, here: Path) -> None:
    ask(server, "--want", "response", "--temperature", "0.7", "--samples", "2", "--set", "max_tokens=null")
    assert {body["seed"] for body in server.bodies} == {
        draw_seed(0, name, sample) % 2**31 for name in "abcd" for sample in (0, 1)
    }
    assert "max_tokens" not in server.bodies[0]


def test_the_likeliest_label_is_not_asked_of_it(server: Server, here: Path) -> None:
    with pytest.raises(ConfigError, match="does not say how likely"):
        ask(server, "--want", "label", "--labels", "yes,no")
    assert server.bodies == []
    server.reply = lambda asked: (200, "No.", "stop")
    ask(server, "--want", "label", "--labels", "yes,no", "--choose", "parse", out="parse.jsonl")
    assert {line["llm_label"] for line in lines("parse.jsonl")} == {"no"}


@pytest.mark.parametrize(
    "words", [("--num-beams", "3"), ("--framing", "none"), ("--set", "model=x"), ("--set", "temperature")]
)
def test_what_servers_do_not_know_is_refused(server: Server, here: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        ask(server, "--want", "response", *words)
    assert server.bodies == []


def test_a_question_without_an_answer_is_named_and_asked_again(server: Server, here: Path) -> None:
    server.reply = lambda asked: (400, "no", "") if "goat" in asked else (200, "said", "stop")
    with pytest.raises(PotstillError, match=r"1 questions have no answer, among them b \(sample 0\): HTTP 400"):
        ask(server, "--want", "response", "--filters", "none")
    assert [line["id"] for line in lines()] == ["a", "c", "d"]
    assert json.loads(Path("out.card.json").read_text())["not_answered"] == 1
    server.reply = lambda asked: (200, "late", "length")
    server.bodies.clear()
    ask(server, "--want", "response", "--filters", "none")
    assert len(server.bodies) == 1
    assert [(line["id"], line["response"], line["finished"]) for line in lines()][1] == ("b", "late", False)


def test_what_its_filter_kept_back_is_counted(server: Server, here: Path) -> None:
    server.reply = lambda asked: (200, "", "content_filter" if "goat" in asked else "stop")
    card = ask(server, "--want", "response")
    assert card["counts"]["unread"] == {"nothing was written": 3, "the server's content filter": 1}
    assert [line["text"] for line in told()] == [""] * 4


def test_a_wrong_model_stops_at_once_and_those_there_are_are_named(server: Server, here: Path) -> None:
    server.reply = lambda asked: (404, "no such model", "")
    with pytest.raises(ConfigError, match=r"(?s)does not have the model 'small'.*--teacher may be big"):
        annotate("--want", "response", "--url", server.url, model="small")
    assert len(server.bodies) == 1
    server.reply = lambda asked: (200, "said", "stop")
    ask(server, "--want", "response")  # nothing of the wrong one is in the way
    assert len(lines()) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_does_not_wait_for_the_answers_and_keeps_those_there_are(
    server: Server, here: Path, number: signal.Signals, code: int
) -> None:
    may_answer = threading.Event()

    def reply(asked: str) -> tuple[int, str, str]:
        if "dog an owl" in asked:
            while len(lines("out.raw.jsonl")) < 3:  # an answer that nobody has taken yet is asked for again
                time.sleep(0.01)
            os.kill(os.getpid(), number)
            may_answer.wait(30)
        return 200, "said", "stop"

    server.reply = reply
    with pytest.raises(Stopped, match="stopped with 3 of 4 questions answered") as caught:
        ask(server, "--want", "response", "--filters", "none", "--concurrency", "1")
    may_answer.set()
    assert caught.value.exit_code == code
    server.bodies.clear()
    server.reply = lambda asked: (200, "late", "stop")
    ask(server, "--want", "response", "--filters", "none")
    assert [line["response"] for line in lines()] == ["said", "said", "said", "late"]
    assert len(server.bodies) == 1
