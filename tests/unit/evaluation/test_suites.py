"""Suites: what a model is asked, what its answers are worth, and that a result is made once and can be gone on with."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.data.catalogue.item import Item
from potstill.data.examples import Unusable
from potstill.errors import ConfigError, DataError, ModelError
from potstill.evaluation.suites import GROUPS, SUITES, Settings, Suite, chosen, kept
from potstill.evaluation.suites import run as running
from potstill.evaluation.suites.classification import Classification
from potstill.evaluation.suites.instruction import Instruction
from potstill.evaluation.suites.items import items_of
from potstill.evaluation.suites.language import Language
from potstill.evaluation.suites.maths import Maths
from potstill.evaluation.suites.run import evaluate_models, evaluate_suite
from potstill.evaluation.suites.scoring import mean_scores
from potstill.evaluation.suites.subject import Subject, open_subject
from potstill.evaluation.suites.suite import SuiteProtocol
from potstill.evaluation.suites.summaries import Summaries
from potstill.models.fingerprint import fingerprint_of
from potstill.reporting.suites import differences, markdown
from potstill.run import LOCK
from potstill.sampling.distributions import Decoding
from tests import tiny

SHORT = Settings(max_prompt_tokens=60, max_new_tokens=6)
LABELS = ("fox", "goat", "the lazy dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.llama(1), tmp_path_factory.mktemp("model") / "m", chat=True)


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    return open_subject(str(folder)).with_template("none")


class Says:
    """A subject that says what it is told to; the rest is the real one's."""

    def __init__(self, subject: Subject, *texts: str):
        self._subject, self._texts = subject, list(texts)

    def write(self, prompts: list[str], *_: Any, **__: Any) -> list[str]:
        return [self._texts.pop(0) for _ in prompts]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)


def choice(number: int, answer: int = 0, group: str = "") -> Item:
    return Item(f"c{number}", f"Who ate hat {number}?", (LABELS[answer],), LABELS, answer, group)


# --- The model --------------------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_the_options_tokens_after_the_prompt_and_of_no_end(subject: Subject) -> None:
    prompts, options = ["Who ate it?"] * 3 + ["A small pot"], [*LABELS, "still"]
    found = subject.nats(prompts, options)
    for (nats, count), prompt, option in zip(found, prompts, options, strict=True):
        before = subject.tokenizer(prompt)["input_ids"]
        ids = subject.tokenizer(f"{prompt} {option}")["input_ids"]
        assert ids[: len(before)] == before
        with torch.no_grad():
            log_probs = subject.family.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [-log_probs[at - 1, ids[at]].item() for at in range(len(before), len(ids))]
        assert count == len(own)
        assert nats == pytest.approx(sum(own), rel=1e-4)


def test_a_chat_models_options_follow_its_template_without_a_space(folder: Path) -> None:
    chat = open_subject(str(folder))
    assert chat.template == "chat"
    ((nats, count),) = chat.nats(["Hello"], ["fox"])
    prompt = chat.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert count == len(chat.tokenizer("fox")["input_ids"])
    assert math.isfinite(nats)
    assert nats != pytest.approx(chat.with_template("none").nats(["Hello"], ["fox"])[0][0], abs=1e-3)
    assert prompt != "Hello"
    assert chat.nats(["Hello"], [" fox"]) != [(nats, count)]


def test_a_space_at_the_end_of_a_prompt_is_the_options(subject: Subject) -> None:
    assert subject.nats(["Who ate it? "], ["fox"]) == subject.nats(["Who ate it?"], ["fox"])


