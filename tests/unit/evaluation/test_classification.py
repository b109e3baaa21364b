"""Figures of answers with a few options against values computed by hand, and which option an answer names."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from potstill.evaluation.metrics.classification import (
    accuracy,
    calibration_bins,
    calibration_error,
    confusion_matrix,
    label_scores,
    macro_f1,
    named_option,
    option_probabilities,
)

LABELS = ["entailment", "neutral", "contradiction"]
GOLD = ["entailment", "entailment", "entailment", "neutral", "neutral", "contradiction"]
ANSWERS = ["entailment", "entailment", "neutral", "neutral", None, "rubbish"]


def test_confusion_has_a_last_column_for_what_is_no_label() -> None:
    confusion = confusion_matrix(GOLD, ANSWERS, LABELS)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert accuracy(confusion) == pytest.approx(3 / 6)


def test_scores_of_each_label_by_hand() -> None:
    entailment, neutral, contradiction = label_scores(confusion_matrix(GOLD, ANSWERS, LABELS))
    assert (entailment.precision, entailment.recall, entailment.f1) == pytest.approx((1, 2 / 3, 4 / 5))
    assert (neutral.precision, neutral.recall, neutral.f1) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert math.isnan(contradiction.precision)  # never given
    assert (contradiction.recall, contradiction.f1) == (0, 0)
    assert [scores.num_gold for scores in (entailment, neutral, contradiction)] == [3, 2, 1]


def test_macro_f1_leaves_out_a_label_that_is_nowhere() -> None:
    confusion = confusion_matrix(GOLD, ANSWERS, LABELS)
    assert macro_f1(confusion) == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert macro_f1(confusion_matrix(GOLD, ANSWERS, [*LABELS, "other"])) == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert math.isnan(macro_f1(confusion_matrix([], [], LABELS)))
    assert math.isnan(accuracy(confusion_matrix([], [], LABELS)))


@pytest.mark.parametrize(
    ("gold", "answers", "labels"), [(["x"], ["x"], LABELS), (["a"], ["a"], ["a", "a"]), (["a"], ["a", "a"], ["a"])]
)
def test_labels_that_do_not_fit_are_refused(gold: list[str], answers: list[str], labels: list[str]) -> None:
    with pytest.raises(ValueError, match=r"labels|zip"):
        confusion_matrix(gold, answers, labels)


def test_calibration_error_by_hand() -> None:
    # Two bins: {0.5, 0.3} with accuracy 1/2 and confidence 0.4, {0.9, 0.7, 0.8} with 1/3 and 0.8.
    confidences, right = [0.5, 0.3, 0.9, 0.7, 0.8], [True, False, True, False, False]
    expected = 2 / 5 * abs(1 / 2 - 0.4) + 3 / 5 * abs(1 / 3 - 0.8)
    assert calibration_error(confidences, right, num_bins=2) == pytest.approx(expected)
    # In one bin it is the difference of the means; with bins of one example each, of every single one.
    assert calibration_error(confidences, right, num_bins=1) == pytest.approx(abs(2 / 5 - 3.2 / 5))
    assert calibration_error(confidences, right, num_bins=1000) == pytest.approx((0.5 + 0.3 + 0.1 + 0.7 + 0.8) / 5)


def test_calibration_error_has_fifteen_bins_unless_told_otherwise() -> None:
    draws = np.random.default_rng(0)
    confidences, right = draws.random(400).tolist(), (draws.random(400) < 0.5).tolist()
    assert calibration_error(confidences, right) == calibration_error(confidences, right, num_bins=15)
    assert len(calibration_bins(confidences, right)) == 15
    assert calibration_error(confidences, right) != calibration_error(confidences, right, num_bins=10)


def test_answers_as_right_as_they_are_sure_have_a_small_error_and_the_always_sure_that_of_their_mistakes() -> None:
    draws = np.random.default_rng(1)
    sure = draws.random(100_000)
    assert calibration_error(sure.tolist(), (draws.random(100_000) < sure).tolist()) < 0.01
    assert calibration_error([1.0] * 4, [True, True, True, False]) == pytest.approx(1 / 4)


def test_a_confidence_on_an_edge_is_in_the_bin_below_it_and_0_in_the_first() -> None:
    edges = [part / 15 for part in range(16)]
    counts = [found.num for found in calibration_bins(edges, [True] * 16)]
    assert counts == [2, *[1] * 14]
    assert calibration_bins([], [], 1)[0].num == 0
    assert math.isnan(calibration_error([], []))


@pytest.mark.parametrize(
    ("confidences", "right", "bins"),
    [([1.1], [True], 15), ([-0.1], [True], 15), ([math.nan], [True], 15), ([0.5], [], 15), ([0.5], [True], 0)],
)
def test_what_is_no_confidence_is_refused(confidences: list[float], right: list[bool], bins: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        calibration_error(confidences, right, bins)


def test_probabilities_of_options_are_the_softmax_of_their_log_likelihoods() -> None:
    logs = [math.log(0.06), math.log(0.03), math.log(0.01)]
    assert option_probabilities(logs).tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert option_probabilities([-1e5, -1e5 - math.log(3)]).tolist() == pytest.approx([0.75, 0.25])
    assert option_probabilities([-math.inf, -3.0]).tolist() == [0, 1]
    assert np.isnan(option_probabilities([-math.inf, -math.inf])).all()


def test_the_length_changes_which_option_is_chosen() -> None:
    logs, lengths = [-4.0, -6.0], [1, 3]  # a token of the second is the more likely one
    assert option_probabilities(logs).argmax() == 0
    assert option_probabilities(logs, lengths).tolist() == pytest.approx(
        [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]
    )


@pytest.mark.parametrize(
    ("logs", "lengths"),
    [([], None), ([math.nan], None), ([math.inf], None), ([-1.0], [0]), ([-1.0, -2.0], [1])],
)
def test_likelihoods_that_do_not_fit_are_refused(logs: list[float], lengths: list[int] | None) -> None:
    with pytest.raises(ValueError, match="give"):
        option_probabilities(logs, lengths)


@pytest.mark.parametrize(
    ("answer", "option", "rule"),
    [
        ("Entailment.", 0, "exact"),
        (" **neutral**\n", 1, "exact"),
        ("a contradiction", 2, "exact"),
        ("entailment, because the premise says so", 0, "beginning"),
        ('"Neutral" it is', 1, "beginning"),
        ("Neutral. So the answer is neutral.", 1, "beginning"),
        ("It is neutral at first. The answer is contradiction.", 2, "answer is"),
        ("The answer is neutral. But no, the answer is: Entailment", 0, "answer is"),
        ("Answer: neutral", 1, "answer is"),
        ("the answer is a contradiction", 2, "answer is"),
        ("The answer is (b).", 1, "answer is"),
        ("The answer is (b) neutral.", 1, "answer is"),
        ("The answer is **B**.", 1, "answer is"),
        ("The answer is a", 0, "answer is"),
        ("(b)", 1, "letter"),
        ("B.", 1, "letter"),
        ("c) I think", 2, "letter"),
        ("I think (c), yes (c)", 2, "letter"),
        ("neutral or contradiction", None, "ambiguous"),
        ("Neutral/contradiction", None, "ambiguous"),
        ("neutral. So the answer is contradiction", None, "ambiguous"),
        ("The answer is (a) entailment or (b) neutral.", None, "ambiguous"),
        ("The answer is either (a) entailment or (b) neutral.", None, "ambiguous"),
        ("The answer is (b) contradiction.", None, "ambiguous"),
        ("(a) or (b)", None, "ambiguous"),
        ("entailments are", None, "nothing"),
        ("the answer is not neutral", None, "nothing"),
        ("A man walks", None, "nothing"),
        ("(z)", None, "nothing"),
        ("...", None, "nothing"),
        ("", None, "nothing"),
    ],
)
def test_the_option_an_answer_names(answer: str, option: int | None, rule: str) -> None:
    named = named_option(answer, LABELS)
    assert (named.option, named.rule) == (option, rule)


@pytest.mark.parametrize(
    ("answer", "options", "option"),
    [
        ("bank account is where", ["bank", "bank account"], 1),  # the longest
        ("bank is where", ["bank", "bank account"], 0),
        ("BANK  ACCOUNT", ["bank", "bank account"], 1),
        ("c++ it is", ["c", "c++"], 1),
        ("C++", ["c", "C++"], 1),
        ("The answer must be in a letter. So the answer is (a) mail.", ["mail", "answer"], 0),
        ("same", ["same", "same"], None),
        ("-", ["-", "+"], 0),  # as written, where punctuation is all there is
        ("anything", [], None),
        ("anything", ["", "b"], None),
    ],
)
def test_options_within_and_beside_each_other(answer: str, options: list[str], option: int | None) -> None:
    assert named_option(answer, options).option == option


def test_labels_of_palm_for_anli_are_read_and_agree_with_the_gold_ones(data_dir: Path) -> None:
    folder = data_dir / "dss_raw" / "anli1"
    outputs = json.loads((folder / "llm" / "test_CoT_0.json").read_text(encoding="utf-8"))
    lines = (folder / "anli1_test.json").read_text(encoding="utf-8").splitlines()
    named = [named_option(output.split("Premise:")[0], LABELS) for output in outputs]
    gold = [json.loads(line)["label"] for line in lines]
    assert Counter(one.rule for one in named) == {"answer is": 1000}
    # 656 by the text after "So the answer is" alone; eight more say "so the answer is", or "The answer is".
    assert sum(one.option == label for one, label in zip(named, gold, strict=True)) == 664


def test_options_of_palm_for_commonsense_questions_are_read(data_dir: Path) -> None:
    folder = data_dir / "dss_raw" / "cqa"
    files = [folder / "llm" / f"test_CoT_{part}.json" for part in range(2)]
    outputs = [output.split("Q:")[0] for file in files for output in json.loads(file.read_text(encoding="utf-8"))]
    rows = [json.loads(line) for line in (folder / "cqa_test.json").read_text(encoding="utf-8").splitlines()]
    named = [named_option(output, row["choices"]) for output, row in zip(outputs, rows, strict=True)]
    right = sum(
        one.option is not None and row["choices"][one.option] == row["answer"]
        for one, row in zip(named, rows, strict=True)
    )
    assert Counter(one.rule for one in named) == {"answer is": 1196, "ambiguous": 25}
    assert right == 958
