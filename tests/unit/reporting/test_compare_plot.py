"""Quality against cost as inline SVG."""

from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from potstill.reporting.comparison.plot import Chart, Point, charts, numbers, svg
from potstill.reporting.comparison.table import Cost
from tests.unit.reporting.fake_comparison import ALL, FIRST, SECOND, SFT, TEACHER, UNTOUCHED, agreement, measure, table

SVG = "{http://www.w3.org/2000/svg}"


def chart(*at: tuple[float, float], title: str = "Rouge-L", **given: tuple[float, ...]) -> Chart:
    points = tuple(Point(i, i == 1, x, y, (y, y * 1.1)) for i, (x, y) in enumerate(at, start=1))
    lines: dict[str, tuple[float, ...]] = {"teachers": (), "untouched": ()}
    return Chart(title, "training, seconds", points, **(lines | given), left_out=())


def labels(drawing: str) -> list[str]:
    """What is written in the plot, with the numbers of points at the end."""
    root = ElementTree.fromstring(drawing)
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_a_chart_for_each_measure_and_cost() -> None:
    found = dict(charts(table()))
    assert list(found) == ["By training time", "By size", "By the teacher's tokens"]
    assert [c.title for c in found["By size"]] == ["forward KL (nats)", "top-1 agreement"]
    kl, agrees = found["By training time"]
    assert [(p.number, p.is_sft, p.x) for p in kl.points] == [(1, True, 60.0), (2, False, 62.0), (3, False, 2400.0)]
    assert kl.log_x
    assert agrees.teachers[0] == pytest.approx(100, abs=10)  # per cent, as in the table
    assert agrees.points[0].interval is not None
    low, high = agrees.points[0].interval
    assert 20 < low < agrees.points[0].y < high < 60


def test_costs_in_which_no_model_differs_are_not_drawn() -> None:
    same = [replace(e, num_parameters=1e6, cost=e.cost and Cost(60.0, 5, 5)) for e in ALL]
    assert [title for title, _ in charts(table(entries=same))] == ["By training time"]


def test_models_that_were_not_trained_are_lines() -> None:
    only = charts(table(measure(), entries=(TEACHER, UNTOUCHED, SECOND)))[0][1][0]
    assert len(only.points) == len(only.teachers) == len(only.untouched) == 1
    assert numbers(table()) == {SFT.key: 1, FIRST.key: 2, SECOND.key: 3}


def test_models_without_figure_or_cost_are_left_out_and_named() -> None:
    entries = (TEACHER, UNTOUCHED, SFT, replace(FIRST, cost=None), replace(SECOND, cost=Cost(None, None, None)))
    time, *rest = charts(table(measure(), entries=entries))
    assert time[1][0].left_out == (2, 3)
    assert [title for title, _ in rest] == ["By size"]
    broken = replace(measure(), scores=measure().scores | {SFT.key: {"row 0": math.nan}, FIRST.key: {"row 0": 1e200}})
    assert charts(table(broken))[0][1][0].left_out == (1, 2)
    assert charts(table(measure(), entries=(TEACHER, UNTOUCHED))) == []
    assert charts(table(entries=())) == []


def test_values_far_apart_get_a_logarithmic_axis() -> None:
    assert chart((1, 3.0), (100, 4.0)).log_x
    assert not chart((1, 3.0), (20, 4.0)).log_x
    assert not chart((0, 3.0), (100, 4.0)).log_x
    assert chart((1, 3.0), untouched=(61_000.0,)).log_y
    assert not chart((1, 3.0), untouched=(61_000.0,), teachers=(0.0,)).log_y


@pytest.mark.parametrize("at", [
    [(1, 2.0)], [(1, 2.0)] * 12, [(1e-9, 1e30), (1e12, 1e-30)], [(60, 0.0), (60, -5.0)], [(0, 0)],
    [(1, 9e99), (2, -9e99)],
])  # fmt: skip
def test_any_points_give_well_formed_svg(at: list[tuple[float, float]]) -> None:
    drawn = labels(svg(chart(*at, teachers=(1.0,), untouched=(1e-3,)), "a"))
    assert drawn[-len(at) :] == [str(i) for i in range(1, len(at) + 1)]


def test_numbers_of_points_in_one_place_do_not_cover_each_other() -> None:
    drawing = ElementTree.fromstring(svg(chart(*[(60, 2.0)] * 12), "a"))
    numbered = [e for e in drawing.iter(f"{SVG}text") if "9px" in e.attrib["style"]]
    places = [(float(e.attrib["x"]), float(e.attrib["y"])) for e in numbered]
    assert len(places) == 12
    for i, one in enumerate(places):
        assert all(abs(one[0] - x) >= 6 or abs(one[1] - y) >= 9 for x, y in places[:i])


def test_the_same_chart_gives_the_same_bytes() -> None:
    drawn = chart((1, 3.0), (2, 2.0), untouched=(5.0,))
    assert svg(drawn, "a") == svg(drawn, "a")


def test_ids_are_the_charts_own_and_every_reference_finds_its_target() -> None:
    drawn = svg(chart((1, 3.0), (2, 2.0)), "cost0-0")
    ids = re.findall(r'\bid="([^"]*)"', drawn)
    references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', drawn)
    assert references
    assert len(ids) == len(set(ids))
    assert all(name.startswith("cost0-0-") for name in ids)
    assert {a or b for a, b in references} <= set(ids)


def test_colours_are_left_to_the_page() -> None:
    drawn = svg(chart((1, 3.0), (2, 2.0), untouched=(9.0,), teachers=(8.0,)), "a")
    assert "#00000" not in drawn
    for colour in ("var(--student)", "var(--baseline)", "var(--untouched)", "currentColor"):
        assert colour in drawn
    assert "<style" not in drawn
    assert "<metadata" not in drawn


def test_names_stay_outside_and_a_hostile_title_in_its_attribute() -> None:
    title = '"><script>alert(1)</script>\x1b[31m\u2028$x^2$'
    drawn = svg(chart((1, 3.0), title=title), "a")
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"].startswith('"><script>alert(1)</script> $x^2$ by training, seconds')
    assert not [element for element in root.iter() if "script" in element.tag]
    assert "first" not in "".join(svg(c, "a") for _, some in charts(table(agreement())) for c in some)


def test_pyplot_is_not_touched() -> None:
    before = "matplotlib.pyplot" in sys.modules
    svg(chart((1, 3.0)), "a")
    assert ("matplotlib.pyplot" in sys.modules) == before
