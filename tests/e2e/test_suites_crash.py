"""kill -9 at any moment and a disk that is full: asked again, suites and corpora are what they would have been.

Every command is a child forked from one process that has imported everything and computed nothing.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from potstill.run import LOCK
from tests import tiny
from tests.e2e.conftest import ROOT

NUM_ITEMS = 36  # three groups of those that are answered between two writes
EVALUATE = ["evaluate", "teacher", "--suite", "instruction", "--suite", "classification", "--data", "own.jsonl"]
EVALUATE += ["--max-new-tokens", "3", "--device", "cpu"]
INSTRUCTION = [word for at, word in enumerate(EVALUATE) if "classification" not in EVALUATE[at : at + 2]]
PREPARE = ["data", "prepare", "text.txt", "--model", "teacher", "--out", "corpus", "--block-size", "16"]
PREPARE += ["--valid-blocks", "5"]
MOMENTS = 5

FORK_SERVER = textwrap.dedent("""
    import json, os, resource, signal, sys, threading, time
    import potstill.cli, potstill.api, potstill.data.corpus, potstill.reporting.suites
    import transformers.models.llama.modeling_llama, rouge_score.rouge_scorer

    def die(): os.kill(os.getpid(), signal.SIGKILL)

    def after(seconds):
        threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()

    def before_rename(name):
        # Everything is written, and has not got its name yet.
        def dying(rename):
            def called(source, target, *more):
                if os.path.basename(target) == name: die()
                return rename(source, target, *more)
            return called
        os.replace, os.rename = dying(os.replace), dying(os.rename)

    def full(bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))

    others = []

    def together(count):
        # As many processes at once, and what all of them print.
        for _ in range(count - 1):
            other = os.fork()
            if other == 0:
                return others.clear()
            others.append(other)

    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 1), os.dup2(writer, 2), os.close(reader), os.close(writer)
            os.chdir(order["folder"])
            sys.argv = ["potstill", *order["arguments"]]
            code = 70
            try:
                if order["fault"]: globals()[order["fault"][0]](order["fault"][1])
                potstill.cli.main()
            except SystemExit as left:
                code = left.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush(), sys.stderr.flush()
            for other in others: code = code or os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
            os._exit(code or 0)
        os.close(writer)
        with open(reader, errors="replace") as said: text = said.read()
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "text": text, "seconds": time.monotonic() - began}), flush=True)
""")
Fault = tuple[str, float | int | str]


class Commands:
    """Runs commands one after another, each in a child of its own."""

    def __init__(self) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, folder: Path, arguments: list[str], fault: Fault | None = None) -> dict[str, Any]:
        """``code`` (negative: the signal), ``text`` (all that was printed), ``seconds``."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), "arguments": arguments, "fault": fault}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    server = Commands()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows to be asked about and documents."""
    folder = tmp_path_factory.mktemp("sources")
    tiny.save(tiny.llama(1), folder / "teacher")
    options = ["The goat", "a fox", "an owl and a hen"]
    rows = [row | {"options": options, "response": options[at % 3]} for at, row in enumerate(tiny.rows(NUM_ITEMS))]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{row['prompt']} {row['response']}\n" for row in tiny.rows(40)]
    (folder / "text.txt").write_text("".join(lines) * 50)
    return folder


def workplace(sources: Path, folder: Path) -> Path:
    folder.mkdir()
    for item in sources.iterdir():
        (folder / item.name).symlink_to(item)
    return folder


def made(folder: Path) -> dict[str, str]:
    """Every file that a command left, by its name, but for seconds and for the marks that locks leave."""
    files = {path for name in ("evaluations", "corpus") for path in (folder / name).rglob("*") if path.is_file()}
    return {str(file.relative_to(folder)): without_seconds(file) for file in files if file.name != LOCK}


def without_seconds(file: Path) -> str:
    return re.sub(r'("seconds": )[\d.e-]+', r"\g<1>0", file.read_text("latin-1"))


def visible(found: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in found.items() if not Path(name).name.startswith(".")}


@dataclass(frozen=True)
class Task:
    """A command, where it was run without a mishap, what it made there, and how long that took."""

    arguments: list[str]
    folder: Path
    whole: dict[str, str]
    seconds: float


def task_of(arguments: list[str], commands: Commands, sources: Path, folder: Path) -> Task:
    workplace(sources, folder)
    done = commands.run(folder, arguments)
    assert done["code"] == 0, done["text"]
    return Task(arguments, folder, made(folder), done["seconds"])


