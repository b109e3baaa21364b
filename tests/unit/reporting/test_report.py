"""report.html: whole, in itself, honest about what is missing, and deaf to what its text asks for."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from potstill.reporting import report
from potstill.reporting.report import MAX_CHARACTERS, render, write_report
from potstill.run import MODELS, Run
from tests.unit.reporting.fake_runs import PROMPTS, RECIPE, sample, write_lines, write_run
from tests.unit.reporting.hostile import PAYLOADS, PLACES, Page, hostile_run, intrusions, missing_payloads

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(write_run(tmp_path_factory.mktemp("runs") / "first", curves=True))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(hostile_run(tmp_path_factory.mktemp("runs")))


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_it_is_written_into_the_run_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    assert write_report(run) == run.report_file
    assert run.report_file.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert not list(run.path.glob(".report*"))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, html: str) -> None:
    assert render(write_run(tmp_path / "first", curves=True)) == html


def test_everything_of_a_run_is_in_it(html: str) -> None:
    text = Page(html).text
    for expected in (
        "potstill \u00b7 kd first",
        "training removed 78.5% of the forward KL",
        "student after 1.704 \u00b1 0.034",
        "train/data/forward_kl_nats",
        "validation/perplexity (logarithmic)",
        *PROMPTS,
        "A pot still makes one batch at a time.",
        "In one, in batches.",
        "choose_by: block_influence",
        "duplicate prompts 2",
        "skipped long prompts 16",
        "peak memory 3.21 GB",
        "torch 2.8.0",
        "best on the validation rows (by forward_kl_nats)",
        "on the first 32 held-out prompts",
    ):
        assert expected in text, expected
    assert text.count("not measured") == 1  # the legend of the table
    assert "not recorded" not in text


def test_every_table_has_headers_for_its_rows_and_columns(html: str) -> None:
    headers = [attributes.get("scope") for tag, attributes in Page(html).elements if tag == "th"]
    assert set(headers) == {"row", "col"}
    assert "<td></td>" not in html.replace("<thead><tr><td></td>", "")


def test_ids_are_unique_and_labels_find_them(html: str) -> None:
    elements = Page(html).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in elements if "aria-labelledby" in a} <= set(ids)


def test_language_width_and_policy_are_set(html: str) -> None:
    elements = Page(html).elements
    assert ("html", {"lang": "en"}) in elements
    assert ("meta", {"charset": "utf-8"}) in elements
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": CSP}) in elements
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in elements
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("ink", "paper", "least"), [
    ("ink", "page", 7), ("muted", "page", 4.5), ("muted", "mark", 4.5), ("student", "page", 4.5), ("ink", "panel", 7),
    ("baseline", "page", 4.5), ("untouched", "page", 3),
])  # fmt: skip
def test_colours_can_be_read(html: str, theme: str, ink: str, paper: str, least: float) -> None:
    colours = dict(re.findall(r"--(\w+): (#\w{6});", html.split("prefers-color-scheme: dark")[theme == "dark"]))
    lighter, darker = sorted((_luminance(colours[ink]), _luminance(colours[paper])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= least  # WCAG 2.2, 1.4.3 and 1.4.11


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# --- what is missing --------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_reported_as_such(tmp_path: Path) -> None:
    text = Page(render(Run(tmp_path))).text
    for expected in (
        "has not been measured yet",
        "No model has been measured",
        "No step has been recorded",
        "No answers have been written",
        "There is no recipe.yaml",
    ):
        assert expected in text
    assert text.count("not recorded") == 5  # student, data, overlap, cost, environment


@pytest.mark.parametrize("name", ["recipe.yaml", "data.json", "cost.json", "env.json", "student.json", "samples.jsonl"])
def test_any_file_may_be_missing(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "first")
    (run.path / name).unlink()
    text = Page(render(run)).text
    assert "not recorded" in text or "No answers have been written" in text or "There is no recipe.yaml" in text


def test_a_run_without_a_teacher(tmp_path: Path) -> None:
    figures = {"perplexity": 30.0, "forward_kl_nats": None, "rouge_l": float("nan"), "num_examples": 4}
    html = render(write_run(tmp_path / "sft", evaluations={"student_after": figures}, recipe="method: sft\n"))
    row = re.search(r'<tr class="after">.*?</tr>', html, re.DOTALL)
    assert row
    assert Page(row[0]).text.split() == ["student", "after", "30.00", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    "recipe",
    ["stages: 3", "- a\n- b", "a: &a [*a]", "x: !!python/object:os.system {}", "a: [", "a: 1\na: 2", "stages: [3]"],
)
def test_a_recipe_that_cannot_be_read_is_shown_as_it_is(tmp_path: Path, recipe: str) -> None:
    assert recipe.splitlines()[0] in Page(render(write_run(tmp_path / "first", recipe=recipe))).text


def test_a_recipe_that_grows_when_written_out_does_no_harm(tmp_path: Path) -> None:
    doubling = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    recipe = doubling + "method: *a59\nstages: [{teacher: *a59, evaluation: {batch_size: *a59}}]\n"
    assert len(render(write_run(tmp_path / "first", recipe=recipe))) < 1_000_000


@pytest.mark.parametrize("given", [{}, {"outputs": None}, {"outputs": {"teacher": {}}, "prompt": None, "id": 3}])
def test_a_sample_may_lack_anything(tmp_path: Path, given: dict[str, object]) -> None:
    run = write_run(tmp_path / "first")
    write_lines(run.samples_file, [given])
    assert "Reference not measured" in Page(render(run)).text


def test_long_texts_and_many_samples_are_cut_and_said_to_be(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    write_lines(run.samples_file, [sample(i, "x" * (MAX_CHARACTERS + 1)) for i in range(120)])
    text = Page(render(run)).text
    assert f"[cut here: {MAX_CHARACTERS + 1:,} characters" in text
    assert "The first 100 of 120" in text
    assert "rows.jsonl:99" in text
    assert "rows.jsonl:100" not in text


def test_an_empty_answer_is_said_to_be_empty(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    write_lines(run.samples_file, [sample(0, "p") | {"outputs": {"teacher": {"greedy": "", "sampled": "s"}}}])
    assert "teacher (empty) s" in Page(render(run)).text


# --- what its text asks for -------------------------------------------------------------------------------------------


def test_no_payload_becomes_more_than_text(hostile: str) -> None:
    assert intrusions(hostile) == []
    assert missing_payloads(hostile) == []


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("metric", "name")])
def test_the_payload_can_be_read_in_every_place(hostile: str, place: str) -> None:
    first = " ".join(PAYLOADS[0].split())
    assert f"{place} {first}" in Page(hostile).text


def test_no_control_character_reaches_the_page(hostile: str) -> None:
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", hostile)


def test_templates_in_text_are_not_run(hostile: str) -> None:
    assert "49" not in Page(hostile).text.replace("0.49", "")
    assert "{{ 7*7 }}" in Page(hostile).text


def test_nothing_is_loaded_from_anywhere(html: str, hostile: str) -> None:
    for page in (html, hostile):
        head, body = page.split("</style>", 1)
        assert "@import" not in head
        assert "url(" not in head
        tags = re.sub(r'aria-label="[^"]*"', "", " ".join(re.findall(r"<[^>]*>", body)))  # labels may hold any text
        assert not re.findall(r"\b(?:src|href|srcset|action|data|poster)\s*=\s*[\"'](?!#)", tags)
        assert not re.findall(r"url\((?!#)", tags)


def test_these_tests_see_an_open_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "environment", partial(report.environment, autoescape=False))
    found = intrusions(render(hostile_run(tmp_path)))
    assert {"element <script>", "element <img>", "element <iframe>", "attribute onload of <svg>"} <= set(found)


def test_models_are_named_by_us_alone(hostile: str) -> None:
    rows = re.findall(r'<table class="answers">.*?</table>', hostile, re.DOTALL)[0]
    assert rows.count('<th scope="row">') == len(MODELS)


def test_the_recipe_keeps_its_lines(html: str) -> None:
    assert RECIPE.splitlines()[8].strip() in html.replace("&#39;", "'")
    assert "\n  - name: data\n    signal: logits\n" in html


def test_answers_are_told_as_they_were_made(tmp_path: Path) -> None:
    """How many there are, where rows ran out; and of samples nothing where they were left out."""
    ten = {"perplexity": 30.0, "rouge_l": 20.0, "num_generated_examples": 10}
    few = Page(render(write_run(tmp_path / "few", evaluations={"student_after": ten}))).text
    assert "the first 10 held-out prompts" in " ".join(few.split())
    assert "sampled ones at temperature" in few
    recipe = RECIPE.replace("batch_size: 16}", "batch_size: 16, leave_out: [samples]}")
    assert recipe != RECIPE
    assert "sampled ones" not in render(write_run(tmp_path / "none", evaluations={}, recipe=recipe))
