"""The model card: what it says, and that nobody's text can break out of it."""

from __future__ import annotations

import re
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from ruamel import yaml
from ruamel.yaml import YAML

from potstill.reporting.card import card, code, quoted, write_card
from potstill.reporting.report import render
from potstill.reporting.tables import columns
from potstill.run import Run
from tests.unit.reporting.fake_runs import EVALUATIONS, RECIPE, STUDENT, write_run
from tests.unit.reporting.hostile import PAYLOADS, hostile_run

HEADINGS = ["How it was made", "Figures", "Use", "Limits", "Make it again"]


def parts(text: str) -> tuple[dict[str, Any], list[Any]]:
    """The front matter, and the tokens of the Markdown after it, inline ones included."""
    _, front, body = text.split("---\n", 2)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    return YAML(typ="safe", pure=True).load(StringIO(front)), tokens + inline


def texts(tokens: list[Any], kind: str) -> list[str]:
    """What stands directly in elements of one kind."""
    return [after.content for before, after in pairwise(tokens) if before.type == f"{kind}_open"]


def test_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    file = write_card(run, run.student)
    assert file == run.student / "README.md"
    text = file.read_text(encoding="utf-8")
    front, tokens = parts(text)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "potstill"],
    }
    assert texts(tokens, "heading") == ["`first`", *HEADINGS]
    for expected in (
        "training removed 78.5% of the forward KL",
        "- method: `kd`",
        "- teacher: `smollm2-135m-instruct`",
        "- student: layers `0, 1, 2, 3, 5, 8, 13, 21, 28, 29` of `smollm2-135m-instruct` (30 layers), chosen by",
        "- loss: 0.9 x `forward_kl` + 0.1 x `cross_entropy`",
        "3,000 rows; 2,981 used; 3 quarantined",
        "296 for `heldout`",
        "60 steps; 34,120 response tokens; 3 min 23 s",
        "AutoModelForCausalLM.from_pretrained(folder)",
        "potstill train runs/first/recipe.yaml run=again",
    ):
        assert expected in text, expected


def test_the_table_has_a_row_for_each_model_and_a_cell_for_each_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    _, tokens = parts(card(run))
    kinds = [token.type for token in tokens]
    assert kinds.count("tr_open") == 1 + len(EVALUATIONS)
    assert kinds.count("td_open") == len(EVALUATIONS) * (1 + len(columns(run)))


def test_an_empty_folder(tmp_path: Path) -> None:
    front, tokens = parts(card(Run(tmp_path)))
    assert front["tags"] == ["potstill"]
    assert texts(tokens, "heading")[1:] == HEADINGS


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("smollm2-135m-instruct", None),
        ("/home/somebody/models/big", None),
        ("./models/big", None),
        ("a/b: c\nx: y", None),
    ],
)
def test_the_base_model_is_named_where_a_hub_knows_it(tmp_path: Path, source: str, base: str | None) -> None:
    run = write_run(tmp_path / "first")
    run.write("student", STUDENT | {"from": source})
    assert parts(card(run))[0].get("base_model") == base


def test_a_folder_of_that_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "big").mkdir(parents=True)
    run = write_run(tmp_path / "first")
    run.write("student", STUDENT | {"from": "models/big"})
    assert "base_model" not in parts(card(run))[0]


def test_paths_do_not_name_people(tmp_path: Path) -> None:
    recipe = RECIPE.replace("smollm2-135m-instruct", "/home/somebody/big").replace("starter", "~/somebody/rows.jsonl")
    run = write_run(tmp_path / "first", recipe=recipe)
    run.write("student", STUDENT | {"from": "/home/somebody/big"})
    text = card(run)
    assert "somebody" not in text
    assert "`big`" in text
    assert "`rows.jsonl`" in text


def test_hostile_text_breaks_out_of_nothing(tmp_path: Path) -> None:
    text = card(hostile_run(tmp_path))
    front, tokens = parts(text)
    assert set(front) == {"library_name", "pipeline_tag", "tags"}
    assert len(texts(tokens, "heading")) == 1 + len(HEADINGS)
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "blockquote_open"}
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)


@pytest.mark.parametrize("payload", [*PAYLOADS, "`", "``a", "a```", "", " ", "```\n# x\n```"])
def test_a_code_span_holds_any_text(payload: str) -> None:
    inline = MarkdownIt("commonmark", {"html": True}).parse(code(payload))
    assert [token.type for token in inline] == ["paragraph_open", "inline", "paragraph_close"]
    assert [token.type for token in inline[1].children] == ["code_inline"]


