"""The table in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from potstill.reporting.tables import columns, rich_table, rows, verdict
from potstill.run import Run
from tests.unit.reporting.fake_runs import EVALUATIONS, write_run


def printed(run: Run, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(rich_table(run))
    return out.getvalue()


def test_all_figures_fit_in_80_characters(tmp_path: Path) -> None:
    text = printed(write_run(tmp_path / "first"))
    assert "\u2026" not in text
    student = next(line for line in text.splitlines() if line.startswith("student after"))
    assert " ".join(student.split()) == "student after 1.704 1.534 48.27% 45.86% 41.27 18.42 63.6 M 431.2"
    assert text.count("lower") == 3 + 1  # three columns and the line that explains
    assert text.count("higher") == 4 + 1


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sft", evaluations={"student_after": {"perplexity": 30.0, "rouge_l": None}})
    line = next(line for line in printed(run).splitlines() if line.startswith("student after"))
    assert line.split() == ["student", "after", "30.00", "-", "-", "-"]


def test_a_run_in_which_nothing_was_measured(tmp_path: Path) -> None:
    assert "nothing measured yet" in printed(Run(tmp_path))


def test_a_name_is_text_and_not_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "[red]\x1b]8;;http:evil\x07x\x1b[31m[link=http:evil]y")
    assert printed(run).startswith("[red]x[link=http:evil]y")
    assert "\x1b" not in printed(run)


def test_rows_are_in_the_order_of_the_table_and_carry_errors(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first", evaluations=dict(reversed(EVALUATIONS.items())))
    found = dict(rows(run))
    assert list(found) == list(EVALUATIONS)
    assert all(len(cells) == len(columns(run)) == 10 for cells in found.values())
    kl, _, agreement, *_ = found["student_after"]
    assert (kl.value, kl.error) == ("1.704", "0.034")
    assert (agreement.value, agreement.error) == ("48.27%", "0.60%")
    assert found["teacher"][0].error == ""  # exactly 0: nothing to be unsure of


def test_a_column_of_which_no_model_has_a_figure_is_left_out(tmp_path: Path) -> None:
    """Without a teacher there are no divergences, and without samples no Rouge-L of them."""
    alone = {"perplexity": 12.5, "perplexity_stderr": 0.5, "rouge_l": 20.0, "num_parameters": 1000}
    run = write_run(tmp_path / "alone", evaluations={"student_after": alone})
    assert [column.key for column in columns(run)] == [
        "perplexity", "rouge_l", "num_parameters", "size_on_disk_bytes", "tokens_per_s"
    ]  # fmt: skip
    assert "KL" not in printed(run)


def test_the_share_of_right_answers_is_told_with_its_interval(tmp_path: Path) -> None:
    after = {"accuracy": 0.625, "accuracy_low": 0.3, "accuracy_high": 0.8625}
    run = write_run(tmp_path / "labels", evaluations={"student_before": {"accuracy": 0.5}, "student_after": after})
    assert "Of its answers 62.50% are right (95% interval 30.00% to 86.25%), and before training 50.00%." in verdict(
        run
    )
    cut = write_run(tmp_path / "cut", evaluations={"student_after": after | {"cut_share": 0.2}})
    assert any(
        "86.25%); 20.00% had no end within evaluation.max_new_tokens, and were cut." in one for one in verdict(cut)
    )
    (run.path / "eval" / "student_before.json").unlink()
    assert any(sentence.endswith("86.25%).") for sentence in verdict(run))