@pytest.fixture(scope="module")
def suites(commands: Commands, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return task_of(EVALUATE, commands, sources, tmp_path_factory.mktemp("suites") / "w")


@pytest.fixture(scope="module")
def corpus(commands: Commands, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return task_of(PREPARE, commands, sources, tmp_path_factory.mktemp("corpus") / "w")


@pytest.fixture(scope="module", params=["suites", "corpus"])
def task(request: pytest.FixtureRequest) -> Task:
    found: Task = request.getfixturevalue(request.param)
    return found


def test_nothing_but_seconds_differs_between_two_runs(
    commands: Commands, sources: Path, task: Task, tmp_path: Path
) -> None:
    """Without this the other tests would prove nothing."""
    arguments, whole = task.arguments, task.whole
    folder = workplace(sources, tmp_path / "again")
    assert commands.run(folder, arguments)["code"] == 0
    assert made(folder) == whole
    assert len(whole) >= 5
    assert min(map(len, whole.values())) > 10


def test_killed_at_any_moment_and_started_again_it_is_the_same(
    commands: Commands, sources: Path, task: Task, tmp_path: Path
) -> None:
    """Killed, started, killed and started again."""
    draw, killed, seconds, number = random.Random(1), 0, task.seconds, 0
    while killed < MOMENTS:
        number += 1
        assert number < 5 * MOMENTS, "too often done before it was to be killed"
        folder = workplace(sources, tmp_path / str(number))
        for _ in range(2):
            if killed_after(draw.uniform(0.02, 0.95) * seconds, commands, folder, task):
                killed += 1
            else:
                seconds *= 0.9  # the machine has become faster
                break
        assert visible(made(folder)) == task.whole or commands.run(folder, task.arguments)["code"] == 0
        assert visible(made(folder)) == task.whole


def killed_after(moment: float, commands: Commands, folder: Path, task: Task) -> bool:
    """Whether the command was killed, and before it had made everything; a corpus is whole or not there."""
    stopped = commands.run(folder, task.arguments, ("after", moment))
    assert stopped["code"] in (0, -signal.SIGKILL), stopped["text"]
    there = visible(made(folder))
    assert task.arguments is not PREPARE or there in ({}, task.whole)
    return stopped["code"] != 0 and there != task.whole


NAMES = {"evaluate": ["rows.jsonl", "scores.json"], "data": ["corpus"]}


def test_killed_with_a_file_written_and_not_yet_named_it_is_the_same(
    commands: Commands, sources: Path, task: Task, tmp_path: Path
) -> None:
    arguments, whole = task.arguments, task.whole
    for name in NAMES[arguments[0]]:
        folder = workplace(sources, tmp_path / name)
        assert commands.run(folder, arguments, ("before_rename", name))["code"] == -signal.SIGKILL
        assert not any(Path(there).name == name or name == "corpus" for there in visible(made(folder)))
        assert commands.run(folder, arguments)["code"] == 0
        assert made(folder) == whole


def test_a_full_disk_is_said_in_a_line_and_room_made_it_is_the_same(
    commands: Commands, sources: Path, task: Task, tmp_path: Path
) -> None:
    arguments, whole = task.arguments, task.whole
    largest = max(map(len, whole.values()))
    for number, size in enumerate([0, largest // 2, largest - 50]):
        folder = workplace(sources, tmp_path / str(number))
        refused = commands.run(folder, arguments, ("full", size))
        assert refused["code"] in (1, 2), refused["text"]
        assert "Traceback" not in refused["text"]
        assert "error: " in refused["text"]
        assert "fix: " in refused["text"]
        assert re.search(r"disk|space", refused["text"])
        if arguments is PREPARE:
            assert not (folder / "corpus").exists()
        again = commands.run(folder, arguments)
        assert again["code"] == 0, again["text"]
        assert visible(made(folder)) == whole, size


def test_a_full_disk_leaves_nothing_half_written(commands: Commands, sources: Path, tmp_path: Path) -> None:
    folder = workplace(sources, tmp_path / "w")
    assert commands.run(folder, EVALUATE, ("full", 100))["code"] == 1
    assert made(folder) == visible(made(folder))


DAMAGES: dict[str, tuple[str, Callable[[str], str]]] = {
    "a line of rows is not JSON": ("rows.jsonl", lambda text: text.replace('{"id"', '{"i', 1)),
    "rows are not UTF-8": ("rows.jsonl", lambda text: text.replace("goat", "g\xe5at", 1)),
    "a line of rows is another's": ("rows.jsonl", lambda text: '{"x": 1}\n' + text),
    "a row has lost its scores": ("rows.jsonl", lambda text: text.replace('"scores"', '"scared"', 1)),
    "scores are cut": ("scores.json", lambda text: text[: len(text) // 2]),
    "scores are another's": ("scores.json", lambda text: '{"x": 1}'),
    "settings are cut": ("settings.json", lambda text: text[: len(text) // 2]),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("done", [True, False])
def test_a_damaged_file_of_results_is_made_again(
    commands: Commands, sources: Path, suites: Task, tmp_path: Path, kind: str, done: bool
) -> None:
    """Only what is missing is asked, and no model is loaded for that where nothing is."""
    name, damage = DAMAGES[kind]
    folder = workplace(sources, tmp_path / "w")
    shutil.copytree(suites.folder / "evaluations", folder / "evaluations")
    (file,) = (folder / "evaluations").glob(f"instruction-*/{name}")
    file.write_text(damage(file.read_text()), "latin-1")
    if not done:
        file.with_name("scores.json").unlink(missing_ok=True)
    again = commands.run(folder, INSTRUCTION)
    assert again["code"] == 0, again["text"]
    assert made(folder) == suites.whole
    lost = name == "rows.jsonl"
    assert ("1 damaged line left out" in again["text"]) is lost
    assert ("answered" in again["text"]) is (lost and "another's" not in kind)


def test_two_processes_at_once_ask_each_item_once(
    commands: Commands, sources: Path, suites: Task, tmp_path: Path
) -> None:
    folder = workplace(sources, tmp_path / "w")
    both = commands.run(folder, EVALUATE, ("together", 2))
    assert both["code"] == 0, both["text"]
    assert made(folder) == suites.whole
    for suite in ("instruction", "classification"):
        assert both["text"].count(f"{suite}: teacher done") == 2
        assert both["text"].count(f"{suite}: 16 of {NUM_ITEMS} answered") == 1