def test_what_is_written_depends_on_the_item_and_the_seed_alone(subject: Subject) -> None:
    decoding = subject.decoding(6)
    together = subject.write(["One", "Two", "Three"], ["a", "b", "c"], decoding, seed=1)
    assert subject.write(["Three", "One"], ["c", "a"], decoding, seed=1) == [together[2], together[0]]
    assert subject.write(["One"], ["a"], decoding, seed=2) != [together[0]]
    assert subject.write(["One"], ["d"], decoding, seed=1) != [together[0]]  # two items of one prompt


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_a_model_is_known_by_its_weights_its_config_its_tokenizer_and_its_chat_template(
    folder: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("What is said of a model is not the model.")
    assert fingerprint_of(str(copy)) == fingerprint_of(str(folder))
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    assert fingerprint_of(str(copy)) != fingerprint_of(str(folder))


def test_a_prompt_gets_the_room_that_the_models_positions_leave(subject: Subject) -> None:
    """256 positions."""
    assert [subject.room_for_prompt(wanted, 56) for wanted in (100, 200, 900)] == [100, 200, 200]
    with pytest.raises(ModelError, match="256 positions, and 256 tokens are to be written"):
        subject.room_for_prompt(10, 256)


# --- Protocols --------------------------------------------------------------------------------------------------------


def test_classification_counts_three_ways_by_hand(subject: Subject) -> None:
    items = [choice(1, 0, "a"), choice(2, 1, "a"), choice(3, 2, "b")]
    said = Says(subject, "fox", "I do not know", "The answer is fox.")
    settings = replace(SHORT, frame="{prompt}\nAnswer:")
    rows = Classification().ask(said, items, settings)  # type: ignore[arg-type]
    assert [row["scores"]["accuracy_generated"] for row in rows] == [1.0, 0.0, 0.0]
    assert [row["scores"]["parse_failure_rate"] for row in rows] == [0.0, 1.0, 0.0]
    for row, item in zip(rows, items, strict=True):
        assert row["input"] == f"{item.prompt}\nAnswer:"
        nats = subject.nats([row["input"]] * 3, LABELS)
        full, each = ([amount / (count if per else 1) for amount, count in nats] for per in (False, True))
        assert row["predictions"]["chosen"]["likelihood"] == LABELS[full.index(min(full))]
        assert row["predictions"]["chosen"]["normalised"] == LABELS[each.index(min(each))]
        weights = [math.exp(-amount) for amount in full]
        assert row["predictions"]["confidence"]["likelihood"] == pytest.approx(max(weights) / sum(weights))
    scores = Classification().scores(rows, settings)
    assert scores["accuracy_generated"]["mean"] == pytest.approx(1 / 3)
    assert scores["confusion_generated"] == [[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert set(scores["accuracy_likelihood_by_group"]) == {"a", "b"}
    assert scores["macro_f1_generated"] == pytest.approx((2 / 3 + 0 + 0) / 3)


def test_the_likelihood_for_each_token_does_not_favour_short_options(subject: Subject) -> None:
    """Of one token with 3 nats, four with 4 and two with 9, the first is the likeliest, and the second by the token."""

    class Finds(Says):
        def nats(self, prompts: list[str], options: list[str]) -> list[tuple[float, int]]:
            return [(3.0, 1), (4.0, 4), (9.0, 2)]

    rows = Classification().ask(Finds(subject, "goat"), [choice(1)], SHORT)  # type: ignore[arg-type]
    assert rows[0]["predictions"]["chosen"] == {"likelihood": "fox", "normalised": "goat", "generated": "goat"}
    sure = rows[0]["predictions"]["confidence"]
    assert sure["likelihood"] == pytest.approx(1 / (1 + math.exp(-1) + math.exp(-6)))
    assert sure["normalised"] == pytest.approx(1 / (1 + math.exp(-2) + math.exp(-3.5)))
    scores = Classification().scores(rows, SHORT)
    assert scores["calibration_error_likelihood"] == pytest.approx(1 - sure["likelihood"])  # right
    assert scores["calibration_error_normalised"] == pytest.approx(sure["normalised"])  # wrong
    assert [scores[f"macro_f1_{way}"] for way in ("likelihood", "normalised", "generated")] == [1, 0, 0]


def test_items_with_options_of_their_own_have_no_confusion_matrix(subject: Subject) -> None:
    other = Item("o", "Which?", ("hat",), ("hat", "pot"), 0)
    rows = Classification().ask(subject, [choice(1), other], SHORT)
    assert not any(name.startswith("confusion") for name in Classification().scores(rows, SHORT))


def test_a_protocol_says_what_it_cannot_ask() -> None:
    Classification().check(choice(1))
    for item in (Item("x", "Who?", ("fox",)), replace(choice(1), answer=None), Item("x", "Who?", ("a",), ("a",), 0)):
        with pytest.raises(Unusable, match="options"):
            Classification().check(item)
    Maths().check(Item("x", "How many?", ("1 + 1",)))
    for references in ((), ("many",), ("1 / 0", "7")):
        with pytest.raises(Unusable, match="no value"):
            Maths().check(Item("x", "How many?", references))


def test_items_of_a_data_set_that_cannot_be_asked_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "How many?", "answer": f"#### {'9' * 2000}"}) + "\n")
    with pytest.raises(DataError, match=r"gsm8k: test\.jsonl:1: its answer has no value"):
        items_of(SUITES["gsm8k"], folder=tmp_path)


