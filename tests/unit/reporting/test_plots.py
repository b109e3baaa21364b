"""Curves as inline SVG."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from potstill.reporting import plots
from potstill.reporting.plots import BASELINE, STUDENT, Chart, Series, svg
from potstill.reporting.report import render
from potstill.run import Run
from tests.unit.reporting.fake_runs import write_lines, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(tmp_path / "first", curves=True)


def chart(*points: tuple[float, float | None], title: str = "train/loss", untouched: float | None = None) -> Chart:
    return Chart(title, (Series(STUDENT, "-", points),), untouched)


def test_training_shows_the_loss_its_terms_and_the_baseline(run: Run) -> None:
    own, kl, ce, baseline = plots.training_charts(run)
    assert [c.title for c in (own, kl, ce)] == [
        "train/loss",
        "train/data/forward_kl_nats",
        "train/data/cross_entropy_nats",
    ]
    assert "equal-time SFT" in baseline.title
    assert baseline.series[0].colour == BASELINE
    assert (len(own.series[0].points), len(baseline.series[0].points)) == (60, 131)


def test_a_single_term_is_not_drawn_twice(run: Run) -> None:
    write_lines(run.metrics_file, [{"step": 1, "train/loss": 2.0, "train/data/forward_kl_nats": 2.0}])
    assert [c.title for c in plots.training_charts(run)][:-1] == ["train/loss"]


def test_validation_shows_the_untouched_value_where_it_is_known(run: Run) -> None:
    charts = {c.title.removeprefix("validation/"): c for c in plots.validation_charts(run)}
    assert list(charts) == ["forward_kl_nats", "reverse_kl_nats", "top1_agreement", "acceptance_rate", "perplexity"]
    assert charts["forward_kl_nats"].untouched == 7.913
    assert [len(line.points) for line in charts["perplexity"].series] == [3, 3]
    run.eval_file("student_before").unlink()
    assert all(c.untouched is None for c in plots.validation_charts(run))


def test_what_sources_and_schedules_tell_is_drawn_under_its_own_names(tmp_path: Path) -> None:
    run = Run(tmp_path)
    told = {"source/data_is_rollout": 1.0, "select/data/forward_kl_share": 0.2, "schedule/data/taid_t": 0.4}
    write_lines(run.metrics_file, [{"step": step, "train/loss": 2.0} | told for step in (1, 2)])
    assert [c.title for c in plots.text_charts(run)] == ["source/data_is_rollout", "select/data/forward_kl_share"]
    (schedule,) = plots.schedule_charts(run)
    assert schedule.title == "schedule/data/taid_t"
    assert schedule.series[0].points == ((1.0, 0.4), (2.0, 0.4))
    assert "source/data_is_rollout" in render(run)


def test_no_metrics_no_charts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert plots.training_charts(run) == plots.validation_charts(run) == plots.optimiser_charts(run) == []
    assert plots.text_charts(run) == plots.schedule_charts(run) == []


def test_values_far_apart_get_a_logarithmic_axis() -> None:
    assert chart((1, 1000.0), (2, 2.0)).log
    assert chart((1, 3.0), (2, 2.0), untouched=61_000.0).log
    assert not chart((1, 3.0), (2, 2.0)).log
    assert not chart((1, 1000.0), (2, 0.0)).log
    assert not chart((1, None)).log


def test_the_same_chart_gives_the_same_bytes() -> None:
    drawn = chart((1, 3.0), (2, 2.0), untouched=5.0)
    assert svg(drawn, "a") == svg(drawn, "a")


@pytest.mark.parametrize(
    "points", [[], [(1, None)], [(1, 2.0)], [(1, 2.0), (2, None), (3, 1.0)], [(1, 1e30), (2, 1e-30)]]
)
def test_any_points_give_well_formed_svg(points: list[tuple[float, float | None]]) -> None:
    root = ElementTree.fromstring(svg(chart(*points), "a"))
    assert root.tag.endswith("}svg")


def test_ids_are_the_charts_own_and_every_reference_finds_its_target() -> None:
    drawn = svg(chart((1, 3.0), (2, 2.0)), "training0")
    ids = re.findall(r'\bid="([^"]*)"', drawn)
    references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', drawn)
    assert references
    assert len(ids) == len(set(ids))
    assert all(name.startswith("training0-") for name in ids)
    assert {a or b for a, b in references} <= set(ids)


def test_colours_are_left_to_the_page() -> None:
    drawn = svg(chart((1, 3.0), (2, 2.0), untouched=9.0), "a")
    assert "#00000" not in drawn
    assert all(colour in drawn for colour in ("var(--student)", "var(--untouched)", "currentColor"))
    assert "<style" not in drawn
    assert "<metadata" not in drawn


def test_a_hostile_title_stays_in_its_attribute() -> None:
    title = '"><script>alert(1)</script>\x1b[31m\u2028$x^2$'
    root = ElementTree.fromstring(svg(chart((1, 3.0), title=title), "a"))
    assert root.attrib["aria-label"] == '"><script>alert(1)</script> $x^2$ by step'
    assert not [element for element in root.iter() if "script" in element.tag]


def test_pyplot_is_not_touched() -> None:
    before = "matplotlib.pyplot" in sys.modules
    svg(chart((1, 3.0)), "a")
    assert ("matplotlib.pyplot" in sys.modules) == before