@pytest.mark.parametrize("payload", [*PAYLOADS, "a: b", "- x", "# y", "\\", '"', "\U0001f600", "no", "---"])
def test_a_quoted_scalar_holds_any_text(payload: str) -> None:
    loaded = YAML(typ="safe", pure=True).load(f"a: {quoted(payload)}\nb: 1\n")
    assert set(loaded) == {"a", "b"}
    assert isinstance(loaded["a"], str)
    assert loaded["b"] == 1


def test_what_was_trained_on_is_told_where_it_is_not_the_data(tmp_path: Path) -> None:
    """A student of the teacher's text is not a student of the rows, whatever the counts of the data say."""
    run = write_run(tmp_path / "first")
    assert "- text:" not in card(run)
    streams = [
        {"name": "teacher_text", "source": {"name": "rollout", "policy": {"name": "teacher"}}},
        {"name": "mixed", "source": {"name": "mixture", "rollout": {"policy": {"name": "student"}}}},
    ]
    recipe = yaml.YAML(typ="safe").load(run.recipe_file)
    recipe["stages"][0]["streams"] = streams
    with open(run.recipe_file, "w", encoding="utf-8") as file:
        yaml.YAML().dump(recipe, file)
    counts = {"responses": 12, "kept": 9, "kept_response_tokens": 300, "dropped": {"empty": 3}, "seconds": 4.0}
    run.write("teacher_text/teacher_text/card", counts)
    told = "`teacher_text` is a `rollout` of the policy `teacher`: 9 responses of 12 that the teacher wrote beforehand"
    assert f"- text: {told}; `mixed` is a `mixture` of the policy `student`\n" in card(run)
    page = render(run)
    assert "Teacher&#39;s text" in page
    assert "dropped, empty" in page


REASONS = """  data:
    path: svamp:train
    prefix: {text: "predict: ", chat: "Give only the `answer`.\\n\\n"}
    labels: llm
    target: rationale_then_label
    annotations: palm
"""


@pytest.mark.parametrize(("template", "words"), [("none", '"predict: "'), ("chat", "Give only the `answer`.")])
def test_the_words_before_a_prompt_are_told_to_whoever_asks(tmp_path: Path, template: str, words: str) -> None:
    data = next(line for line in RECIPE.splitlines(keepends=True) if line.startswith("  data:"))
    run = write_run(tmp_path / "first", recipe=RECIPE.replace(data, REASONS))
    run.write("data", run.read("data") | {"template": template})
    text = card(run)
    assert re.search(r"begin with `+ ?.*" + re.escape(words) + r".*`+: put these words before yours", text)
    for fact in (
        "labels: those of a language model",
        "answers: rationale then label, in one text",
        "annotations: `palm`",
    ):
        assert f"- {fact}" in text


def test_a_card_without_such_words_does_not_speak_of_them(tmp_path: Path) -> None:
    text = card(write_run(tmp_path / "first"))
    assert not any(word in text for word in ("put these words", "labels:", "annotations:", "answers:"))


def test_weights_that_were_drawn_are_said_to_be(tmp_path: Path) -> None:
    pruned = next(line for line in RECIPE.splitlines() if line.startswith("  student:"))
    fresh = RECIPE.replace(pruned, "  student: {kind: fresh, model: models/shape}")
    run = write_run(tmp_path / "first", recipe=fresh)
    run.write("student", {"from": "models/shape"})
    assert "student: weights drawn anew, in the architecture of `models/shape`" in card(run)


def test_a_control_is_told_from_the_method(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    recipe = yaml.YAML(typ="safe").load(run.recipe_file)
    terms = [{"objective": {"name": "cross_entropy"}, "coefficient": 0.5}]
    why = {"name": "dataset", "view": "rationale", "shuffled": True}
    again = {"name": "dataset", "view": "response", "order": 1}
    recipe["stages"][0]["streams"] = [
        {"name": "label", "source": {"name": "dataset", "view": "response"}, "terms": terms},
        {"name": "why", "source": why, "terms": terms},
        {"name": "again", "source": again, "terms": terms},
    ]
    recipe["stages"][0]["data"]["subsample"] = 0.25
    with open(run.recipe_file, "w", encoding="utf-8") as file:
        yaml.YAML().dump(recipe, file)
    text = card(run)
    assert (
        "- loss: 0.5 x `cross_entropy` of `label` + 0.5 x `cross_entropy` of `why` + 0.5 x `cross_entropy` of `again`"
        in text
    )
    assert "- text: `why` is the rows' rationale, each another row's; `again` is the same rows in another order" in text
    assert "- share of the training rows: 25" in text
