"""``potstill annotate`` on tiny models: what it writes, goes on with, refuses, and that a draw is its row's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from potstill import cli
from potstill.annotation import local
from potstill.annotation.annotator import Asked, Written
from potstill.data.examples import prompt_sha256
from potstill.errors import ConfigError, DataError, PotstillError, Stopped
from potstill.evaluation.metrics.significance import wilson_interval
from potstill.evaluation.suites.subject import open_subject
from tests.unit.annotation.asking_tiny import ROWS, SHORT, annotate, lines, told, write

LABEL = ("--want", "label", "--labels", "yes,no")


def test_a_line_has_everything_to_train_on(here: Path) -> None:
    card = annotate("--want", "rationale", "--given-label", "--filters", "none")
    first = lines()[0]
    assert first == {
        "id": "a",
        "prompt": "Is the sky blue?",
        "prompt_sha256": prompt_sha256("Is the sky blue?"),
        "sample": 0,
        "response": "yes",
        "rationale": told()[0]["text"],
        "origin": "teacher",
        "mode": "rationalisation",
        "finished": False,
    }
    assert [line["id"] for line in lines()] == ["a", "b", "c", "d"]
    assert (card["settings"]["mode"], card["counts"]["kept"], card["rows"]["asked"]) == ("rationalisation", 4, 4)
    assert card == json.loads(Path("out.card.json").read_text())
    assert card["settings"]["teacher"]["fingerprint"] == open_subject("plain").fingerprint


def test_what_it_writes_are_rows_of_a_recipe(here: Path) -> None:
    annotate(*LABEL)
    done = CliRunner().invoke(cli.app, ["data", "inspect", "out.jsonl", "--model", "plain"])
    assert done.exit_code == 0
    assert "Did the goat eat the dog?" in done.stdout


def test_a_chosen_label_is_the_likeliest_and_nothing_is_written(here: Path) -> None:
    card = annotate(*LABEL)
    subject = open_subject("plain")
    for line in lines():
        asked = f"{line['prompt']}\n\nAnswer with one of: yes, no.\nAnswer:"
        (yes, _), (no, _) = subject.nats([asked, asked], ["yes", "no"])
        assert line["llm_label"] == ("yes" if yes < no else "no")
    assert {line["text"] for line in told()} == {""}
    assert lines()[3]["response"] == "no"  # spelt as the option is
    same = sum(line["llm_label"] == line["response"] for line in lines())
    low, high = wilson_interval(same, 4)
    assert card["counts"]["agreement"] == {"share": same / 4, "low": low, "high": high, "same": same, "of": 4}


def test_a_label_behind_a_rationale_is_scored_with_it(here: Path) -> None:
    annotate("--want", "rationale_and_label", "--labels", "yes,no", "--filters", "none", model="chat")
    subject = open_subject("chat")
    for raw, line in zip(told(), lines(), strict=True):
        assert line["rationale"] == raw["text"]
        turn = (
            f"{line['prompt']}\n\nThink it through in one or two sentences, then end with "
            '"So the answer is" and the answer, one of: yes, no.\nReason:'
        )
        said = [f"{raw['text']} So the answer is {option}" for option in ("yes", "no")]
        nats = [amount for amount, _ in subject.nats([turn, turn], said)]
        assert raw["nats"] == pytest.approx([amount - min(nats) for amount in nats], abs=1e-3)
        assert line["llm_label"] == ("yes", "no")[nats.index(min(nats))]


def test_a_label_that_cannot_be_read_is_counted_and_is_no_blank(here: Path) -> None:
    card = annotate("--want", "rationale_and_label")
    assert lines() == []
    assert card["counts"]["unread"] == {"it does not say 'So the answer is'": 4}
    assert (card["counts"]["agreement"]["same"], card["counts"]["agreement"]["of"]) == (0, 4)


@pytest.mark.parametrize("search", [(), ("--repetition-penalty", "1.1")], ids=["sampler", "search"])
def test_a_draw_depends_on_its_row_its_number_and_the_seed(here: Path, search: tuple[str, ...]) -> None:
    drawn = ("--want", "response", "--temperature", "1", "--filters", "none", *search)
    annotate(*drawn, "--samples", "3")
    together = {(line["id"], line["sample"]): line["text"] for line in told()}
    assert len(set(together.values())) > 6
    write("other.jsonl", [ROWS[3], ROWS[1]])
    annotate(*drawn, "--samples", "2", "--batch-size", "1", rows="other.jsonl", out="other_out.jsonl")
    for line in told("other_out.raw.jsonl"):
        assert line["text"] == together[line["id"], line["sample"]]
    annotate(*drawn, "--seed", "1", out="seed.jsonl")
    assert [line["text"] for line in told("seed.raw.jsonl")] != [together[name, 0] for name in "abcd"]


def test_of_several_samples_the_first_that_is_kept_has_the_rows_id(here: Path) -> None:
    annotate("--want", "response", "--temperature", "1", "--samples", "2", "--filters", "none")
    assert [line["id"] for line in lines()] == ["a", "a#1", "b", "b#1", "c", "c#1", "d", "d#1"]
    assert lines()[1]["gold"] == "yes"


def test_it_goes_on_where_it_was_and_asks_nothing_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("--want", "response", "--temperature", "1", "--samples", "2", "--filters", "none")
    annotate(*wanted, out="whole.jsonl")
    annotate(*wanted, "--limit", "2")
    raw = Path("out.raw.jsonl").read_bytes()
    Path("out.raw.jsonl").write_bytes(raw[:-30])  # a crash cut the last line
    asked: list[str] = []
    write_as_it_is = local.LocalAnnotator.write
    monkeypatch.setattr(
        local.LocalAnnotator,
        "write",
        lambda self, some: (asked.extend(o.id for o in some), write_as_it_is(self, some))[1],
    )
    annotate(*wanted)
    assert asked == ["b", "c", "c", "d", "d"]
    assert told() == told("whole.raw.jsonl")
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_other_filters_ask_no_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("--want", "rationale")
    before = annotate(*wanted, "--filters", "none")
    monkeypatch.setattr("potstill.annotation.teachers.open_subject", lambda *_, **__: pytest.fail("it was loaded"))
    after = annotate(*wanted, "--filters", "unfinished")
    assert (before["counts"]["kept"], after["counts"]["kept"]) == (4, 0)
    assert after["counts"]["filters"] == [{"name": "unfinished", "dropped": 4, "changed": 0}]
    assert after["seconds"] == before["seconds"] > 0


def test_what_people_have_written_is_kept_and_the_rest_is_filled(here: Path) -> None:
    card = annotate("--want", "rationale", "--given-label", "--only-missing", "--filters", "none")
    assert (card["rows"]["asked"], card["rows"]["human"]) == (3, 1)
    assert [line["id"] for line in told()] == ["b", "c", "d"]
    assert [(line["id"], line["origin"]) for line in lines()][:2] == [("a", "human"), ("b", "teacher")]
    assert (lines()[0]["rationale"], lines()[0]["mode"]) == ("Look up.", "human")


def test_a_row_that_is_a_shot_is_not_asked_about(here: Path) -> None:
    write("shots.jsonl", [{"prompt": "Is a fox quick?", "label": "yes"}, {"id": "a", "prompt": "x", "label": "no"}])
    card = annotate(*LABEL, "--shots", "shots.jsonl")
    assert card["rows"]["left_out_as_shots"] == ["a", "c"]
    assert [line["id"] for line in lines()] == ["b", "d"]


def test_rows_without_a_response_can_be_labelled_but_not_explained(here: Path) -> None:
    write("bare.jsonl", [{"id": "x", "prompt": "Is a hen an owl?"}])
    card = annotate(*LABEL, rows="bare.jsonl")
    (line,) = lines()
    assert line["response"] == line["llm_label"]
    assert card["counts"]["agreement"] is None
    with pytest.raises(DataError, match="x: it has no label to be explained"):
        annotate("--want", "rationale", "--given-label", rows="bare.jsonl", out="b.jsonl")


def test_a_question_too_long_for_the_model_is_counted_and_the_others_are_asked(here: Path) -> None:
    write("long.jsonl", [ROWS[0], {"id": "long", "prompt": "goat " * 300, "response": "no"}])
    card = annotate("--want", "rationale", "--filters", "none", rows="long.jsonl")
    ((why, count),) = card["counts"]["unread"].items()
    assert (why.startswith("too long: the model has 256 positions"), count) == (True, 1)
    annotate(*LABEL, rows="long.jsonl", out="l.jsonl")
    assert [line["id"] for line in lines("l.jsonl")] == ["a"]


def test_fields_are_named_as_in_a_recipe(here: Path) -> None:
    write("q.jsonl", [{"question": row["prompt"], "why": "so", "response": row["response"]} for row in ROWS])
    words = ("--want", "rationale", "--only-missing", "data.fields.prompt=question", "data.fields.rationale=why")
    card = annotate(*words, rows="q.jsonl")
    assert (card["rows"]["human"], lines()[0]["id"]) == (4, "q.jsonl:1")


def test_a_label_of_no_options_is_in_the_teachers_words_and_of_some_may_be_parsed(here: Path) -> None:
    annotate("--want", "label")
    assert [line["text"] != "" for line in told()] == [True] * 4
    write("some.jsonl", [ROWS[0] | {"options": ["yes", "no"]}, ROWS[1]])
    annotate("--want", "label", "--choose", "parse", rows="some.jsonl", out="some_out.jsonl")
    assert len(told("some_out.raw.jsonl")) == 2


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (("--want", "rationale", "data.fields.rationale=why"), ["'why'", "data.fields.rationale=NAME"]),
        (("--want", "response"), ["'response'", "data.fields.response=NAME"]),
        (("--want", "rationale_and_label"), ["'rationale' and a field 'response'", "data.fields.response=NAME"]),
    ],
)
def test_it_is_said_that_nothing_wanted_is_there(
    here: Path, capsys: pytest.CaptureFixture[str], wanted: tuple[str, ...], named: list[str]
) -> None:
    write("bare.jsonl", [{"prompt": row["prompt"]} for row in ROWS])
    command = ["annotate", "bare.jsonl", *wanted, "--teacher", "plain", "--only-missing", "--out", "o.jsonl", *SHORT]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0
    first = done.stderr.splitlines()[0]
    assert first.startswith("annotate: --only-missing: no row has a field ")
    assert all(name in first for name in ["all 4 are asked", *named])
    annotate("--want", "response", "--only-missing", out="there.jsonl")  # where all rows have one nothing is said
    assert "no row" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_says_how_far_it_is_and_what_was_answered_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    wanted = ("--want", "response", "--temperature", "1", "--filters", "none", "--batch-size", "1", "--samples", "2")
    annotate(*wanted, out="whole.jsonl")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    write_as_it_is = local.LocalAnnotator.write
    batches: list[int] = []

    def write(self: local.LocalAnnotator, some: Sequence[Asked]) -> Iterator[tuple[Asked, Written | str]]:
        batches.append(len(some))
        if len(batches) == 3:
            os.kill(os.getpid(), number)
        return write_as_it_is(self, some)

    monkeypatch.setattr(local.LocalAnnotator, "write", write)
    with pytest.raises(Stopped, match=r"stopped with 4 of 8 questions answered, which are kept") as caught:
        annotate(*wanted)
    assert (caught.value.exit_code, caught.value.fix) == (code, "the same command goes on")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert len(told()) == 4
    assert not Path("out.jsonl").exists()
    annotate(*wanted)
    assert batches == [2, 2, 2, 2, 2]
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_before_the_teacher_is_opened_is_told_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr("potstill.annotation.rows.load", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="stopped with nothing lost") as caught:
        annotate(*LABEL, rows="svamp:train")
    assert caught.value.exit_code == code


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", "1"), "begun otherwise: seed was 0, and is 1"),
        (("--temperature", "0.5"), "teacher was .*temperature"),
        (("--mark", "So:"), "mark was"),
        (("--labels", "no,yes"), "labels was"),
    ],
)
def test_going_on_with_other_settings_is_refused(here: Path, words: tuple[str, ...], message: str) -> None:
    annotate(*LABEL)
    before = Path("out.jsonl").read_bytes(), Path("out.card.json").read_bytes()
    with pytest.raises(ConfigError, match=message):
        annotate(*LABEL, *words)
    assert (Path("out.jsonl").read_bytes(), Path("out.card.json").read_bytes()) == before


def test_going_on_with_other_rows_or_another_model_is_refused(here: Path) -> None:
    annotate(*LABEL)
    with pytest.raises(ConfigError, match="teacher was"):
        annotate(*LABEL, model="chat")
    write("rows.jsonl", ROWS[:3])
    with pytest.raises(ConfigError, match="rows_sha256 was"):
        annotate(*LABEL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--want", "response", "--samples", "2"), "at temperature 0 all of them are the same"),
        (("--want", "label", "--labels", "yes,nein"), "none of yes, nein"),
        (("--want", "response", "--min-new-tokens", "9"), "--min-new-tokens is 9"),
        (("--want", "response", "seed=3"), "does not say how rows are read"),
        (("--want", "response", "--set", "a=1"), "no --url"),
        (("--want", "response", "--framing", "chat"), "chat template"),
        (("--want", "response", "--data-format", "chat"), "messages are not annotated"),
        (("--want", "response", "--review", "r.txt"), "neither .csv nor .jsonl"),
        (("--want", "label", "--choose", "parse"), "(?s)no row has options.*--labels yes,no.*leave --choose out"),
        (("--want", "response", "--choose", "parse"), "--choose parse is for labels"),
        (("--want", "response", "--filters", "none,repetition"), "(?s)none stands alone.*--filters repetition"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(
    here: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(PotstillError, match=message):
        annotate(*words)
    assert not Path("out.jsonl").exists()


def test_a_teacher_that_is_not_there_leaves_nothing_behind(here: Path) -> None:
    with pytest.raises(PotstillError):
        annotate("--want", "response", model="no-such-model")
    assert {file.name for file in here.iterdir()} <= {"plain", "chat", "rows.jsonl", ".out.jsonl.lock"}
    annotate("--want", "response")


def test_a_file_of_somebody_elses_is_not_overwritten(here: Path) -> None:
    Path("out.jsonl").write_text("mine\n")
    with pytest.raises(DataError, match="no card beside it"):
        annotate(*LABEL)
    assert Path("out.jsonl").read_text() == "mine\n"


def test_a_damaged_line_is_named(here: Path) -> None:
    annotate(*LABEL)
    raw = lines("out.raw.jsonl")
    write("out.raw.jsonl", [raw[0], raw[1] | {"sample": "1"}, *raw[2:]])
    with pytest.raises(DataError, match=r"out.raw.jsonl:2: sample"):
        annotate(*LABEL)


def test_a_line_about_another_prompt_is_named(here: Path) -> None:
    annotate(*LABEL)
    raw = lines("out.raw.jsonl")
    write("out.raw.jsonl", [raw[0], raw[1] | {"prompt_sha256": raw[0]["prompt_sha256"]}, *raw[2:]])
    with pytest.raises(DataError, match=r"out.raw.jsonl:2: 'b' was asked about another prompt"):
        annotate(*LABEL)


def test_a_second_command_is_refused(here: Path) -> None:
    with FileLock(".out.jsonl.lock"), pytest.raises(ConfigError, match=r"another command is writing out.jsonl"):
        annotate(*LABEL)


def test_a_killed_command_goes_on_to_the_same_file(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", [{"prompt": f"Once upon a time, {n} goats", "response": "ate"} for n in range(40)])
    model, wanted = str(data_dir / "stories260k"), ("--want", "response", "--temperature", "1", "--batch-size", "1")
    command = [sys.executable, "-m", "potstill", "annotate", "rows.jsonl", *wanted, "--teacher", model, *SHORT]
    killed = subprocess.Popen([*command, "--out", "out.jsonl"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    raw = Path("out.raw.jsonl")
    while not (raw.exists() and raw.read_bytes().count(b"\n") >= 3):
        assert killed.poll() is None, "it was too quick"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 3 <= raw.read_bytes().count(b"\n") < 40
    assert not Path("out.jsonl").exists()
    for name in ("out.jsonl", "whole.jsonl"):
        annotate(*wanted, model=model, out=name)
    assert told() == told("whole.raw.jsonl")
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_an_out_that_cannot_be_written_is_not_another_command(tmp_path: Path) -> None:
    from potstill.served.keeping import alone

    (tmp_path / "file").write_text("x", encoding="utf-8")
    with (
        pytest.raises(ConfigError, match=r"out\.jsonl cannot be written: Not a directory"),
        alone(tmp_path / "file" / "out.jsonl"),
    ):
        pass
    with (
        alone(tmp_path / "out.jsonl"),
        pytest.raises(ConfigError, match="another command is writing"),
        alone(tmp_path / "out.jsonl"),
    ):
        pass
