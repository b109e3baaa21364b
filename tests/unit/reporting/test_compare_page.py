"""The page of a comparison: whole, in itself, no more certain than its cells, and deaf to what its text asks for."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from potstill.reporting import report
from potstill.reporting.comparison import Comparison
from potstill.reporting.comparison.page import MAX_CHARACTERS, MAX_SAMPLES, NO_GAIN, render, write_page
from potstill.reporting.comparison.samples import Answer
from potstill.reporting.comparison.table import Entry, Table
from potstill.reporting.published import Ours, Published, beside, load_published
from potstill.reporting.published.schema import Row, Source
from potstill.reporting.published.schema import Table as Figures
from tests.unit.reporting.fake_comparison import (
    ALL,
    FIRST,
    MEANS,
    SFT,
    TEACHER,
    agreement,
    comparison,
    hostile_comparison,
    measure,
    sample,
    table,
)
from tests.unit.reporting.hostile import PAYLOADS, TEXT, Page, intrusions, missing_payloads

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
FREE = [replace(entry, cost=None, num_parameters=None) for entry in ALL]  # without charts: drawing takes its time
UNCHARTED = table(entries=FREE)
PLACES = (
    "name",
    "method",
    "measure",
    "told",
    "source",
    "id",
    "prompt",
    "reference",
    "answer",
    "note",
    "hygiene",
    "title",
)


def page(made: Comparison, title: str = "two runs") -> str:
    return render(made, title=title)


def text_of(made: Comparison) -> str:
    return Page(page(made)).text


def cell(html: str, model: str, at: int = 0) -> str:
    """What is said of a model in the column of a measure."""
    row = re.search(rf'<tr[^>]*><th scope="row">(?:\d+\. )?{model}<.*?</tr>', html, re.DOTALL)
    assert row
    return Page(re.findall(r"<td>.*?</td>", row[0], re.DOTALL)[at]).text


@pytest.fixture(scope="module")
def html() -> str:
    return page(comparison())


@pytest.fixture(scope="module")
def hostile() -> str:
    return page(hostile_comparison(TEXT), title=f"title {TEXT}")


# --- What it shows ----------------------------------------------------------------------------------------------------


def test_it_is_written_whole(tmp_path: Path, html: str) -> None:
    file = tmp_path / "new" / "compare.html"
    assert write_page(comparison(), file, title="two runs") == file
    assert file.read_text(encoding="utf-8") == html  # which also shows that the same comparison gives the same bytes
    assert html.endswith("</html>")
    assert [found.name for found in file.parent.iterdir()] == ["compare.html"]


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "compare.html"
    file.write_text("old")
    broken = replace(comparison(UNCHARTED), samples=(sample(), None))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        write_page(broken, file, title="two runs")
    assert file.read_text() == "old"


def test_its_parts_stand_in_order(html: str) -> None:
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings == [
        "Figures",
        "What cannot be compared",
        "Quality against cost",
        "Answers side by side",
        "How these numbers were measured",
    ]
    assert html.index("second is surely better than the baseline") < html.index("<h2")


def test_a_cell_says_what_its_figures_are_worth(html: str) -> None:
    assert re.fullmatch(
        r"1\.\d{3} \[1\.\d{3}, 1\.\d{3}\] gap 79\.8% \[79\.2, 80\.3\] -1\.\d+, p = 0\.\d+ surely better",
        cell(html, "second"),
    )
    assert cell(html, "untouched student").endswith("surely worse")
    assert cell(html, "first", at=1).endswith("not sure")
    assert "points, p = " in cell(html, "first", at=1)
    for unmeasured in ("gap", "p ="):
        assert unmeasured not in cell(html, "teacher")
    assert "p =" not in cell(html, "first, equal-time SFT")


def test_an_exact_figure_has_no_interval() -> None:
    assert cell(page(comparison(table(measure(noise=0.0), entries=FREE))), "teacher") == "0"


def test_costs_follow_the_measures(html: str) -> None:
    assert [cell(html, "second", at) for at in range(2, 8)] == ["32 M", "64 MB", "180.0", "40 min 00 s", "80 k", "5 k"]
    assert [cell(html, "teacher", at) for at in range(5, 8)] == ["-", "-", "-"]


def test_the_baseline_is_named_in_its_row_and_below(html: str) -> None:
    text = Page(html).text
    assert "1. first, equal-time SFT sft, the baseline" in text
    assert "difference from the baseline (first, equal-time SFT)" in text
    assert "the baseline (" not in text_of(comparison(table(entries=FREE, baseline=None))).split("Figures")[1]


def test_points_of_the_charts_have_the_numbers_of_the_rows(html: str) -> None:
    numbered = re.findall(r"<li>(.*?)</li>", re.search(r'<ol class="numbered">.*?</ol>', html, re.DOTALL)[0])  # type: ignore[index]
    assert numbered == ["first, equal-time SFT", "first", "second"]
    assert re.findall(r'<th scope="row">(\d)\. ', html) == ["1", "2", "3"]
    assert html.count("<svg ") == 6  # two measures by time, size, teacher tokens


def test_a_share_without_interval_has_a_footnote() -> None:
    html = page(comparison(table(measure(MEANS | {"a:teacher": 6.0}, noise=1.0), agreement(), entries=FREE)))
    assert re.search(r"gap -?[\d,]+% 1 ", cell(html, "second"))
    assert "forward KL (nats): the gap between teacher and untouched student" in Page(html).text
    assert "gap " in cell(html, "second", at=1)


def test_a_teacher_that_is_worse_has_one_footnote_for_all() -> None:
    text = text_of(comparison(table(measure(MEANS | {"a:teacher": 9.0}), entries=FREE)))
    assert text.count(NO_GAIN) == 1


def test_counts_are_said_where_they_differ(html: str) -> None:
    assert html.count("40 examples</span>") == 2
    fewer = measure()
    fewer = replace(fewer, scores=fewer.scores | {"b:student": {"row 0": 1.2}})
    said = page(comparison(table(fewer, entries=FREE)))
    assert "1 example " in cell(said, "second")
    assert "40 examples" in cell(said, "first")


def test_answers_the_most_disputed_first_three_open(html: str) -> None:
    assert html.count("<details open>") == 3
    assert html.count("<details>") == 2
    text = Page(html).text
    assert "1. What does a pot still do? (0) rows.jsonl:0; scores differ by 0.500" in text
    assert "teacher not scored One batch at a time." in text
    assert "second 0.250 (empty)" in text


def test_many_samples_and_long_texts_are_cut_and_said_to_be() -> None:
    many = tuple(sample(at, "x" * (MAX_CHARACTERS + 1)) for at in range(120))
    text = text_of(comparison(UNCHARTED, samples=many))
    assert f"The first {MAX_SAMPLES} of 120" in text
    assert f"[cut here: it has {MAX_CHARACTERS + 1:,} characters]" in text
    assert "rows.jsonl:99" in text
    assert "rows.jsonl:100" not in text


def test_each_source_has_its_share_of_the_samples() -> None:
    several = [sample(at, source=source) for source in ("dolly", "svamp", "vicuna") for at in range(50)]
    html = page(comparison(UNCHARTED, samples=tuple(several)))
    assert html.count("<details") == 3 * (MAX_SAMPLES // 3)
    assert html.count("<details open>") == 3
    assert Page(html).text.count("The first 33 of 50.") == 3


def test_every_table_has_headers_and_ids_are_found(html: str) -> None:
    elements = Page(html).elements
    assert {attributes.get("scope") for tag, attributes in elements if tag == "th"} == {"row", "col"}
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in elements if "aria-labelledby" in a} <= set(ids)
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": CSP}) in elements


def test_published_figures_stand_beside_ours() -> None:
    (theirs, *_) = [found for found in load_published("minillm") if found.suite and found.method == "minillm"]
    assert theirs.suite
    mine = Ours(theirs.suite, theirs.figure, "minillm", "own/model", None, 0.2, 0.1, 0.3, 7)
    html = page(comparison(UNCHARTED, published=beside([theirs], [mine])))
    text = Page(html).text
    assert "Published figures beside these" in text
    assert f"{theirs.value:.6g}" in text
    assert "0.200 [0.100, 0.300]" in text
    assert "ours own/model, theirs" in text
    assert theirs.source.title in text


# --- What is missing --------------------------------------------------------------------------------------------------


def test_an_empty_table_is_said_to_be_empty() -> None:
    text = text_of(Comparison(Table((), (), None, ()), (), (), ()))
    for expected in (
        "No trained student has been measured.",
        "There is no model to compare.",
        "Nothing was found that stands against a comparison.",
        "No trained model has both a figure and a known cost.",
        "No answers were written.",
    ):
        assert expected in text
    assert "What was chosen on which rows" not in text


def test_models_that_were_not_measured_or_trained_have_dashes() -> None:
    bare = Entry("c:student", "bare", "student")
    html = page(comparison(table(entries=(*ALL, bare))))
    assert [cell(html, "bare", at) for at in range(8)] == ["-"] * 8
    assert "not drawn: 4" in Page(html).text
    assert "<svg" not in page(comparison(UNCHARTED))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_means_that_are_not_finite_are_said_to_be(value: float) -> None:
    broken = measure()
    broken = replace(broken, scores=broken.scores | {"b:student": dict.fromkeys(broken.scores["b:student"], value)})
    html = page(comparison(table(broken)))
    assert cell(html, "second").startswith("not finite")
    assert cell(html, "second").endswith("not sure")
    assert ": not drawn: 3" in Page(html).text.replace("(nats); not", "(nats): not")


def test_a_perplexity_beyond_measure_does_no_harm() -> None:
    html = page(comparison(table(measure(MEANS | {"b:student": 1e5}, unit="perplexity"))))
    assert cell(html, "second").startswith("1.014e+304")


def test_twelve_models_with_long_names() -> None:
    entries = [
        replace(FIRST, key=f"{i}:student", name=f"{i:02}" + "n" * 198, num_parameters=i + 1.0) for i in range(12)
    ]
    scores = {entry.key: {"row": float(i)} for i, entry in enumerate(entries)}
    many = replace(measure(between={}), scores=scores)
    html = page(comparison(table(many, entries=entries, baseline=entries[0])))
    assert html.count('<tr class="student">') == 12
    assert re.findall(r'<th scope="row">(\d+)\. ', html) == [str(i) for i in range(1, 13)]


# --- What its text asks for -------------------------------------------------------------------------------------------


def test_no_payload_becomes_more_than_text(hostile: str) -> None:
    assert intrusions(hostile) == []
    assert missing_payloads(hostile) == []


@pytest.mark.parametrize("place", PLACES)
def test_the_payload_can_be_read_in_every_place(hostile: str, place: str) -> None:
    assert f"{place} {' '.join(PAYLOADS[0].split())}" in Page(hostile).text


def test_no_control_character_reaches_the_page(hostile: str) -> None:
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", hostile)
    hostile.encode("utf-8")


def test_templates_in_text_are_not_run(hostile: str) -> None:
    assert "{{ 7*7 }}" in Page(hostile).text
    assert not re.search(r"\b49\b(?![.%])", Page(hostile).text)


def test_nothing_is_loaded_from_anywhere(html: str, hostile: str) -> None:
    for made in (html, hostile):
        head, body = re.sub(r"<title>.*?</title>", "", made, flags=re.DOTALL).split("</style>", 1)
        assert "@import" not in head
        assert "url(" not in head
        tags = re.sub(r'aria-label="[^"]*"', "", " ".join(re.findall(r"<[^>]*>", body)))  # labels may hold any text
        assert not re.findall(r"\b(?:src|href|srcset|action|data|poster)\s*=\s*[\"'](?!#)", tags)
        assert not re.findall(r"url\((?!#)", tags)


def test_published_text_is_text() -> None:
    text = TEXT.replace("\ud800", "\ufffd")  # which no file can hold
    figures = Figures(
        source="s", where=text, suite="svamp", figure="accuracy", dataset=text, split=None, num_items=None,
        unit="share", scale=1, settings=text, figures=(Row(method=text, model=text, value=0.5, tag=None),),
    )  # fmt: skip
    theirs = Published(Source(title=text), figures, figures.figures[0], {})
    lines = beside([theirs], [Ours("svamp", "accuracy", text, text, text, 0.5, None, None, None)])
    html = page(comparison(UNCHARTED, published=lines))
    assert intrusions(html) == []
    assert missing_payloads(html) == []


def test_these_tests_see_an_open_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "environment", partial(report.environment, autoescape=False))
    found = intrusions(page(hostile_comparison(TEXT)))
    assert {"element <script>", "element <img>", "element <iframe>", "attribute onload of <svg>"} <= set(found)


def test_a_surrogate_in_an_answer_is_written(tmp_path: Path) -> None:
    broken = replace(sample(), answers=(Answer(TEACHER, "half \ud800", math.nan), Answer(SFT, "\x1b[31mred", 0.5)))
    file = write_page(comparison(UNCHARTED, samples=(broken,)), tmp_path / "compare.html", title="\ud800")
    assert "half \ufffd" in file.read_text(encoding="utf-8")
