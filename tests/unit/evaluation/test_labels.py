"""Whether answers are right: the part that counts, how it is compared, and figures that follow from the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.evaluation import generation
from potstill.evaluation.labels import is_right, label_scores
from potstill.evaluation.metrics.significance import share_interval, wilson_interval
from potstill.models.families import Causal
from potstill.recipe import Checkpoint, CrossEntropy, Evaluation, PretrainedStudent, Stage, Stream, Term
from tests import tiny

FORM = "label_then_rationale"
ROWS = ["neutral: Nobody says so.", "entailment: It is said.", "neutral"]
SAID = [" Neutral : Nobody says it.", "contradiction: It is said.", "neutral: I do not know."]


def test_the_label_counts_and_the_rationale_does_not() -> None:
    assert label_scores(SAID, ROWS, accuracy="exact", target=FORM)["accuracy"] == [1.0, 0.0, 1.0]
    assert label_scores(SAID, ROWS, accuracy="exact", target="response")["accuracy"] == [0.0, 0.0, 0.0]


def test_the_rationale_has_a_score_of_its_own_where_the_row_has_one() -> None:
    near, same, none = label_scores(SAID, ROWS, accuracy="none", target=FORM)["rationale_rouge_l"]
    assert same == 100
    assert none is None
    assert near == pytest.approx(100 * 2 / 3)  # two of three words in order: "nobody says"
    assert "accuracy" not in label_scores(SAID, ROWS, accuracy="none", target=FORM)
    assert label_scores(SAID, ROWS, accuracy="none", target="response") == {}


def test_a_rationale_may_stand_before_its_label() -> None:
    reference = "Two and three are five. So the answer is 5"
    found = label_scores(
        ["It is 3 + 2. So the answer is 5.0"], [reference], accuracy="equation", target="rationale_then_label"
    )
    assert found["accuracy"] == [1.0]


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("(8.0 - 3.0)", "( 8 - 3 )", True),
        ("5", "( 8.0 - 3.0 )", True),
        ("8 - 3 = 5", "( 8.0 - 3.0 )", True),
        ("( 3.0 - 8.0 )", "( 8.0 - 3.0 )", False),
        ("__import__('os')", "( 8.0 - 3.0 )", False),
        ("", "( 8.0 - 3.0 )", False),
        ("none", "none", False),  # no value, and so not the same value
    ],
)
def test_equations_are_compared_by_value(said: str, gold: str, right: bool) -> None:
    assert is_right(said, gold, "equation") is right


@pytest.mark.parametrize("count", [(0, 8), (3, 8), (8, 8), (1, 1), (26, 40)])
def test_wilsons_interval_holds_the_share_and_solves_its_quadratic(count: tuple[int, int]) -> None:
    """The bounds are the p at which the share is 1.96 of p's own standard errors away."""
    right, of = count
    low, high = wilson_interval(right, of)
    assert 0 <= low <= right / of <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        assert abs(right / of - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / of), rel=1e-9)
    if right in (0, of):
        assert share_interval([right / of] * of) == (low, high)


def test_no_trials_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no trials"):
        wilson_interval(0, 0)


# --- Figures of a model -----------------------------------------------------------------------------------------------


def judged(monkeypatch: pytest.MonkeyPatch, texts: list[str], **settings: Any) -> tuple[dict[str, Any], Any]:
    """The figures of a model that answers with these texts."""
    monkeypatch.setattr(generation, "answer", lambda *_, **__: generation.Answered(texts, 1.0, 0.0))
    rows = [Tokenised(f"row:{at}", (1,), (2,), "prompt", text, truncated=False) for at, text in enumerate(ROWS)]
    figures, _, scores = generation.judge_answers(None, None, rows, Evaluation(**settings), 1, FORM)  # type: ignore[arg-type]
    validation = generation.greedy_figures(None, None, rows, Evaluation(**settings), FORM)  # type: ignore[arg-type]
    assert {name: figures[name] for name in validation if name in figures} == {
        name: validation[name] for name in validation if name in figures
    }
    return figures | {name: value for name, value in validation.items() if name.endswith("stderr")}, scores


