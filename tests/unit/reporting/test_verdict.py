"""What a run says of itself in words: exactly what its figures say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potstill.reporting.tables import verdict
from potstill.run import Run
from tests.unit.reporting.fake_runs import EVALUATIONS, figures, write_run


def verdict_of(folder: Path, **evaluations: Any) -> list[str]:
    return verdict(write_run(folder / "run", evaluations=evaluations))


def test_a_whole_run(tmp_path: Path) -> None:
    assert verdict_of(tmp_path, **EVALUATIONS) == [
        "On these 128 held-out examples (9,123 response tokens), training removed 78.5% of the forward KL to the "
        "teacher: 7.913 nats per token before, 1.704 after.",
        "Its most likely next token is the teacher's at 48.27% of these tokens (untouched: 3.12%).",
        "Against the same student fine-tuned on the same text for the same time: agreement with the teacher 48.27% "
        "against 44.02%, this student ahead by 4.25 points; perplexity 41.27 against 37.90, the fine-tuned one ahead "
        "by 3.37 (8.89%).",
    ]


def test_a_student_that_lost_is_said_to_have_lost(tmp_path: Path) -> None:
    worse, sft = figures(9.0, 0.40, 50.0), figures(2.0, 0.45, 40.0)
    change, _, against = verdict_of(
        tmp_path, student_before=figures(7.5, 0.03, 9e4), student_after=worse, equal_time_sft=sft
    )
    assert "training added 20.0% to the forward KL" in change
    assert "the fine-tuned one ahead by 5.00 points" in against
    assert "the fine-tuned one ahead by 10.0 (25.0%)" in against
    assert "this student ahead" not in against


def test_a_small_difference_names_no_winner(tmp_path: Path) -> None:
    ours, theirs = figures(1.7, 0.480, 40.0), figures(1.7, 0.475, 40.0)
    (_, _, against) = verdict_of(tmp_path, student_after=ours, equal_time_sft=theirs)
    assert "48.00% against 47.50%, too close to call (within two standard errors)" in against
    assert "perplexity 40.00 against 40.00, level" in against
    assert "ahead" not in against


def test_a_small_change_is_said_to_be_in_doubt(tmp_path: Path) -> None:
    change, *_ = verdict_of(tmp_path, student_before=figures(1.71, 0.4, 40), student_after=figures(1.70, 0.4, 40))
    assert change.endswith("1.700 after (within two standard errors).")


def test_nearly_all_is_not_all(tmp_path: Path) -> None:
    change, *_ = verdict_of(tmp_path, student_before=figures(9, 0, 9), student_after=figures(1e-4, 1, 9))
    assert "over 99.9%" in change
    assert "100%" not in change


def test_without_a_teacher(tmp_path: Path) -> None:
    counts = {"num_examples": 12, "num_tokens": 340}
    assert verdict_of(
        tmp_path, student_before={"perplexity": 900.0} | counts, student_after={"perplexity": 30.0} | counts
    ) == [
        "On these 12 held-out examples (340 response tokens), the student's perplexity went from 900.0 to 30.00; "
        "no teacher was compared with."
    ]


@pytest.mark.parametrize(
    "after",
    [
        {"perplexity": None, "forward_kl_nats": None, "num_examples": None},
        {"forward_kl_nats": float("nan"), "perplexity": 3.0},
        {"top1_agreement": 0.5, "num_examples": 1},
    ],
)
def test_missing_figures_are_passed_over(tmp_path: Path, after: dict[str, Any]) -> None:
    assert not any("nan" in sentence or "None" in sentence for sentence in verdict_of(tmp_path, student_after=after))


def test_nothing_measured(tmp_path: Path) -> None:
    assert verdict(Run(tmp_path)) == ["The trained student has not been measured yet."]
