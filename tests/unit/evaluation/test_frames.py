"""Frames: items asked in other words, in several of them, and in those that a run's student was trained with."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import api
from potstill.data.catalogue.item import Item
from potstill.errors import ConfigError, ModelError
from potstill.evaluation.suites import SUITES, Settings, Suite
from potstill.evaluation.suites import run as running
from potstill.evaluation.suites.classification import Classification
from potstill.evaluation.suites.frames import as_option, trained_frame
from potstill.evaluation.suites.subject import Subject, open_subject
from potstill.evaluation.suites.summaries import Summaries
from potstill.recipe import Data
from potstill.reporting.suites import markdown, told
from tests import tiny
from tests.unit.reporting.fake_runs import RECIPE, write_run

LABELS = ("fox", "goat", "the lazy dog")
ITEM = Item("a", "Who ate it?", ("goat",), LABELS, 1)
TWO = Settings(max_prompt_tokens=60, max_new_tokens=6, frame="predict: {prompt}", variants=("{prompt} Answer:",))
MODELS = {"llama": tiny.llama, "t5": tiny.t5, "bart": tiny.bart}


class Told:
    """A subject whose nats and answers are told to it, by the prompt; ``asked`` are the prompts of options."""

    def __init__(self, nats: dict[str, list[tuple[float, int]]], texts: dict[str, str]):
        self.nats_of_prompt, self.texts, self.asked = nats, texts, list[str]()

    def nats(self, prompts: list[str], options: list[str]) -> list[tuple[float, int]]:
        self.asked += prompts
        pairs = zip(prompts, options, strict=True)
        return [self.nats_of_prompt[prompt][LABELS.index(option)] for prompt, option in pairs]

    def decoding(self, max_new_tokens: int, **_: Any) -> int:
        return max_new_tokens

    def write(self, prompts: list[str], *_: Any, seed: int) -> list[str]:
        return [self.texts[prompt] for prompt in prompts]


def saved(kind: str, folder: Path, *, chat: bool = False) -> Path:
    return tiny.save(MODELS[kind](1), folder / kind, chat=chat)


def nats_of(*probabilities: float) -> list[tuple[float, int]]:
    """Of options of two tokens each."""
    return [(-math.log(value), 2) for value in probabilities]


# The first all but rules the goat out, which the second prefers: a mean of logarithms would choose the fox.
FIRST, SECOND = (0.5, 0.01, 0.49), (0.2, 0.7, 0.1)


def two_answers() -> tuple[Told, Settings]:
    first, second = "predict: Who ate it?", "Who ate it? Answer:"
    nats = {first: nats_of(*FIRST), second: nats_of(*SECOND)}
    return Told(nats, {first: "goat", second: "none of them"}), TWO


# --- Several frames ---------------------------------------------------------------------------------------------------


def test_an_option_is_as_probable_as_it_is_on_average_over_the_frames() -> None:
    subject, settings = two_answers()
    (row,) = Classification().ask(subject, [ITEM], settings)  # type: ignore[arg-type]
    means = [(a + b) / 2 for a, b in zip(FIRST, SECOND, strict=True)]
    assert row["predictions"]["chosen"] == {"likelihood": "goat", "normalised": "fox", "generated": "goat"}
    assert row["predictions"]["confidence"]["likelihood"] == pytest.approx(max(means))
    roots = [[math.sqrt(value) for value in values] for values in (FIRST, SECOND)]
    shares = [[value / sum(values) for value in values] for values in roots]
    normalised = [sum(pair) / 2 for pair in zip(*shares, strict=True)]
    assert row["predictions"]["confidence"]["normalised"] == pytest.approx(max(normalised))


def test_each_frames_own_answer_stands_beside_and_the_first_frames_is_the_one_that_is_read() -> None:
    subject, settings = two_answers()
    rows = Classification().ask(subject, [ITEM], settings)  # type: ignore[arg-type]
    assert subject.asked == ["predict: Who ate it?"] * 3 + ["Who ate it? Answer:"] * 3
    assert (rows[0]["input"], rows[0]["predictions"]["written"]) == ("predict: Who ate it?", "goat")
    by_frame = rows[0]["predictions"]["by_frame"]
    assert [told["frame"] for told in by_frame] == list(settings.frames)
    assert [told["chosen"]["likelihood"] for told in by_frame] == ["fox", "goat"]
    assert [told["chosen"]["generated"] for told in by_frame] == ["goat", None]
    scores = Classification().scores(rows, settings)
    for way, expected in (("likelihood", [0, 1]), ("normalised", [0, 1]), ("generated", [1, 0])):
        found = scores[f"accuracy_{way}_by_frame"]
        assert list(found) == list(settings.frames)
        assert [figure["mean"] for figure in found.values()] == expected
    assert scores["accuracy_generated"]["mean"] == 1
    assert scores["parse_failure_rate"]["mean"] == 0


def test_frames_agree_on_an_item_where_one_option_is_the_likeliest_in_all() -> None:
    subject, settings = two_answers()
    second = "Who ate it? Answer:"
    rows = []
    for probabilities in (SECOND, FIRST, FIRST):
        subject.nats_of_prompt[second] = nats_of(*probabilities)
        rows += Classification().ask(subject, [ITEM], settings)  # type: ignore[arg-type]
    assert [row["scores"]["frame_agreement"] for row in rows] == [0, 1, 1]
    assert Classification().scores(rows, settings)["frame_agreement"]["mean"] == pytest.approx(2 / 3)
    whole = Classification().scores(rows[1:], settings)["frame_agreement"]
    assert whole["mean"] == 1
    assert whole["low"] < 1  # a share: two items that agree do not show that all do


def test_whether_frames_agree_is_told_by_the_likelihood_and_not_by_that_for_each_token() -> None:
    """The fox has one token and the goat four: for each token the first frame would choose the goat."""
    subject, settings = two_answers()
    for prompt, fox, goat in (("predict: Who ate it?", 0.6, 0.4), ("Who ate it? Answer:", 0.9, 0.1)):
        subject.nats_of_prompt[prompt] = [(-math.log(fox), 1), (-math.log(goat), 4), (9.0, 1)]
    (row,) = Classification().ask(subject, [ITEM], settings)  # type: ignore[arg-type]
    chosen = [told["chosen"] for told in row["predictions"]["by_frame"]]
    assert [(told["likelihood"], told["normalised"]) for told in chosen] == [("fox", "goat"), ("fox", "fox")]
    assert row["scores"]["frame_agreement"] == 1


def test_a_row_of_one_frame_is_what_it_was() -> None:
    subject, settings = two_answers()
    (row,) = Classification().ask(subject, [ITEM], replace(settings, variants=()))  # type: ignore[arg-type]
    assert row["predictions"].keys() == {"written", "chosen", "confidence"}
    assert "frame_agreement" not in row["scores"]
    scores = Classification().scores([row], replace(settings, variants=()))
    assert not any("frame" in name for name in scores)


def test_a_result_from_before_there_were_variants_keeps_its_key() -> None:
    """Computed by the version before: what was answered then is not asked again."""
    item = Item("c1", "Who ate hat 1?", ("fox",), ("fox", "goat"), 0)
    told = running.describe({"name": "m", "fingerprint": "f"}, SUITES["anli"], [item])
    assert running.key_of(told) == "5dbcdbbb764cec0d2cfc846d7d2333c593bce8b96d5f3c8cf90d5d9d59376e42"
    asked = [SUITES["anli"].changed(frames=frames) for frames in (["{prompt}"], ["{prompt}", "a {prompt}"])]
    asked.append(asked[0].changed(frames=["a {prompt}", "{prompt}"]))  # whose first one is the one that is read
    keys = {running.key_of(running.describe({"fingerprint": "f", "name": "m"}, one, [item])) for one in asked}
    assert len(keys | {running.key_of(told)}) == 4


def test_frames_are_asked_from_end_to_end_and_stand_in_the_table(tmp_path: Path) -> None:
    folder, file = saved("llama", tmp_path), tmp_path / "own.jsonl"
    rows = [{"prompt": f"Who ate hat {n}?", "options": LABELS, "response": "goat"} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: dict[str, Any] = {"data": file, "out": tmp_path / "out", "device": "cpu", "max_new_tokens": 4}
    (both,) = api.evaluate_suites([folder], ["classification"], frames=["{prompt}", "predict: {prompt}"], **asked)
    (one,) = api.evaluate_suites([folder], ["classification"], frames=["predict: {prompt}"], **asked)
    assert both.folder != one.folder
    assert [row["input"] for row in one.rows] == [f"predict: Who ate hat {n}?" for n in range(3)]
    own = [row["predictions"]["by_frame"][1] for row in both.rows]
    assert [told["chosen"] for told in own] == [row["predictions"]["chosen"] for row in one.rows]
    assert both.scores["accuracy_likelihood_by_frame"]["predict: {prompt}"] == one.scores["accuracy_likelihood"]
    assert both.settings["settings"]["variants"] == ("predict: {prompt}",)
    assert "frame agreement" in markdown([both])
    assert "frame agreement" not in markdown([one])


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "frames", "cause", "fix"),
    [
        ("anli", ["predict: "], "frame 'predict: ' has {prompt} 0 times", "write it once"),
        ("anli", ["{prompt}", "{prompt} {prompt}"], "has {prompt} 2 times", "write it once"),
        ("dolly", ["{prompt}", "a {prompt}"], "suite dolly is asked in one frame, and 2 are given", "give one --frame"),
        ("svamp", ["{prompt}", "a {prompt}"], "suite svamp is asked in one frame", "give one --frame"),
        ("xsum", ["{prompt}", "a {prompt}"], "suite xsum is asked in one frame", "give one --frame"),
        ("plain_text", ["a {prompt}"], "suite plain_text asks nothing", "leave --frame out"),
    ],
)
def test_a_frame_that_a_suite_cannot_be_asked_in_is_refused(
    suite: str, frames: list[str], cause: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        SUITES[suite].changed(frames=frames)
    assert cause in str(caught.value.cause)
    assert str(caught.value.fix).startswith(fix)


def test_one_frame_goes_with_every_suite_that_asks_and_one_twice_is_one() -> None:
    for name in ("dolly", "svamp", "xsum", "anli"):
        found = SUITES[name].changed(frames=["a {prompt}", "a {prompt}"]).settings
        assert found == replace(SUITES[name].settings, frame="a {prompt}")
        assert SUITES[name].changed(frames=[]) == SUITES[name]


# --- The model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "before"), [("t5", []), ("bart", [0])])
def test_a_pairs_option_is_a_target_by_itself(tmp_path: Path, kind: str, before: list[int]) -> None:
    """Without a space in front, after a source that keeps its own, and without what stands before every target."""
    subject = open_subject(str(saved(kind, tmp_path)))
    model, tokenizer = subject.family.model, subject.tokenizer
    for prompt, option in (("Who ate it? ", "fox"), ("Who ate it?", "the lazy dog")):
        own = tokenizer(option, add_special_tokens=False)["input_ids"]
        labels = [*before, *own]
        source = tokenizer(prompt, return_tensors="pt")
        fed = torch.tensor([[model.config.decoder_start_token_id, *labels[:-1]]])
        with torch.no_grad():
            logits = model(source["input_ids"], source["attention_mask"], decoder_input_ids=fed).logits[0]
        each = [-logits.log_softmax(-1)[at, token].item() for at, token in enumerate(labels)]
        ((nats, count),) = subject.nats([prompt], [option])
        assert count == len(own)
        assert nats == pytest.approx(sum(each[len(before) :]), rel=1e-4)


@pytest.mark.parametrize(("kind", "room"), [("llama", 240), ("bart", 128)])
@pytest.mark.parametrize("protocol", [Classification(), Summaries()])
def test_an_item_in_its_longest_frame_is_asked_within_the_models_positions(
    tmp_path: Path, kind: str, room: int, protocol: Any
) -> None:
    """256 positions, in which 16 tokens are written too, and 128 of a source."""
    subject = open_subject(str(saved(kind, tmp_path)))
    settings = Settings(max_new_tokens=16, frame="Say who it was. " * 5 + "{prompt}\nAnswer:", variants=("{prompt}",))
    for text in ("word " * 200, "(goat)" * 90):
        (row,) = running._some(subject, Suite("s", "", protocol, settings), [replace(ITEM, prompt=text.strip())])
        assert row["tokens_left_out"] > 0
        assert 0.8 * room < subject.num_prompt_tokens(row["input"]) <= room


def test_a_frame_takes_room_of_the_models_positions_alone(tmp_path: Path) -> None:
    llama, t5 = (open_subject(str(saved(kind, tmp_path))) for kind in ("llama", "t5"))
    assert [llama.room_for_prompt(512, 16, around=around) for around in (0, 10)] == [240, 230]
    assert llama.room_for_prompt(60, 16, around=10) == 60
    assert t5.room_for_prompt(512, 16, around=300) == 512


def test_a_frame_that_leaves_no_room_is_one_clear_message(tmp_path: Path) -> None:
    subject: Subject = open_subject(str(saved("bart", tmp_path)))
    suite = Suite("s", "", Classification(), replace(TWO, frame="word " * 300 + "{prompt}", variants=()))
    with pytest.raises(ModelError, match=r"128 positions, and 6 tokens are to be written, beside a frame of \d+"):
        running._some(subject, suite, [ITEM])
    with pytest.raises(ModelError, match="128 positions for a source"):
        subject.nats(["Who?"], ["word " * 300])


# --- The words that a student was trained with ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "chat", "data", "expected"),
    [
        ("llama", False, {"prefix": {"text": "predict: ", "chat": "Only the answer.\n"}}, "predict: {prompt}"),
        ("llama", True, {"prefix": {"text": "predict: ", "chat": "Only the answer.\n"}}, "Only the answer.\n{prompt}"),
        ("llama", True, {"prefix": "predict: ", "template": "none"}, "predict: {prompt}"),
        ("llama", False, {"prefix": {"chat": "Only the answer.\n"}}, None),
        ("t5", True, {"prefix": {"text": "predict: ", "chat": "Only the answer.\n"}}, "predict: {prompt}"),
    ],
)
def test_the_frame_is_the_prefix_that_the_student_was_trained_with(
    tmp_path: Path, kind: str, chat: bool, data: dict[str, Any], expected: str | None
) -> None:
    folder = saved(kind, tmp_path, chat=chat)
    assert trained_frame(Data.model_validate(data), folder) == expected


def test_a_recipe_without_a_prefix_looks_at_no_student(tmp_path: Path) -> None:
    assert trained_frame(Data(), tmp_path / "none") is None


@pytest.mark.parametrize("frame", ["predict: {prompt}", "It's\n{prompt}\\n", "{prompt}\tAnswer:"])
def test_an_option_that_is_shown_is_what_a_shell_makes_the_frame_of(frame: str) -> None:
    shell = subprocess.run(["bash", "-c", f"printf %s {as_option(frame)[8:]}"], capture_output=True, text=True)
    assert shell.stdout == frame
    assert shlex.split(as_option("predict: {prompt}")) == ["--frame", "predict: {prompt}"]


@pytest.mark.parametrize("frames", [None, ["{prompt}"]])
def test_a_student_that_is_asked_without_its_words_is_told_of_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], frames: list[str] | None
) -> None:
    """Only where no frame is named, and only of the models that the run has trained."""
    recipe = RECIPE.replace("format: prompt_response}", "format: prompt_response, prefix: 'predict: '}")
    run = write_run(tmp_path / "first", recipe=recipe)
    plain = write_run(tmp_path / "second")
    for folder in (run.path, run.baseline.path, plain.path):
        tiny.save(tiny.llama(1), folder / "student")
    tiny.save(tiny.llama(1), run.path / "untouched")
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"prompt": "Who?", "options": LABELS, "response": "fox"}) + "\n")
    parts = [f"{run.path}{part}" for part in ("", ":sft", ":untouched")]
    models = [*parts, str(plain.path), run]
    asked: dict[str, Any] = {"data": file, "out": tmp_path / "out", "device": "cpu", "max_new_tokens": 2}
    api.evaluate_suites(models, ["classification"], frames=frames, **asked)
    said = [line for line in capsys.readouterr().err.splitlines() if "trained with" in line]
    told = "trained with words before its prompts, and asked here without them; with them: --frame 'predict: {prompt}'"
    assert said == ([] if frames else [f"{name}: {told}" for name in (parts[0], parts[1], "first")])
    (tmp_path / "text.txt").write_text("The sky is blue.\n")
    api.evaluate_suites(models[:1], ["plain_text"], **(asked | {"data": tmp_path / "text.txt"}))
    assert "trained with" not in capsys.readouterr().err


def test_a_table_says_in_which_words_its_items_were_asked(tmp_path: Path) -> None:
    settings = {"model": {"name": "m"}, "suite": "s", "num_items": 2, "settings": TWO.told()}
    said = told(running.Result(tmp_path, settings, {}))
    assert said.endswith("asked as 'predict: {prompt}' and as '{prompt} Answer:'")
    plain = running.Result(tmp_path, settings | {"settings": Settings().told()}, {})
    assert "asked as" not in told(plain)