def test_figures_are_means_of_the_rows_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, scores = judged(monkeypatch, SAID, accuracy="exact")
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert (figures["accuracy_low"], figures["accuracy_high"]) == wilson_interval(2, 3)
    assert figures["accuracy_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))  # the sample's, over 3
    assert figures["rationale_rouge_l"] == pytest.approx((100 * 2 / 3 + 100) / 2)
    assert [row["accuracy"] for row in scores] == [1.0, 0.0, 1.0]
    assert ["rationale_rouge_l" in row for row in scores] == [True, True, False]
    plain, _ = judged(monkeypatch, SAID)
    assert not any(name.startswith("accuracy") for name in plain)


# --- How answers are written ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Causal:
    return Causal(tiny.llama(3).double())


def written(family: Causal, temperature: float, **settings: Any) -> list[str]:
    tokenizer = tiny.tokenizer()
    prompts = ["Write a story", "The goat", "What is"]
    rows = [
        Tokenised(f"row:{at}", tuple(tokenizer(text)["input_ids"]), (0,), text, "", truncated=False)
        for at, text in enumerate(prompts)
    ]
    chosen = Evaluation(max_new_tokens=12, **settings)
    return generation.answer(family, tokenizer, rows, chosen, temperature=temperature, seed=1).texts


def test_a_beam_search_finds_likelier_answers_than_the_greedy_one(family: Causal) -> None:
    greedy, beams = written(family, 0), written(family, 0, num_beams=4)
    assert greedy != beams
    assert written(family, 1.0, num_beams=4) == written(family, 1.0)


def test_a_repetition_penalty_is_of_greedy_and_of_sampled_answers(family: Causal) -> None:
    for temperature in (0, 1.0):
        some = {"sampling_top_p": 0.3}  # of 300 tokens few would come twice
        assert written(family, temperature, repetition_penalty=5.0, **some) != written(family, temperature, **some)


def test_answers_that_have_no_end_within_the_limit_are_counted_as_cut(
    family: Causal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of just as many tokens as there may be had no room for its end."""
    lengths = [11, 12, 12]
    monkeypatch.setattr(generation, "generate", lambda *_, **__: [torch.ones(n, dtype=torch.long) for n in lengths])
    rows = [Tokenised(f"row:{at}", (1,), (0,), "", "", truncated=False) for at in range(3)]
    settings = Evaluation(max_new_tokens=12, leave_out="samples")
    told, _, _ = generation.judge_answers(family, tiny.tokenizer(), rows, settings, seed=1)
    assert told["cut_share"] == pytest.approx(2 / 3)


def test_a_small_top_p_is_the_greedy_answer(family: Causal) -> None:
    assert written(family, 1.0, sampling_top_p=1e-9) == written(family, 0) != written(family, 1.0)


# --- The recipe -------------------------------------------------------------------------------------------------------


def stage(accuracy: str) -> Stage:
    return Stage(
        student=PretrainedStudent(model="m"),
        streams=(Stream(terms=(Term(objective=CrossEntropy()),)),),
        budget=recipe.Budget(steps=1),
        checkpoint=Checkpoint(best_by="accuracy"),
        evaluation=Evaluation(accuracy=accuracy),  # type: ignore[arg-type]
    )


def test_the_best_by_accuracy_needs_an_accuracy() -> None:
    assert stage("exact").checkpoint.best_by in recipe.METRICS_TO_MAXIMISE
    with pytest.raises(ValidationError, match=r"Set evaluation\.accuracy to exact or equation"):
        stage("none")


def test_the_table_has_an_accuracy_where_there_is_one(tmp_path: Path) -> None:
    from potstill.reporting import card, tables
    from potstill.reporting.report import render
    from tests.unit.reporting.fake_runs import EVALUATIONS, RECIPE, write_run

    figures = {"accuracy": 0.625, "accuracy_low": 0.3, "accuracy_high": 0.8625, "rationale_rouge_l": 31.0}
    settings = RECIPE.replace("batch_size: 16}", "batch_size: 16, num_beams: 3, accuracy: exact}")
    measured = {"student_after": EVALUATIONS["student_after"] | figures}
    run = write_run(tmp_path / "r", evaluations=measured, recipe=settings)
    page = render(run)
    assert "62.50%" in page
    assert "30.00% to 86.25%" in page
    assert "best answers of 3 beams" in page
    assert "| 62.50% | 31.00 |" in card.card(run)
    assert "62.50%" in str(next(iter(tables.rows(run)))[1])
    plain = write_run(tmp_path / "plain")
    assert "accuracy" not in render(plain)
    assert not {"accuracy", "rationale_rouge_l"} & {column.key for column in tables.columns(plain)}
