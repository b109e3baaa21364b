"""What a comparison says of itself in words: no more than its cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from potstill.reporting.comparison.table import Measure, Table
from potstill.reporting.comparison.verdict import shown, shown_difference, verdict
from tests.unit.reporting.fake_comparison import FIRST, MEANS, SECOND, SFT, TEACHER, UNTOUCHED, measure, table


def changed(means: Mapping[str, float], **given: object) -> Measure:
    return measure(MEANS | means, **given)


def test_a_sure_win() -> None:
    kept, beats, whole = verdict(table(measure()))
    assert kept.startswith("By forward KL (nats), second closed the largest share of the gap between untouched student")
    assert kept.endswith(
        "teacher: 79.8% [79.2%, 80.3%]; next is first with 66.3% [65.7%, 66.9%] (the order is not tested)."
    )
    assert beats.startswith("second is surely better than the baseline (first, equal-time SFT): -1.3")
    assert "after Holm's correction" in beats
    assert whole.endswith("baseline: 2 surely for the better, 0 surely for the worse, 0 not sure.")


def test_a_sure_loss_is_said_to_be_one() -> None:
    sentences = verdict(table(changed({"a:student": 4.0}), entries=(TEACHER, UNTOUCHED, SFT, FIRST)))
    assert "first, equal-time SFT closed the largest share" in sentences[0]
    assert "not tested" not in sentences[0]
    assert sentences[1] == "first, equal-time SFT is the baseline itself."
    assert sentences[2].startswith("first is surely worse than the baseline")
    assert len(sentences) == 3


def test_higher_is_better_where_it_is_said_to_be() -> None:
    up = {key: -mean for key, mean in MEANS.items()}
    assert "second is surely better" in verdict(table(measure(up, better="higher")))[1]


def test_what_is_not_sure_names_no_winner() -> None:
    kept, beats, whole = verdict(table(changed({"b:student": 1.8, "a:sft": 2.5}, noise=1.0)))
    assert kept.startswith("By forward KL (nats), first closed the largest share")
    assert "is not surely better or worse than the baseline" in beats
    assert whole == "None of the 2 differences between trained models and the baseline is sure."
    assert "surely for" not in whole


def test_a_gap_that_may_be_none_gives_no_share() -> None:
    kept, *_ = verdict(table(changed({"a:teacher": 6.0}, noise=1.0)))
    assert kept.startswith("By forward KL (nats), second has the best mean of the 3 trained models: 1.")
    assert kept.endswith("; no share of the gap to the teacher is given, for there may be no gap.")
    assert "%" not in kept


def test_a_teacher_worse_than_the_untouched_student_is_nothing_to_come_close_to() -> None:
    kept, *_ = verdict(table(changed({"a:teacher": 9.0})))
    assert "second has the best mean" in kept
    assert "for the teacher is no better than the untouched student" in kept


def test_a_measure_without_ends_gives_no_share() -> None:
    kept, *_ = verdict(table(measure(between={})))
    assert "for teacher or untouched student was not measured on the same examples" in kept


def test_nothing_closed_is_not_called_a_share() -> None:
    kept, *_ = verdict(table(changed({"a:sft": 7.0, "a:student": 8.0, "b:student": 9.0})))
    assert "first, equal-time SFT closed none of the gap between untouched student and teacher (-1" in kept
    assert kept.endswith("and no other model closed more.")


def test_a_share_that_may_be_none_is_said_to_be() -> None:
    kept, *_ = verdict(table(changed({"a:sft": 9.0, "a:student": 9.0, "b:student": 5.7}, noise=2.0)))
    assert "second closed the largest share" in kept
    assert ", which may be none" in kept


def test_no_baseline_no_test() -> None:
    sentences = verdict(table(baseline=None))
    assert sentences[1:] == ["No baseline was chosen, so no difference between models has been tested."]


def test_one_student_alone() -> None:
    (kept, *_) = verdict(table(measure(), entries=(TEACHER, UNTOUCHED, FIRST), baseline=None))
    assert kept.startswith("By forward KL (nats), first closed 66.")
    assert kept.endswith("of the gap between untouched student and teacher.")
    assert "largest" not in kept
    assert "next" not in kept
    (kept, *_) = verdict(table(measure(between={}), entries=(FIRST,), baseline=None))
    assert kept.startswith("By forward KL (nats), first has 1.996 [")


def test_ties_are_ties() -> None:
    same = measure()
    same = replace(same, scores=same.scores | {"a:student": same.scores["b:student"]})
    kept, one, other, _ = verdict(table(same))
    assert "first and second closed the largest share of the gap between untouched student and teacher: 79.8%" in kept
    assert "] each; next is first, equal-time SFT" in kept
    assert one.startswith("first is surely better")
    assert other.startswith("second is surely better")
    kept, *_ = verdict(table(replace(same, between={})))
    assert "first and second have the best mean of the 3 trained models" in kept
    all_same = replace(same, scores=same.scores | {"a:sft": same.scores["b:student"]})
    kept, base, *rest = verdict(table(all_same))
    assert "closed the same share" in kept
    assert "next" not in kept
    assert base == "first, equal-time SFT is the baseline itself."
    assert all("is not surely better or worse" in sentence for sentence in rest[:2])


def test_models_without_common_examples_are_not_compared() -> None:
    apart = measure()
    moved = {f"other {key}": value for key, value in apart.scores["b:student"].items()}
    apart = replace(apart, scores=apart.scores | {"b:student": moved}, between={})
    ranked, others, *_ = verdict(table(apart))
    assert others == "Measured on other examples, and so not ranked with these: second."
    assert "second" not in ranked


def test_a_baseline_of_other_examples_is_not_compared_with() -> None:
    apart = measure()
    key = SFT.key
    moved = {f"other {name}": value for name, value in apart.scores[key].items()}
    scores = {name: some for name, some in apart.scores.items() if name != key} | {key: moved}
    said = " ".join(verdict(table(replace(apart, scores=scores, between={}))))
    assert "Measured on other examples, and so not ranked with these" in said


def test_too_few_examples_for_so_many_comparisons_are_said_to_be() -> None:
    few = measure()
    cut = {key: dict(list(some.items())[:4]) for key, some in few.scores.items()}
    *_, last = verdict(table(replace(few, scores=cut)))
    assert last.startswith("None could have been: with 4 examples p is at least 0.12")
    assert not any("None could have been" in line for line in verdict(table(few)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_mean_that_is_not_finite_wins_nothing(value: float) -> None:
    broken = measure()
    broken = replace(broken, scores=broken.scores | {"b:student": dict.fromkeys(broken.scores["b:student"], value)})
    kept, *rest = verdict(table(broken))
    assert kept.startswith("By forward KL (nats), first closed the largest share")
    assert "second" not in f"{kept}{rest[0]}"
    lost = replace(broken, scores={"b:student": broken.scores["b:student"]})
    assert verdict(table(lost)) == ["No trained student has been measured."]
    assert verdict(table(lost, measure(name="second measure")))[0].startswith("By second measure")


@pytest.mark.parametrize("empty", [Table((), (), None, ()), table(entries=()), table(entries=(TEACHER, UNTOUCHED))])
def test_without_students_that_is_all_there_is_to_say(empty: Table) -> None:
    assert verdict(empty) == ["No trained student has been measured."]


def test_names_are_on_one_line() -> None:
    made = verdict(table(measure(name="a\n\x1b[31mb"), entries=(TEACHER, UNTOUCHED, replace(SECOND, name="x\ny"))))
    assert made[0].startswith("By a b, x y closed")


@pytest.mark.parametrize(
    ("unit", "mean", "difference"),
    [("plain", "2.000", "+0.500"), ("percent", "200.00%", "+50.0 points"), ("perplexity", "7.389", "\u00d71.65")],
)
def test_units(unit: str, mean: str, difference: str) -> None:
    own = measure(unit=unit)
    assert (shown(own, 2.0), shown_difference(own, 0.5)) == (mean, difference)
    assert shown(own, math.nan) == shown_difference(own, math.inf) == "-"
