"""The panel in the report: whole where it was measured, absent where it was not, and never a single winner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from potstill.reporting.panel import GROUPS, panel
from potstill.reporting.report import render
from potstill.run import Run
from tests.unit.reporting.fake_runs import write_run
from tests.unit.reporting.hostile import PAYLOADS, Page, intrusions

HEADING = "On its own samples"


def figures(nll: float, **others: Any) -> dict[str, Any]:
    """What the evaluation writes of one model."""
    return {
        "teacher_nll_own_nats": nll,
        "teacher_nll_own_nats_stderr": 0.05,
        "student_nll_teachers_nats": nll + 1,
        "student_nll_teachers_nats_stderr": 0.06,
        "reverse_kl_own_nats": nll - 2,
        "reverse_kl_own_nats_stderr": 0.01,
        "forward_kl_own_nats": nll - 1.75,
        "forward_kl_own_nats_stderr": 0.01,
        "entropy_own_nats": 1.875,
        "entropy_own_nats_stderr": 0.02,
        "excess_error_percent": -5.25,
        "distinct_1": 0.125,
        "distinct_2": 0.5,
        "distinct_3": 0.75,
        "self_bleu": 0.3125,
        "repeated_4gram_rate": 0.0625,
        "response_tokens_mean": 80.5,
        "finished_share": 0.875,
        "num_responses": 32,
    } | others


def with_panel(folder: Path, panels: dict[str, dict[str, Any]]) -> Run:
    run = write_run(folder)
    for model, measured in panels.items():
        run.write(f"panel/{model}", measured)
    return run


PANELS = {  # not in the table's order
    "equal_time_sft": figures(5.5),
    "student_after": figures(3.0),
    "teacher": figures(2.0, excess_error_percent=float("nan")),
    "student_before": figures(7.0),
}


def section(html: str) -> str:
    found = re.search(r'<section aria-labelledby="panel">.*?</section>', html, re.DOTALL)
    assert found
    return found[0]


def shown_rows(html: str) -> list[list[str]]:
    """The cells of the panel's table, row by row, as text."""
    lines = re.findall(r"<tr>.*?</tr>", section(html), re.DOTALL)
    return [[Page(cell).text for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", line, re.DOTALL)] for line in lines]


def test_the_table_has_a_row_for_every_group_and_a_column_for_every_model(tmp_path: Path) -> None:
    head, *rows = shown_rows(render(with_panel(tmp_path / "first", PANELS)))
    assert head == ["figure", "teacher", "student before", "student after", "equal-time SFT"]
    assert len(rows) == len(GROUPS)
    assert rows[0][1:] == ["2.000 \u00b1 0.050", "7.000 \u00b1 0.050", "3.000 \u00b1 0.050", "5.500 \u00b1 0.050"]
    assert rows[1][3] == "4.000 \u00b1 0.060"
    assert [row[3] for row in rows[4:]] == [
        "-5.250", "1.875 \u00b1 0.020", "0.125 / 0.500 / 0.750", "0.3125", "6.25%", "80.50", "87.50%",
    ]  # fmt: skip
    assert rows[4][1] == "-"  # 0/0 for the teacher itself


def test_every_figure_of_a_model_is_in_the_table() -> None:
    keys = {key for group in GROUPS for key in group.keys}
    assert keys == {key for key in figures(3.0) if not key.endswith("_stderr")} - {"num_responses"}


def test_only_errors_against_the_teacher_have_a_better_side(tmp_path: Path) -> None:
    rows = shown_rows(render(with_panel(tmp_path / "first", PANELS)))[1:]
    lower = [row[0] for row in rows if "\u2193" in row[0]]
    assert [name.split(" (")[0] for name in lower] == [
        "teacher's NLL of own samples",
        "own NLL of the teacher's samples",
        "reverse KL on own samples",
        "forward KL on own samples",
    ]
    assert not [row[0] for row in rows if "\u2191" in row[0]]
    assert all("as the teacher's" in row[0] for row in rows[5:])
    assert "differences only" in rows[4][0]


def test_it_says_that_each_loss_wins_its_own_figure_and_how_it_was_measured(tmp_path: Path) -> None:
    html = render(with_panel(tmp_path / "first", PANELS))
    assert "Each loss wins the figure it optimises" in Page(section(html)).text
    text = Page(html).text
    assert "answered the same 32 held-out prompts by plain sampling at temperature 1" in text
    assert "up to 96 tokens" in text
    assert "excess accumulated error How much larger" in text


def test_the_trained_student_stands_out_in_its_column_only(tmp_path: Path) -> None:
    html = section(render(with_panel(tmp_path / "first", PANELS)))
    marked = re.findall(r'<t[hd][^>]*class="after"[^>]*>(.*?)</t[hd]>', html)
    assert len(marked) == 1 + len(GROUPS)
    assert marked[0] == "student after"
    assert marked[1].startswith("3.000")


@pytest.mark.parametrize("panels", [{}, {"student_after": {}}, {"student_after": {"self_bleu": None}}])
def test_without_a_panel_there_is_no_section(tmp_path: Path, panels: dict[str, dict[str, Any]]) -> None:
    run = with_panel(tmp_path / "first", panels)
    html = render(run)
    assert panel(run) is None
    assert HEADING.lower() not in Page(html).text.lower()
    assert "excess accumulated error" not in html


def test_without_a_teacher_only_what_was_measured_has_rows(tmp_path: Path) -> None:
    alone = {key: value for key, value in figures(3.0).items() if not re.search("_nats|_percent", key)}
    run = with_panel(tmp_path / "first", {"student_after": alone, "student_before": alone | {"self_bleu": None}})
    head, *rows = shown_rows(render(run))
    assert head == ["figure", "student before", "student after"]
    assert len(rows) == 5
    assert rows[1][1:] == ["-", "0.3125"]


def test_different_numbers_of_responses_are_not_given_as_one(tmp_path: Path) -> None:
    run = with_panel(tmp_path / "first", {"teacher": figures(2.0), "student_after": figures(3.0, num_responses=8)})
    assert "answered the same held-out prompts by plain sampling" in Page(render(run)).text


def test_text_in_the_place_of_figures_stays_out(tmp_path: Path) -> None:
    text = "\n".join(PAYLOADS)
    hostile = dict.fromkeys(figures(3.0), text) | {text: 1.0, "self_bleu": 0.5}
    run = with_panel(tmp_path / "first", {"student_after": hostile, text.replace("/", "")[:40]: figures(1.0)})
    html = render(run)
    assert intrusions(html) == []
    assert shown_rows(html)[1:] == [["self-BLEU as the teacher's", "0.5000"]]
