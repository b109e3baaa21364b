"""What a teacher is shown, and what is read from what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.annotation.raw import RawLine
from potstill.annotation.reading import human, read
from potstill.annotation.task import Task
from potstill.annotation.templates import Shot, Template, is_shot, plain_text, read_shots, read_template, turns_of
from potstill.data.catalogue.item import Item
from potstill.errors import ConfigError, DataError

NLI = Item("r", "a {label} premise", ("neutral",), options=("entailment", "neutral"), answer=1, rationale="as it is")
FREE = Item("f", "how many?", ("( 8 - 3 )",))


def line(text: str, **other: Any) -> RawLine:
    return RawLine(**({"id": "r", "sample": 0, "prompt_sha256": "x", "text": text, "finished": True} | other))


def turns(task: Task, item: Item, label: str = "") -> tuple[tuple[str, str], ...]:
    template, options = task.used_template, task.options_of(item)
    return turns_of(item.prompt, template, task.shots, want=task.want, label=label, options=options, mark=task.mark)


def test_what_a_row_says_is_not_taken_for_a_place_and_the_label_is_seen_in_one_mode_only() -> None:
    ((_, given),) = turns(Task("rationale", given_label=True), NLI, "neutral")
    assert "a {label} premise" in given
    assert "answer is: neutral." in given
    ((_, alone),) = turns(Task("rationale"), NLI)
    assert "neutral" not in alone


def test_options_are_named_where_there_are_some_and_not_spoken_of_where_there_are_none() -> None:
    ((_, with_options),) = turns(Task("label"), NLI)
    assert with_options.endswith("Answer with one of: entailment, neutral.\nAnswer:")
    ((_, without),) = turns(Task("label"), FREE)
    assert without == "how many?\n\nAnswer.\nAnswer:"
    ((_, thought),) = turns(Task("rationale_and_label"), FREE)
    assert 'end with "So the answer is" and the answer.\nReason:' in thought


def test_shots_are_turns_and_in_plain_text_stand_apart() -> None:
    shot = Shot("s", "how few?", label="2", rationale="One and one.")
    task = Task("rationale_and_label", template=Template("Q: {prompt}\nA:"), shots=(shot,))
    found = turns(task, FREE)
    assert found == (
        ("user", "Q: how few?\nA:"),
        ("assistant", "One and one. So the answer is 2."),
        ("user", "Q: how many?\nA:"),
    )
    assert plain_text(found) == "Q: how few?\nA: One and one. So the answer is 2.\n\n---\n\nQ: how many?\nA:"


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("no place", False, "no place for the row"),
        ("{prompt} {lable}", False, "a place {lable}.*Did you mean 'label'"),
        ("{prompt}", True, "has no {label}"),
        ("{prompt} {label}", False, "is not to see"),
    ],
)
def test_templates_that_would_mislead_are_refused(text: str, given: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        Task("rationale", given_label=given, template=Template(text))


def test_a_template_is_read_without_its_last_line_break(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text('{"q": 1} {prompt}\nA:\n')
    assert read_template(tmp_path / "t.txt").text == '{"q": 1} {prompt}\nA:'
    with pytest.raises(ConfigError, match=r"none.txt cannot be read"):
        read_template(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        ({"prompt": "p", "rationale": "r"}, r"s.jsonl:2: missing field 'label'"),
        ({"prompt": "p", "label": 3, "rationale": "r"}, r"s.jsonl:2: field 'label' is int"),
        ({"prompt": "p", "label": "l", "rationale": "r", "options": "no"}, r"s.jsonl:2: field 'options'"),
    ],
)
def test_shots_that_lack_what_is_wanted_are_named(tmp_path: Path, shot: dict[str, Any], message: str) -> None:
    file = tmp_path / "s.jsonl"
    good = {"prompt": "p", "label": "l", "rationale": "r"}
    file.write_text("".join(json.dumps(one) + "\n" for one in (good, shot)))
    with pytest.raises(DataError, match=message):
        read_shots(file, "rationale_and_label", False)


def test_a_row_is_a_shot_by_id_or_by_prompt() -> None:
    assert is_shot(FREE, [Shot("f", "other words")])
    assert is_shot(FREE, [Shot("", " how many?\n")])
    assert not is_shot(FREE, [Shot("", "how few?"), Shot("g", "x")])


@pytest.mark.parametrize(
    ("text", "rationale", "label", "unread"),
    [
        ("He ate. So the answer is ( 8 - 3 ).", "He ate.", "( 8 - 3 )", None),
        ('Yes. SO THE ANSWER IS: "5".\nNext one', "Yes.", "5", None),
        ("a. So the answer is 5. So the answer is 6.", "a.", "5", None),
        ("He ate five.", "He ate five.", None, "it does not say 'So the answer is'"),
        ("He ate. So the answer is", "He ate.", None, "no label was written"),
        ("So the answer is 5.", None, "5", "no rationale was written"),
        ("", None, None, "no rationale was written"),
    ],
)
def test_a_free_label_stands_behind_the_mark(
    text: str, rationale: str | None, label: str | None, unread: str | None
) -> None:
    found = read(line(text), FREE, Task("rationale_and_label"))
    assert (found.rationale, found.label, found.unread) == (rationale, label, unread)


@pytest.mark.parametrize(
    ("text", "label"),
    [("Neutral.", "neutral"), ("entailment, I think", "entailment"), ("entailment or neutral", None), ("hm", None)],
)
def test_a_label_that_is_written_names_one_option(text: str, label: str | None) -> None:
    found = read(line(text), NLI, Task("label", choose="parse"))
    assert (found.label, found.unread is None) == (label, label is not None)


def test_a_label_by_likelihood_is_the_one_with_the_fewest_nats() -> None:
    found = read(line("So it is. So the answer is neutral", nats=[0.0, 2.5]), NLI, Task("rationale_and_label"))
    assert (found.rationale, found.label) == ("So it is.", "entailment")
    assert read(line("", nats=None), NLI, Task("label")).unread is not None
    assert read(line("", problem="too long"), NLI, Task("label")).unread == "too long"


def test_what_people_have_said_is_kept_with_its_origin() -> None:
    found = human(NLI, Task("rationale"))
    assert (found.rationale, found.label, found.origin, found.mode) == ("as it is", None, "human", "human")
    assert Task("rationale").is_there(NLI)
    assert not Task("rationale").is_there(FREE)
    assert Task("label").is_there(FREE)
    assert not Task("rationale_and_label").is_there(FREE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"want": "label", "given_label": True}, "--given-label is for rationales"),
        ({"want": "rationale", "labels": ("a", "b")}, "has no label"),
        ({"want": "label", "labels": ("a",)}, "two or more"),
        ({"want": "label", "labels": ("a", "A")}, "each once"),
        ({"want": "label", "mark": " "}, "--mark is empty"),
        ({"want": "labels"}, "--want is 'labels'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task(**settings)


def test_a_worked_example_shows_its_own_options_and_else_the_rows() -> None:
    shots = (Shot("", "Which animal?", label="fox", options=("fox", "owl")), Shot("", "Is it wet?", label="yes"))
    template = Template("{prompt} One of: {options}.")
    turns = turns_of("Is it dry?", template, shots, want="label", label="", options=("yes", "no"), mark="So")
    assert [content for role, content in turns if role == "user"] == [
        "Which animal? One of: fox, owl.",
        "Is it wet? One of: yes, no.",
        "Is it dry? One of: yes, no.",
    ]
