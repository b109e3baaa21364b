"""lm-eval's results in our form: rows, figures, keys and tables. What needs lm-eval itself is in e2e."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from potstill.cli_harness import harness
from potstill.errors import ConfigError, ModelError
from potstill.evaluation.harness import HarnessResult, Settings, describe, evaluate_tasks, key_of
from potstill.evaluation.harness_rows import figures_of, rows_of
from potstill.evaluation.harness_tasks import Task, digest, first_line, lm_eval_at_work
from potstill.reporting.harness import markdown

ABOUT = {
    "members": {"hats": {"version": 1.0, "num_documents": 2, "num_fewshot": 0, "documents_sha256": "d"}},
    "groups": {},
    "own_code_sha256": None,
}


def choice(document: int, **changed: Any) -> dict[str, Any]:
    """A record of lm-eval about a question with two options."""
    return {
        "doc_id": document,
        "target": 1,
        "arguments": [("Who ate it?", " the fox"), ("Who ate it?", " the goat")],
        "resps": [[(-3.5, False)], [(np.float64(-2.0), True)]],
        "filtered_resps": [(-3.5, False), (-2.0, True)],
        "filter": "none",
        "metrics": ["acc"],
        "acc": 1.0,
    } | changed


def written(document: int, filter_name: str, read: str, score: float) -> dict[str, Any]:
    return {
        "doc_id": document,
        "target": "7",
        "arguments": [("3 + 4 =", {"until": ["\n"]})],
        "resps": [[" it is 7."]],
        "filtered_resps": [read],
        "filter": filter_name,
        "metrics": ["exact_match"],
        "exact_match": score,
    }


def result(model: str, task: str, figures: dict[str, Any], less: list[str] | None = None) -> HarnessResult:
    told = describe({"name": model, "fingerprint": model}, Task(task, {}, ABOUT), Settings(), "0.4.13")
    return HarnessResult(Path("x"), told, {"figures": figures, "less_is_better": less or [], "seconds": 1.4})


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_a_row_of_options_says_what_was_asked_and_how_likely_each_was() -> None:
    (row,) = rows_of("hats", [choice(4)])
    assert row == {
        "id": "hats/4",
        "group": "hats",
        "input": "Who ate it?",
        "options": [" the fox", " the goat"],
        "references": [1],
        "predictions": {"log_likelihoods": [-3.5, -2.0]},
        "scores": {"acc": 1.0},
    }


def test_options_that_follow_different_texts_keep_them_all() -> None:
    (row,) = rows_of("hats", [choice(0, arguments=[("He ate", " it"), ("She ate", " it")])])
    assert row["input"] == ["He ate", "She ate"]


def test_two_filters_of_one_document_are_one_row_with_both_scores() -> None:
    samples = [written(0, "strict", "[invalid]", 0.0), written(1, "strict", "7", 1.0), written(0, "loose", "7", 1.0)]
    rows = rows_of("sums", samples)
    assert [row["id"] for row in rows] == ["sums/0", "sums/1"]
    assert rows[0]["scores"] == {"exact_match,strict": 0.0, "exact_match,loose": 1.0}
    assert rows[0]["predictions"] == {"written": [" it is 7."], "read": {"strict": ["[invalid]"], "loose": ["7"]}}
    assert rows[0]["options"] == []


def test_the_likelihood_of_a_whole_text_and_scores_that_are_pairs_become_plain_numbers() -> None:
    sample = choice(0, arguments=[("A text.",)], resps=[[-12.5]], metrics=["bits"], bits=(np.float32(-12.5), 7))
    (row,) = rows_of("texts", [sample])
    assert row["predictions"] == {"log_likelihoods": [-12.5]}
    assert row["scores"] == {"bits": [-12.5, 7]}


def test_what_is_not_finite_is_null_in_a_row() -> None:
    (row,) = rows_of("hats", [choice(0, acc=math.nan, resps=[[(-math.inf, False)], [(-1.0, True)]])])
    assert row["scores"] == {"acc": None}
    assert row["predictions"]["log_likelihoods"] == [None, -1.0]


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_figures_have_their_standard_errors_and_nothing_else_is_a_figure() -> None:
    found = figures_of(
        {
            "hats": {
                "alias": "hats",
                "sample_len": 20,
                "acc,none": np.float64(0.25),
                "acc_stderr,none": 0.1,
                "exact_match,strict": 0.5,
                "exact_match_stderr,strict": "N/A",
                "perplexity,none": math.inf,
            },
            "a group without a mean": {"alias": "g"},
        }
    )
    assert found == {
        "hats": {
            "acc": {"value": 0.25, "stderr": 0.1},
            "exact_match,strict": {"value": 0.5, "stderr": None},
            "perplexity": {"value": None, "stderr": None},
        }
    }


def test_the_table_has_a_row_for_each_model_and_says_where_less_is_better() -> None:
    figures = [
        {"hats": {"acc": {"value": 0.25, "stderr": 0.1}, "perplexity": {"value": value, "stderr": None}}}
        for value in (12.345, None)
    ]
    results = [result(name, "hats", of, ["perplexity"]) for name, of in zip("ab", figures, strict=True)]
    assert markdown(results).splitlines() == [
        "hats: version 1.0; 2 documents; 0 examples before each; no chat template; lm-eval 0.4.13",
        "",
        "| model | acc | perplexity (less is better) | seconds |",
        "| --- | --- | --- | --- |",
        "| a | 0.250 ± 0.100 | 12.35 | 1 |",
        "| b | 0.250 ± 0.100 | - | 1 |",
    ]


def test_a_group_is_shown_by_its_mean_and_a_tag_by_its_members() -> None:
    acc = {"acc": {"value": 0.5, "stderr": 0.1}}
    grouped = markdown([result("a", "hats", {"hats": acc, "hats_red": acc, "hats_blue": acc})])
    assert "hats_red" not in grouped
    assert "| a | 0.500 ± 0.100 | 1 |" in grouped
    tagged = markdown([result("a", "hats", {"hats_red": acc, "hats_blue": acc})])
    assert "| model | task | acc | seconds |" in tagged
    assert "| a | hats_blue | 0.500 ± 0.100 | 1 |" in tagged


# --- What a result is known by ----------------------------------------------------------------------------------------


def test_a_result_is_known_by_the_models_files_and_not_by_its_name() -> None:
    def key(name: str = "a", fingerprint: str = "f", about: dict[str, Any] = ABOUT, **settings: Any) -> str:
        told = describe({"name": name, "fingerprint": fingerprint}, Task("hats", {}, about), Settings(**settings), "1")
        return key_of(told)

    other = {**ABOUT, "members": {"hats": {**ABOUT["members"]["hats"], "documents_sha256": "e"}}}
    assert key(name="b") == key()
    different = [key(fingerprint="g"), key(about=other), key(limit=5), key(num_fewshot=2), key(chat=True)]
    assert len({key(), *different}) == 1 + len(different)


def test_functions_count_by_their_source() -> None:
    def shout(text: str) -> str:
        return text.upper()

    def whisper(text: str) -> str:
        return text.lower()

    again = shout
    assert digest({"read": shout}) == digest({"read": again}) != digest({"read": whisper})
    assert digest({"read": math.sqrt}) != digest({"read": math.exp})  # without a source
    assert "0x" not in repr(digest({"read": math.sqrt}))


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_without_lm_eval_one_is_told_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r'not installed\n  fix: pip install "potstill\[lm-eval\]"'):
        evaluate_tasks(["no-model"], ["hellaswag"], root=tmp_path)
    app = typer.Typer()
    app.command()(harness)
    with pytest.raises(ConfigError, match="not installed"):
        app(["no-model", "--task", "hellaswag", "--out", str(tmp_path / "out")], standalone_mode=False)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_what_lm_eval_prints_is_kept_off_stdout_and_what_it_raises_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    @lm_eval_at_work(lambda error: ModelError(f"it stopped: {first_line(error)}"))
    def fails() -> None:
        print("bootstrapping")
        raise ValueError("one\ntwo")

    with pytest.raises(ModelError, match=r"it stopped: ValueError: one$"):
        fails()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bootstrapping" in captured.err