def test_maths_goes_by_the_value(subject: Subject) -> None:
    items = [Item(str(at), "How many?", (gold,)) for at, gold in enumerate(["( 7.0 * 30.0 )", "6", "6", "0.5"])]
    said = Says(subject, "7 * 30 = 210", "It is 7.", "none at all", "The answer is 1/2.")
    rows = Maths().ask(said, items, SHORT)  # type: ignore[arg-type]
    assert [row["scores"]["accuracy"] for row in rows] == [1.0, 0.0, 0.0, 1.0]
    assert [row["scores"]["parse_failure_rate"] for row in rows] == [0.0, 0.0, 1.0, 0.0]
    assert Maths().scores(rows, SHORT)["accuracy"]["mean"] == 0.5
    parted = [row | {"group": "ab"[at // 2]} for at, row in enumerate(rows)]
    by_group = Maths().scores(parted[:1] + parted[2:], SHORT)["accuracy_by_group"]
    assert {group: found["mean"] for group, found in by_group.items()} == {"a": 1.0, "b": 0.5}
    assert by_group["b"]["num"] == 2


def test_instruction_takes_the_best_reference_and_the_mean_over_seeds(subject: Subject) -> None:
    item = Item("i", "Say it.", ("the sky is blue", "a goat ate the hat"))
    settings = replace(SHORT, seeds=(3, 4))
    said = Says(subject, "A goat ate the hat.", "the sky is blue", "nothing here")
    (row,) = Instruction().ask(said, [item], settings)  # type: ignore[arg-type]
    assert row["scores"]["rouge_l_greedy"] == pytest.approx(100)
    assert row["scores"]["exact_match_greedy"] == 1.0
    assert row["scores"]["rouge_l_sampled"] == pytest.approx(50)
    scores = Instruction().scores([row], settings)
    assert scores["rouge_l_sampled"]["deviation_of_seeds"] == pytest.approx(100 / math.sqrt(2))
    assert set(row["predictions"]) == {"greedy", "seed_3", "seed_4"}


@pytest.mark.parametrize(
    ("protocol", "asked"),
    [
        (Instruction(), [(0.0, 2, 6, 0), (0.7, 2, 6, 3), (0.7, 2, 6, 4)]),
        (Summaries(), [(0.0, 2, 6, 0)]),
        (Classification(), [(0.0, 0, 6, 0)]),
        (Maths(), [(0.0, 0, 6, 0)]),
    ],
)
def test_answers_are_written_as_the_settings_say(
    subject: Subject, protocol: SuiteProtocol, asked: list[tuple[float, int, int, int]]
) -> None:
    """Greedily, and instructions with each seed too: temperature, tokens in a row, length and seed."""
    found = []

    class Noting(Says):
        def write(self, prompts: list[str], ids: list[str], decoding: Decoding, *, seed: int) -> list[str]:
            found.append((decoding.temperature, decoding.no_repeat_ngram, decoding.max_new_tokens, seed))
            return ["7"] * len(prompts)

    settings = replace(SHORT, seeds=(3, 4), temperature=0.7, no_repeat_ngram=2)
    protocol.ask(Noting(subject), [Item("i", "Say it.", ("7",), ("7", "8"), 0)], settings)  # type: ignore[arg-type]
    assert found == asked


def test_summaries_stand_beside_the_lead(subject: Subject) -> None:
    article = "One fox ran. Two goats ate. Three dogs sat. Four owls left."
    item = Item("s", f"summarize: {article}\n", ("One fox ran. Two goats ate. Three dogs sat.",), content=article)
    (row,) = Summaries().ask(Says(subject, "Four owls left."), [item], SHORT)  # type: ignore[arg-type]
    assert row["scores"]["lead_3_rougeL"] == pytest.approx(100)
    assert row["scores"]["rougeL"] == 0
    assert row["scores"]["novelty_1"] == 0


@pytest.mark.parametrize("window", [4, 1000])
def test_language_reads_every_token_of_a_document_once(subject: Subject, window: int) -> None:
    texts = [*tiny.TEXT, "A café: 3 £."]  # a byte is not a character
    items = [Item(str(at), text, (), content=text) for at, text in enumerate(texts)]
    rows = Language().ask(subject, items, replace(SHORT, max_prompt_tokens=window))
    lengths = [len(subject.tokenizer(text)["input_ids"]) for text in texts]
    assert [row["scores"]["tokens"] for row in rows] == lengths
    assert [row["scores"]["bytes"] for row in rows] == [len(text.encode()) for text in texts]
    scores = Language().scores(rows, SHORT)
    total = sum(row["scores"]["nats"] for row in rows)
    assert scores["perplexity"] == pytest.approx(math.exp(total / sum(lengths)))
    assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(len(t.encode()) for t in texts))


def test_each_window_of_a_document_begins_after_the_end_token(subject: Subject) -> None:
    (row,) = Language().ask(subject, [Item("d", tiny.TEXT[0], ())], replace(SHORT, max_prompt_tokens=5))
    ids, end, nats = subject.tokenizer(tiny.TEXT[0])["input_ids"], subject.tokenizer.eos_token_id, 0.0
    for start in range(0, len(ids), 5):
        window = ids[start : start + 5]
        with torch.no_grad():
            log_probs = subject.family.model(torch.tensor([[end, *window]])).logits[0].log_softmax(-1)
        nats -= sum(log_probs[at, token].item() for at, token in enumerate(window))
    assert row["scores"]["nats"] == pytest.approx(nats, rel=1e-4)


# --- A result ---------------------------------------------------------------------------------------------------------


ITEMS = [choice(number, number % 3) for number in range(20)]
SUITE = Suite("classification", "animals", Classification(), SHORT)
IDENTITY = {"name": "m", "fingerprint": "f"}


def test_a_result_is_made_once_and_read_afterwards(subject: Subject, tmp_path: Path) -> None:
    begun = time.perf_counter()
    first = evaluate_suite(lambda: subject, IDENTITY, SUITE, ITEMS, tmp_path)
    assert 0 < first.scores["seconds"] <= time.perf_counter() - begun + 0.01
    again = evaluate_suite(lambda: pytest.fail("asked again"), IDENTITY | {"name": "n"}, SUITE, ITEMS, tmp_path)
    assert again.scores == first.scores
    assert [row["id"] for row in first.rows] == [item.id for item in ITEMS]
    assert json.loads((first.folder / "settings.json").read_text())["num_items"] == 20


def each_setting_changed() -> list[Settings]:
    changes: dict[str, Any] = {
        "max_prompt_tokens": 59,
        "max_new_tokens": 5,
        "temperature": 0.5,
        "no_repeat_ngram": 6,
        "seeds": (1,),
        "frame": "{prompt} Say it.",
        "template": "none",
        "variants": ("{prompt} Say it.",),
    }
    assert changes.keys() == asdict(SHORT).keys()
    return [replace(SHORT, **{name: value}) for name, value in changes.items()]


def test_whatever_a_figure_depends_on_makes_another_result(subject: Subject, tmp_path: Path) -> None:
    changed = [
        (IDENTITY | {"fingerprint": "g"}, SUITE, ITEMS),
        *((IDENTITY, replace(SUITE, settings=settings), ITEMS) for settings in each_setting_changed()),
        (IDENTITY, SUITE, ITEMS[:-1]),
        (IDENTITY, SUITE, [*ITEMS[:-1], replace(ITEMS[-1], references=("fox",))]),
    ]
    keys = {running.key_of(running.describe(*parts)) for parts in [(IDENTITY, SUITE, ITEMS), *changed]}
    assert len(keys) == 1 + len(changed)
    newer = Classification()
    newer.version = 2
    assert running.key_of(running.describe(IDENTITY, replace(SUITE, protocol=newer), ITEMS)) not in keys


def test_a_result_that_was_stopped_goes_on_and_is_the_same(subject: Subject, tmp_path: Path) -> None:
    """Killed after some rows, in the middle of writing another."""
    whole = evaluate_suite(lambda: subject, IDENTITY, SUITE, ITEMS, tmp_path / "whole")
    stopped = tmp_path / "stopped" / whole.folder.name
    stopped.mkdir(parents=True)
    lines = (whole.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (stopped / "rows.jsonl").write_text("".join(lines[:9]) + lines[9][:30])
    asked: list[str] = []

    class Counting(Says):
        def write(self, prompts: list[str], ids: list[str], *rest: Any, **more: Any) -> list[str]:
            asked.extend(ids)
            return self._subject.write(prompts, ids, *rest, **more)

        def with_template(self, wanted: str) -> Counting:
            return Counting(self._subject.with_template(wanted))

    gone_on = evaluate_suite(lambda: Counting(subject), IDENTITY, SUITE, ITEMS, tmp_path / "stopped")  # type: ignore
    assert asked == [item.id for item in ITEMS[9:]]
    seconds = {"seconds"}
    assert {k: v for k, v in gone_on.scores.items() if k not in seconds} == {
        k: v for k, v in whole.scores.items() if k not in seconds
    }


@pytest.mark.parametrize("finished", [True, False], ids=["done", "killed"])
def test_another_process_is_waited_for_aloud_until_it_is_done_or_was_killed(
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    finished: bool,
) -> None:
    monkeypatch.setattr(kept, "PATIENCE_S", 0.1)
    made = evaluate_suite(lambda: subject, IDENTITY, SUITE, ITEMS[:2], tmp_path)
    assert "another process" not in capsys.readouterr().err
    (made.folder / "scores.json").unlink()
    hold = f"import filelock; lock = filelock.FileLock({str(made.folder / LOCK)!r}); lock.acquire(); print(); input()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout
    other.stdout.readline()

    def end() -> None:
        if finished:
            (made.folder / "scores.json").write_text(json.dumps(made.scores | {"made by": "the other"}))
        other.kill()

    threading.Timer(0.5, end).start()
    found = evaluate_suite(lambda: pytest.fail("asked again"), IDENTITY, SUITE, ITEMS[:2], tmp_path)
    assert other.wait() == -signal.SIGKILL
    assert "classification: m: another process is asking, and is waited for" in capsys.readouterr().err
    assert found.scores == made.scores | ({"made by": "the other"} if finished else {})


def test_a_row_that_stands_twice_or_is_not_of_these_items_is_left_out_of_a_result_that_was_done(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise figures would be of 20 items, and comparisons of 22."""
    made = evaluate_suite(lambda: subject, IDENTITY, SUITE, ITEMS, tmp_path)
    rows = made.rows
    (made.folder / "rows.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows, rows[3], rows[3] | {"id": "x"}])
    )
    again = evaluate_suite(lambda: pytest.fail("asked again"), IDENTITY, SUITE, ITEMS, tmp_path)
    assert again.rows == rows
    assert "2 damaged lines left out" in capsys.readouterr().err


def test_a_long_input_loses_its_middle_and_it_is_counted(subject: Subject, tmp_path: Path) -> None:
    article = " ".join(f"word{number}" for number in range(200))
    item = Item("long", f"summarize: {article}\nNow!", ("x",), content=article)
    suite = Suite("summaries", "long", Summaries(), SHORT)
    found = evaluate_suite(lambda: subject, IDENTITY, suite, [item, choice(1)], tmp_path)
    row, other = found.rows
    assert found.scores["num_shortened"] == 1
    assert row["tokens_left_out"] > 100
    assert other["tokens_left_out"] == 0
    assert row["input"].startswith("summarize: word0 word1")
    assert row["input"].endswith("word199\nNow!")
    assert "[...]" in row["input"]
    assert len(subject.tokenizer(row["input"])["input_ids"]) <= SHORT.max_prompt_tokens


def test_an_input_is_shortened_to_what_the_models_positions_leave(subject: Subject, tmp_path: Path) -> None:
    """256 positions, and 56 tokens are to be written."""
    item = Item("long", " ".join(f"word{number}" for number in range(200)), ("x",))
    settings = replace(SHORT, max_prompt_tokens=900, max_new_tokens=56)
    found = evaluate_suite(lambda: subject, IDENTITY, Suite("s", "long", Summaries(), settings), [item], tmp_path)
    assert 150 < len(subject.tokenizer(found.rows[0]["input"])["input_ids"]) <= 200


@pytest.mark.parametrize("template", ["none", "chat"])
def test_the_prompts_are_framed_by_the_suites_template(folder: Path, tmp_path: Path, template: Any) -> None:
    """Which is that of the answers, whatever the model's own is."""
    chat = open_subject(str(folder))
    suite = replace(SUITE, settings=replace(SHORT, template=template))
    found = evaluate_suite(lambda: chat.with_template("auto"), IDENTITY, suite, ITEMS[:3], tmp_path)
    expected = Classification().ask(chat.with_template(template), ITEMS[:3], SHORT)
    assert [row["predictions"] for row in found.rows] == [row["predictions"] for row in expected]


# --- From names to a table --------------------------------------------------------------------------------------------


def own_rows(folder: Path) -> Path:
    file = folder / "own.jsonl"
    rows = [{"prompt": item.prompt, "options": LABELS, "response": item.references[0]} for item in ITEMS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_models_and_suites_become_a_table(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny.TEXT) + "\n")
    for suites, file in (([SUITES["classification"]], own_rows(tmp_path)), ([SUITES["plain_text"]], text)):
        suites = [replace(suite, settings=replace(suite.settings, max_new_tokens=4)) for suite in suites]
        results = evaluate_models([str(folder)], suites, root=tmp_path / "out", file=file, limit=5)
        shown = markdown(results)
        assert str(folder) in shown
        assert f"{suites[0].name}: {5 if suites[0].name != 'plain_text' else 4} items" in shown
        for key in set(suites[0].protocol.headline) - {"frame_agreement"}:  # which is of several frames
            assert key.replace("_", " ") in shown
            assert key in results[0].scores


def test_each_suite_is_asked_about_its_own_items(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "both.jsonl"
    file.write_text('{"prompt": "Say it.", "response": "it", "text": "A small pot."}\n')
    suites = [replace(SUITES[name], settings=SHORT) for name in ("instruction", "plain_text")]
    results = evaluate_models([str(folder)], suites, root=tmp_path / "out", file=file)
    assert [(result.suite, result.rows[0]["input"]) for result in results] == [
        ("instruction", "Say it."),
        ("plain_text", "A small pot."),
    ]


def test_several_models_are_compared_item_by_item_with_the_first(tmp_path: Path) -> None:
    """By hand: the second is right where the first is, and on six more of ten; of both suites two p are adjusted."""
    results = []
    for suite in ("classification", "maths"):
        key = SUITES[suite].protocol.headline[0]
        for model, right in (("one", 2), ("two", 8)):
            folder = tmp_path / suite / model
            folder.mkdir(parents=True)
            rows = [{"id": str(at), "scores": {key: float(at < right)}} for at in range(10)]
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            told = {"model": {"name": model}, "suite": suite, "settings": asdict(SHORT), "num_items": 10}
            scores = {key: {"mean": right / 10, "low": 0, "high": 1, "num": 10}, "num_shortened": 0, "seconds": 1.0}
            results.append(running.Result(folder, told, scores))
    first, second = differences(results)
    assert (first.suite, first.model, first.first, second.suite) == ("classification", "two", "one", "maths")
    assert first.difference.mean == pytest.approx(0.6)
    assert 0.2 < first.difference.low < 0.6 < first.difference.high < 1
    assert first.p_holm == pytest.approx(min(1.0, 2 * first.difference.p))
    assert "| classification | accuracy likelihood | two | one | +0.6 " in markdown(results)
    assert differences(results[:1]) == []
    assert "Differences" not in markdown(results[:1])


def test_a_limit_takes_the_first_items_and_other_seeds_replace_a_suites_own(tmp_path: Path) -> None:
    file = own_rows(tmp_path)
    assert [item.prompt for item in items_of(SUITES["classification"], limit=3, file=file)] == [
        item.prompt for item in ITEMS[:3]
    ]
    assert SUITES["dolly"].changed([7]).settings == replace(SUITES["dolly"].settings, seeds=(7,))
    assert SUITES["svamp"].changed([7]) == SUITES["svamp"].changed() == SUITES["svamp"]
    assert SUITES["svamp"].changed(max_new_tokens=9).settings.max_new_tokens == 9


def test_a_limit_is_of_each_split(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        rows = [{"uid": f"{number}-{at}", "context": "c", "hypothesis": "h", "label": "e"} for at in range(3)]
        (tmp_path / f"r{number}_dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = items_of(SUITES["anli"], limit=2, folder=tmp_path)
    assert [item.id for item in found] == ["1-0", "1-1", "2-0", "2-1", "3-0", "3-1"]
    assert [item.group for item in found] == ["r1", "r1", "r2", "r2", "r3", "r3"]
    assert [item.id for item in items_of(SUITES["anli_r1"], folder=tmp_path)] == ["1-0", "1-1", "1-2"]


def test_what_cannot_be_asked_is_refused_with_the_way_out(tmp_path: Path) -> None:
    file = own_rows(tmp_path)
    with pytest.raises(ConfigError, match="no file is named") as caught:
        items_of(SUITES["maths"])
    assert "--data FILE" in str(caught.value)
    with pytest.raises(ConfigError, match="suite dolly has its own data set"):
        items_of(SUITES["dolly"], file=file)
    file.write_text('{"prompt": "Who?", "options": ["a", "b"], "response": "c"}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:1: field 'response' is 'c', which is none of the options"):
        items_of(SUITES["classification"], file=file)
    file.write_text('{"id": "1", "prompt": "a", "response": "b"}\n' * 2)
    with pytest.raises(DataError, match=r"own\.jsonl:1: its answer has no value"):
        evaluate_models([], [SUITES["maths"]], root=tmp_path, file=file)
    file.write_text('{"id": "1", "prompt": "a", "response": "2"}\n' * 2)
    with pytest.raises(DataError, match=r"own\.jsonl:2: duplicate id '1' \(first at own\.jsonl:1\)"):
        evaluate_models([], [SUITES["maths"]], root=tmp_path, file=file)


@pytest.mark.parametrize(
    ("suite", "name", "text", "fix"),
    [
        ("maths", "own.csv", "question,answer\nq,1\n", "name the columns prompt and response, and options where"),
        ("maths", "own.jsonl", '{"prompt": "a", "answer": "1"}\n', "name the fields prompt and response, and options"),
        (
            "maths",
            "own.jsonl",
            '{"prompt": "a", "response": "1"}\n{"prompt": "a", "answer": "1"}\n',
            "mend or remove the row",
        ),
        (
            "classification",
            "own.jsonl",
            '{"prompt": "a", "response": "b"}\n',
            "give each row its options, or use suite",
        ),
        ("classification", "own.csv", "prompt,response,options\np,a,a|b\n", "options are a list of two or more texts"),
        ("maths", "own.jsonl", '{"prompt": "a", "response": "many"}\n', "give each row a number or an equation"),
        ("maths", "own.jsonl", '{"prompt": "a", "response": "1"}\n{oops\n', "mend or remove the row"),
    ],
)
def test_the_way_out_fits_the_row(tmp_path: Path, suite: str, name: str, text: str, fix: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="own") as caught:
        items_of(SUITES[suite], file=tmp_path / name)
    assert str(caught.value.fix).startswith(fix)


@pytest.mark.parametrize(("suite", "what"), [("maths", "rows"), ("plain_text", "documents")])
def test_a_folder_is_refused_whatever_it_holds(tmp_path: Path, suite: str, what: str) -> None:
    own_rows(tmp_path)
    with pytest.raises(DataError, match="is a folder") as caught:
        items_of(SUITES[suite], file=tmp_path)
    assert caught.value.fix == f"name a file of {what}; suites do not read prepared folders"


def test_the_suites_of_minillm_are_asked_as_its_tables_were() -> None:
    """512 tokens in all, five seeds, no six tokens in a row twice, and no chat template."""
    theirs = Settings(256, 256, 1.0, 6, (10, 20, 30, 40, 50), "{prompt}", "none")
    assert [SUITES[name].settings for name in GROUPS["minillm"]] == [theirs] * 5


def test_a_task_is_asked_on_the_split_that_its_figures_are_published_of() -> None:
    found = {suite.name: suite.splits for suite in SUITES.values() if suite.dataset and suite.name[:4] != "anli"}
    tasks = ("esnli", "cqa", "svamp", "gsm8k", "cnn_dailymail", "xsum", "samsum")
    assert found == dict.fromkeys(GROUPS["minillm"], ("valid",)) | dict.fromkeys(tasks, ("test",))
    assert SUITES["anli"].splits == ("r1_dev", "r2_dev", "r3_dev")
    assert SUITES["anli_r1"].splits == ("r1_dev",)


def test_a_score_that_is_not_there_is_in_no_mean() -> None:
    found = mean_scores([{"scores": {"a": value, "b": None}} for value in (2.0, None, 4.0)])
    assert (found["a"]["mean"], found["a"]["num"]) == (3, 2)
    assert found["b"] == {"mean": None, "low": None, "high": None, "num": 0}


def test_every_suite_of_a_data_set_names_one_that_is_there() -> None:
    from potstill.data.catalogue import DATASETS

    for suite in SUITES.values():
        if suite.dataset:
            assert set(suite.splits) <= set(DATASETS[suite.dataset].splits)
            assert "{prompt}" in suite.settings.frame


def test_a_group_leaves_out_what_is_not_here_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="none of the data sets of minillm is here"):
        chosen(["minillm"])
    for name in ("dolly", "vicuna"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "valid.jsonl").touch()
    assert [suite.name for suite in chosen(["vicuna", "minillm", "cqa"])] == ["vicuna", "dolly", "cqa"]
    assert "without self_inst, sinst, uinst" in capsys.readouterr().err


def test_a_misspelt_suite_is_answered_with_the_nearest_and_then_the_list() -> None:
    for wrong, near in (
        ("dolyl", "Did you mean 'dolly'? It is"),
        ("Minilm", "Did you mean 'minillm'? "),
        ("", "It is"),
    ):
        with pytest.raises(ConfigError, match=f"no suite '{wrong}'") as caught:
            chosen(["vicuna", wrong])
        assert str(caught.value.fix).startswith(near)
        assert str(caught.value.fix).endswith("plain_text, minillm")


def test_distinct_words_are_counted_over_all_greedy_answers() -> None:
    rows = [{"predictions": {"greedy": text}, "scores": {"rouge_l_greedy": 1.0}} for text in ("a b A b", "b c")]
    scores = SUITES["instruction"].protocol.scores(rows, Settings())
    assert scores["distinct_1_greedy"] == pytest.approx(3 / 6)
    assert scores["distinct_2_greedy"] == pytest.approx(3 / 4)  # a b, b a, a b, b c
    assert scores["distinct_3_greedy"] == 1
    assert SUITES["instruction"].protocol.scores(rows[:0] + rows[1:], Settings())["distinct_3_greedy"] is None


def test_the_weighted_mean_of_the_primary_figure_is_the_figure() -> None:
    rows = [{"id": str(n), "scores": {"nats": 3.0 * n, "tokens": n, "bytes": 5 * n + 1}} for n in (1, 2, 7)]
    protocol = SUITES["plain_text"].protocol
    each = protocol.of_each(rows)
    mean = sum(one.value * one.weight for one in each) / sum(one.weight for one in each)
    assert mean == pytest.approx(protocol.scores(rows, Settings())["bits_per_byte"])
