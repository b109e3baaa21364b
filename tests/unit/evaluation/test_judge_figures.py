"""From marks to figures, by hand; and that a mark follows the text, not the place it stood in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from potstill.errors import DataError
from potstill.evaluation.judge.answers import Answer
from potstill.evaluation.judge.figures import Judged, figures, score
from potstill.evaluation.judge.pairs import Pair, pair_of
from potstill.evaluation.metrics.significance import bootstrap_interval


def made(count: int) -> dict[str, tuple[str, Pair]]:
    return {f"p{n}": (f"pairs.jsonl:{n + 1}", pair_of(f"p{n}", "q", f"ours {n}", f"theirs {n}")) for n in range(count)}


def test_figures_by_hand() -> None:
    read = [Judged(8, 4, True), Judged(5, 5, False), Judged(2, 6, False), Judged(9, 3, True)]
    found = figures(read)
    assert found["sum_ratio"]["value"] == pytest.approx(100 * 24 / 18)
    assert found["ours_mean"]["mean"] == 6
    assert found["theirs_mean"]["mean"] == 4.5
    assert found["difference"]["mean"] == 1.5
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    assert found["by_position"]["ours_first"] == {
        "num": 2,
        "sum_ratio": pytest.approx(1700 / 7),
        "ours_mean": 8.5,
        "theirs_mean": 3.5,
    }
    assert found["by_position"]["ours_second"]["sum_ratio"] == pytest.approx(700 / 11)
    assert found["position_bias"]["value"] == pytest.approx((5 - -2) / 2)
    for name in ("sum_ratio", "ours_mean", "difference"):
        figure = found[name]
        assert figure["low"] <= figure.get("value", figure.get("mean")) <= figure["high"]


def test_the_ratio_is_of_sums_and_not_the_mean_of_ratios() -> None:
    assert figures([Judged(10, 1, True), Judged(1, 10, False)])["sum_ratio"]["value"] == 100


def test_the_ratios_interval_resamples_both_sums_together() -> None:
    """Marks twice the other's have twice the sum on any examples; against ones it is the interval of the mean."""

    def ends(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
        found = figures([Judged(*pair, True) for pair in zip(ours, theirs, strict=True)])["sum_ratio"]
        return found["low"], found["high"]

    marks = np.random.default_rng(1).integers(1, 6, 50).astype(float)
    assert ends(2 * marks, marks) == pytest.approx((200, 200))
    assert ends(marks, np.ones(50)) == pytest.approx(tuple(100 * end for end in bootstrap_interval(marks)))
    low, high = ends(marks, marks[::-1])
    assert low < 100 < high
    draws = np.random.default_rng(0).integers(0, 50, (2000, 50))
    ratios = 100 * marks[draws].sum(1) / marks[::-1][draws].sum(1)
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_without_marks_there_are_no_figures() -> None:
    found = figures([])
    assert found["sum_ratio"] == {"value": None, "low": None, "high": None}
    assert found["difference"]["p"] is None
    assert found["by_position"]["ours_first"]["num"] == 0
    alone = figures([Judged(4, 8, True)])
    assert alone["sum_ratio"] == {"value": 50, "low": 50, "high": 50}
    assert alone["position_bias"]["value"] is None


def test_a_mark_goes_to_the_text_and_not_to_the_place() -> None:
    """A judge that likes ours twice as much, wherever it stands, and one that likes whatever it reads first."""
    pairs = made(60)
    assert 10 < sum(pair.ours_is_first for _, pair in pairs.values()) < 50
    fair = {
        name: Answer(id=name, answer='{"first": 8, "second": 4}' if pair.ours_is_first else '{"first": 4, "second": 8}')
        for name, (_, pair) in pairs.items()
    }
    found = score(pairs, fair)
    assert found["sum_ratio"]["value"] == 200
    assert found["wins"] == found["num_parsed"] == 60
    assert found["position_bias"]["value"] == 0
    biased = score(pairs, {name: Answer(id=name, first=7, second=4) for name in pairs})
    assert biased["position_bias"]["value"] == 3
    assert biased["sum_ratio"]["low"] < 100 < biased["sum_ratio"]["high"]


def test_failures_and_missing_answers_are_counted_and_never_marks() -> None:
    pairs = made(4)
    answers = {
        "p0": Answer(id="p0", answer='{"first": 6, "second": 6}', request={"model": "j"}, served_model="j-1"),
        "p1": Answer(id="p1", answer="ten for the first"),
        "p2": Answer(id="p2", answer=""),
    }
    with pytest.raises(DataError, match=r"1 of 4 pairs have no answer: pairs\.jsonl:4"):
        score(pairs, answers)
    found = score(pairs, answers, allow_missing=True)
    assert [found[f"num_{name}"] for name in ("pairs", "missing", "parsed", "parse_failures")] == [4, 1, 1, 2]
    assert found["parse_failures"] == ["p1", "p2"]
    assert found["ours_mean"] == {"mean": 6, "low": 6, "high": 6, "num": 1}
    assert found["judges"] == [{"model": "j", "served_model": "j-1"}]
