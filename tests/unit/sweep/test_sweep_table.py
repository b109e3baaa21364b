"""The table of a sweep whose runs' figures are written by hand: what is averaged, paired, missing and shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError, DataError
from potstill.run import Run
from potstill.sweep import figure, page, results
from potstill.sweep.cells import Cell, Plan, plan
from potstill.sweep.folder import Folder, Keep, Status, prune, status_of
from potstill.sweep.listing import listing
from potstill.sweep.statistics import t_mean
from potstill.sweep.sweep import _dtypes, _settled, left
from potstill.sweep.table import Row, Table, tabulate

GRID = """
method: kd
set: {evaluation.accuracy: exact}
axes:
  budget.steps: [10, 20]
  divergence: [forward_kl, reverse_kl, jeffreys]
  seed: [1, 2, 3]
metric: accuracy
x: budget.steps
against: {divergence: forward_kl}
"""
FIGURES = {  # by steps and divergence; of seeds 1, 2, 3
    ("10", "forward_kl"): [0.50, 0.60, 0.55],
    ("10", "reverse_kl"): [0.61, 0.70, 0.67],
    ("10", "jeffreys"): [0.40, 0.75, 0.50],
    ("20", "forward_kl"): [0.60, 0.70, 0.65],
    ("20", "reverse_kl"): [0.70, 0.82, 0.74],
    ("20", "jeffreys"): [0.66, 0.69, 0.66],
}


def made(folder: Path, text: str = GRID) -> tuple[Plan, Folder]:
    (folder / "grid.yaml").write_text(text, encoding="utf-8")
    sweep = Folder(folder / "sweeps" / "grid")
    sweep.path.mkdir(parents=True, exist_ok=True)
    return plan(folder / "grid.yaml"), sweep


def finish(sweep: Folder, cell: Cell, figures: Mapping[str, Any], rows: list[dict[str, Any]] | None = None) -> Run:
    """A cell as a finished run leaves it."""
    run = sweep.run(cell)
    run.write("eval/student_after", figures)
    run.write("cost", {"training_s": 8.0, "teacher_text_s": 2.0, "tokens": 1000})
    if rows:
        run.rows_file("student_after").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep.note(cell, run, Status.done, seconds=12.0)
    return run


def finish_all(plan: Plan, sweep: Folder) -> None:
    for cell in plan.cells:
        places = cell.places
        value = FIGURES[places["budget.steps"], places["divergence"]][int(places["seed"]) - 1]
        finish(sweep, cell, {"accuracy": value})


def row_of(table: Table, *labels: str) -> Row:
    return next(row for row in table.rows if tuple(row.places.values()) == labels)


def test_rows_average_over_seeds_and_differ_seed_by_seed(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    finish_all(planned, sweep)
    table = tabulate(planned, sweep)
    assert [tuple(row.places.values()) for row in table.rows] == list(FIGURES)
    row = row_of(table, "10", "reverse_kl")
    assert (row.mean.mean, row.mean.num) == (pytest.approx(0.66), 3)
    error = math.sqrt((0.05**2 + 0.04**2 + 0.01**2) / 2 / 3)  # of 0.61, 0.70, 0.67 around 0.66
    assert row.mean.high - row.mean.mean == pytest.approx(4.30265 * error, rel=1e-4)
    assert (row.seconds, row.tokens) == (10.0, 1000)
    assert row.difference is not None
    assert row.difference.mean.mean == pytest.approx((0.11 + 0.10 + 0.12) / 3)
    paired = math.sqrt((0**2 + 0.01**2 + 0.01**2) / 2 / 3)
    assert row.difference.mean.high - row.difference.mean.mean == pytest.approx(4.30265 * paired, rel=1e-4)
    t = 0.11 / paired
    assert row.difference.mean.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)
    assert row_of(table, "10", "forward_kl").difference is None
    assert row_of(table, "10", "forward_kl").counterpart is None


def test_p_is_made_right_for_all_differences_together(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    finish_all(planned, sweep)
    table = tabulate(planned, sweep)
    found = [row.difference for row in table.rows if row.difference]
    assert table.family == len(found) == 4
    ordered = sorted(found, key=lambda difference: difference.mean.p)
    highest = 0.0
    for rank, difference in enumerate(ordered):  # Holm: the smallest by 4, the next by 3, ..., never falling
        highest = max(highest, min(1.0, difference.mean.p * (4 - rank)))
        assert difference.p_holm == pytest.approx(highest)
    assert ordered[0].p_holm > ordered[0].mean.p


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    by_place = {tuple(cell.places.values()): cell for cell in planned.cells}
    finish_all(planned, sweep)
    failed, unfinished = by_place["10", "forward_kl", "2"], by_place["20", "jeffreys", "1"]
    sweep.note(failed, sweep.run(failed), Status.failed, error="no room | on the disk")
    sweep.note(unfinished, sweep.run(unfinished), Status.begun)
    finish(sweep, by_place["20", "jeffreys", "2"], {"perplexity": 3.0, "accuracy": None})
    table = tabulate(planned, sweep)
    row = row_of(table, "10", "reverse_kl")
    assert row.mean.num == 3
    assert row.difference is not None
    assert row.difference.mean == t_mean([0.61 - 0.50, 0.67 - 0.55])  # the seed that failed there has no pair
    assert row_of(table, "20", "jeffreys").seconds == 10.0  # of those that have a figure
    notes = "\n".join(results.notes(table))
    assert "budget.steps 10, divergence forward_kl: seed 2 failed: no room | on the disk" in notes
    assert "budget.steps 20, divergence jeffreys: seed 1 not finished yet." in notes
    assert "budget.steps 20, divergence jeffreys: seed 2 measured no finite accuracy." in notes
    assert "budget.steps 10, divergence reverse_kl: 2 of 3 cells have their counterpart" in notes
    text = results.markdown(table)
    assert "| 20 | jeffreys | 0.6600 | - | 1 of 3 |" in text
    assert "| 10 | forward_kl | 0.5250 |" in text


def test_a_cell_of_several_stages_is_counted_and_pruned_as_a_whole(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    cell = planned.cells[0]
    run = sweep.run(cell)
    run.write("stages", [{"folder": "stages/1-first"}, {"folder": "stages/2-last"}])
    for stage in run.stages:
        stage.write("cost", {"training_s": 8.0, "teacher_text_s": 2.0, "tokens": 1000})
        (stage.checkpoints / "step-000003").mkdir(parents=True)
    run.stages[-1].write("eval/student_after", {"accuracy": 0.5})
    sweep.note(cell, run, Status.done, seconds=25.0)
    row = tabulate(planned, sweep).rows[0]
    assert (row.mean.mean, row.seconds, row.tokens) == (0.5, 20.0, 2000)
    prune(run, Keep.student)
    assert not any(stage.checkpoints.exists() for stage in run.stages)


def test_no_interval_and_no_p_without_replicates(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path, GRID.replace("seed: [1, 2, 3]", "seed: [1]") + "replicates: null\n")
    finish_all(planned, sweep)
    table = tabulate(planned, sweep)
    assert table.family == 0
    assert table.axes == ("budget.steps", "divergence", "seed")
    for row in table.rows:
        assert math.isnan(row.mean.low)
    assert "nothing is averaged" in results.notes(table)[0]
    assert json.dumps(results.as_json(table, planned), allow_nan=False)


def test_columns_that_hold_nothing_are_left_out(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    alone = next(cell for cell in planned.cells if cell.places["divergence"] == "forward_kl")
    assert results.head(tabulate(planned, sweep)) == ["budget.steps", "divergence", "accuracy", "n"]
    finish(sweep, alone, {"accuracy": 0.5})
    table = tabulate(planned, sweep)
    assert results.head(table) == ["budget.steps", "divergence", "accuracy", "n", "training", "tokens"]
    assert next(results.body(table)) == ["10", "forward_kl", "0.5000", "1 of 3", "10 s", "1 k"]
    assert "no interval over seed and no p" in results.notes(table)[0]
    assert "95% interval" not in page.render(table, planned, None)
    finish_all(planned, sweep)
    table = tabulate(planned, sweep)
    assert {"95% interval", "less divergence forward_kl", "p after Holm"} <= set(results.head(table))
    assert all(len(row) == len(results.head(table)) for row in results.body(table))


VARIANTS = """
method: step_by_step
axes:
  variant: [standard, single_task]
  seed: [1, 2]
metric: perplexity
"""


def test_figures_of_texts_of_another_form_are_said_not_to_be_comparable(tmp_path: Path) -> None:
    words = "not comparable"
    for text, is_said in (
        (VARIANTS, True),
        (VARIANTS.replace("perplexity", "rouge_l"), True),
        (VARIANTS.replace("perplexity", "accuracy"), False),
        (VARIANTS.replace("single_task", "shuffled_rationales"), False),
    ):
        planned, sweep = made(tmp_path, text)
        told = [note for note in results.notes(tabulate(planned, sweep)) if words in note]
        assert len(told) == is_said
        assert all("response, rationale_then_label" in note for note in told)


def test_a_file_in_the_folders_way_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sweeps"
    file.write_text("")
    with pytest.raises(ConfigError, match=re.escape(f"{file} is not a folder")) as caught, Folder(file / "g").alone():
        pass
    assert "move or rename it" in str(caught.value)
    (tmp_path / "own" / "g").mkdir(parents=True)
    (tmp_path / "own" / "g" / "runs").write_text("")
    with pytest.raises(ConfigError, match="runs is not a folder"), Folder(tmp_path / "own" / "g").alone():
        pass


def rows_of(scores: list[float]) -> list[dict[str, Any]]:
    return [{"id": f"row {i}", "input": "?", "scores": {"accuracy": one, "tokens": 3}} for i, one in enumerate(scores)]


def test_with_rows_there_is_an_interval_over_seeds_and_examples(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    for cell in planned.cells:
        right = 6 if cell.places["divergence"] == "forward_kl" else 8
        scores = [float((i + int(cell.places["seed"])) % 10 < right) for i in range(10)]
        finish(sweep, cell, {"accuracy": sum(scores) / 10}, rows_of(scores))
    table = tabulate(planned, sweep)
    row = row_of(table, "10", "jeffreys")
    assert row.mean.low == row.mean.high == pytest.approx(0.8)  # every seed has it
    assert row.two_level is not None
    assert row.two_level.low < 0.75
    assert row.difference is not None
    assert row.difference.two_level is not None
    assert row.difference.two_level.low < 0.2 < row.difference.two_level.high
    assert "two-level bootstrap" in "\n".join(results.notes(table))
    assert "of seed and examples" in results.markdown(table)


def test_one_seed_has_no_interval_over_seeds_and_examples_either(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path, GRID.replace("seed: [1, 2, 3]", "seed: [1]"))
    for cell in planned.cells:
        finish(sweep, cell, {"accuracy": 0.5}, rows_of([1.0, 0.0]))
    for row in tabulate(planned, sweep).rows:
        assert row.two_level is None
        assert row.difference is None or row.difference.two_level is None


def test_rows_that_do_not_give_the_figure_are_not_used(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    for cell in planned.cells:
        finish(sweep, cell, {"accuracy": 0.5}, rows_of([1.0, 1.0, 0.0]))
    assert all(row.two_level is None for row in tabulate(planned, sweep).rows)


def test_seeds_measured_on_other_examples_are_not_paired_by_example(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    for cell in planned.cells:
        rows = rows_of([1.0, 0.0])
        rows[0]["id"] = f"row of seed {cell.places['seed']}"
        finish(sweep, cell, {"accuracy": 0.5}, rows)
    assert all(row.two_level is None for row in tabulate(planned, sweep).rows)


# --- What is written --------------------------------------------------------------------------------------------------


def test_table_figure_and_page_are_written(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    finish_all(planned, sweep)
    table = tabulate(planned, sweep)
    results.write_results(table, planned, sweep)
    assert {"table.md", "table.json", "figure.svg", "figure.png", "report.html"} <= {
        p.name for p in sweep.path.iterdir()
    }
    told = json.loads((sweep.path / "table.json").read_text())
    assert told["rows"][1]["mean"] == pytest.approx(0.66)
    assert [cell["value"] for cell in told["rows"][1]["cells"]] == FIGURES["10", "reverse_kl"]
    assert told["shared"]["method"] == "kd"
    assert "seed" not in told["shared"]
    assert "budget.steps" not in told["shared"]
    html = (sweep.path / "report.html").read_text()
    assert html.count("<svg") == 1
    assert "jeffreys" in html
    assert "default-src 'none'" in html
    before = {file: file.read_bytes() for file in sweep.path.iterdir() if file.is_file()}
    results.write_results(table, planned, sweep)
    assert before == {file: file.read_bytes() for file in before}


def test_the_figure_has_a_line_for_each_combination_and_panels_for_more_axes(tmp_path: Path) -> None:
    more = GRID.replace("  seed:", "  batch.size: [2, 4]\n  seed:")
    planned, sweep = made(tmp_path, more)
    finish_all(planned, sweep)
    table = tabulate(planned, sweep)
    chart = figure.chart(table, "budget.steps")
    assert chart is not None
    assert (chart.x, chart.y, chart.line_axis, chart.ticks) == ("budget.steps", "accuracy", "divergence", ())
    assert [title for title, _ in chart.panels] == ["batch.size 2", "batch.size 4"]
    lines = dict(chart.panels)["batch.size 4"]
    assert [line.label for line in lines] == ["forward_kl", "reverse_kl", "jeffreys"]
    assert [(point.x, point.mean) for point in lines[1].points] == [
        (10, pytest.approx(0.66)),
        (20, pytest.approx(0.7533333)),
    ]
    point, row = lines[1].points[0], row_of(table, "10", "reverse_kl", "4")
    assert (point.low, point.high) == (row.mean.low, row.mean.high)
    assert figure.chart(table, None) is None
    by_name = figure.chart(table, "divergence")
    assert by_name is not None
    assert by_name.ticks == ("forward_kl", "reverse_kl", "jeffreys")
    assert figure.inline(by_name).startswith("<svg")


def test_an_axis_of_equal_steps_is_linear_and_one_of_equal_ratios_logarithmic(tmp_path: Path) -> None:
    for values, is_log in (([10, 20, 30], False), ([10, 20, 40], True), ([1, 100], True), ([0, 1, 2], False)):
        points = tuple(figure.Point(x, 0.5, 0.4, 0.6) for x in values)
        chart = figure.Chart("x", "y", (), "", (("", (figure.Line("", points),)),))
        assert chart.log_x is is_log
        assert figure.inline(chart).startswith("<svg")


def test_data_that_changed_between_cells_is_told(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    finish_all(planned, sweep)
    for number, cell in enumerate(planned.cells):
        files = {
            "train": {"file": "a.jsonl", "sha256": "1"},
            "heldout": {"file": "b.jsonl", "sha256": str(number // 9)},
        }
        sweep.run(cell).write("data", {"files": files})
    table = tabulate(planned, sweep)
    assert table.changed_files == ("b.jsonl",)
    assert "b.jsonl was changed between cells" in "\n".join(results.notes(table))


def test_hostile_values_stay_text(tmp_path: Path) -> None:
    text = GRID.replace("divergence: [forward_kl, reverse_kl, jeffreys]", "teacher: ['<script>x</script>', 'a|b']")
    planned, sweep = made(tmp_path, text.replace("against: {divergence: forward_kl}", ""))
    for cell in planned.cells:
        finish(sweep, cell, {"accuracy": 0.5 + int(cell.places["seed"]) / 100})
    table = tabulate(planned, sweep)
    chart = figure.chart(table, "budget.steps")
    html = page.render(table, planned, chart)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 3  # in table, figure and settings
    assert "a\\|b" in results.markdown(table)


# --- The folder -------------------------------------------------------------------------------------------------------


def test_only_what_is_new_is_left_after_a_change_and_old_results_stay(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    finish_all(planned, sweep)
    assert left(planned, sweep) == []
    more, _ = made(tmp_path, GRID.replace("[1, 2, 3]", "[1, 2, 3, 4]"))
    assert {cell.places["seed"] for cell in left(more, sweep)} == {"4"}
    changed, _ = made(tmp_path, GRID.replace("set: {", "set: {batch.size: 7, "))
    assert len(left(changed, sweep)) == 18
    assert not tabulate(changed, sweep).rows[0].mean.num
    assert len(list((sweep.path / "runs").iterdir())) == 18
    renamed, _ = made(tmp_path, GRID.replace("  seed", "  batch.size: [2]\n  seed"))  # kd's own: the same recipes
    assert left(renamed, sweep) == []
    assert tabulate(renamed, sweep).rows[1].mean.mean == pytest.approx(0.66)


def test_half_done_cells_come_first_and_failed_ones_only_when_asked_for(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    first, second, third, *others = planned.cells
    sweep.note(first, sweep.run(first), Status.failed, error="x")
    sweep.note(third, sweep.run(third), Status.begun)
    assert left(planned, sweep) == [third, second, *others]
    assert left(planned, sweep, retry=True) == [third, second, *others, first]
    told = listing(planned, sweep)
    assert told.counts() == {"left": 16, "begun": 1, "done": 0, "failed": 1}
    assert told.text().endswith("18 cells: 16 left, 1 begun, 1 failed; metric: accuracy")


def test_the_precision_that_was_measured_once_is_that_of_all_cells(tmp_path: Path) -> None:
    """Also when the sweep goes on in another process, in which the other would be the faster one."""
    planned, sweep = made(tmp_path)
    first, second = planned.cells[:2]
    sweep.note(first, sweep.run(first), Status.begun, dtype="bfloat16")
    finish(sweep, first, {"accuracy": 0.5})
    dtypes = _dtypes([second], [record.dtype for record in sweep.records().values()])
    assert second.recipe.dtype == "auto"
    assert _settled(second.recipe, dtypes).dtype == "bfloat16"


def test_a_finished_cell_whose_figures_are_gone_is_run_again(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    finish_all(planned, sweep)
    sweep.run(planned.cells[4]).eval_file("student_after").unlink()
    assert left(planned, sweep) == [planned.cells[4]]


def test_a_line_cut_by_a_crash_is_passed_over_and_joined_to_nothing(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    one, two = planned.cells[:2]
    finish(sweep, one, {"accuracy": 0.5})
    with open(sweep.journal_file, "a") as handle:
        handle.write('{"key": "')
    assert status_of(one, sweep.records()) is Status.done
    with sweep.alone():
        finish(sweep, two, {"accuracy": 0.5})
    assert [status_of(cell, sweep.records()) for cell in (one, two)] == [Status.done] * 2
    sweep.journal_file.write_text("broken\n")
    with pytest.raises(DataError, match=r"cells\.jsonl:1"):
        sweep.records()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    _, sweep = made(tmp_path)
    with sweep.alone(), pytest.raises(ConfigError, match="another process is at work on this sweep"), sweep.alone():
        pass


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        (Keep.all, set()),
        (Keep.student, {"checkpoints/step-000003/a", "baseline/checkpoints/a"}),
        (
            Keep.nothing,
            {
                "checkpoints/step-000003/a",
                "baseline/checkpoints/a",
                "student/model",
                "baseline/student/model",
                "untouched/model",
                "teacher_text/main/part-00000.jsonl",
            },
        ),
    ],
)
def test_what_is_kept_of_a_finished_run(tmp_path: Path, keep: Keep, gone: set[str]) -> None:
    files = {"recipe.yaml", "metrics.jsonl", "eval/student_after.json", "eval/student_after.rows.jsonl", "cost.json"}
    files |= {"checkpoints/step-000003/a", "baseline/checkpoints/a", "student/model", "baseline/student/model"}
    files |= {"untouched/model", "teacher_text/main/part-00000.jsonl", "teacher_text/main/card.json", "samples.jsonl"}
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for _ in range(2):  # a second time, as after a kill in the middle, is no harm
        prune(Run(tmp_path), keep)
        there = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
        assert there == files - gone


def test_the_commands_choices_of_what_to_keep_are_the_sweeps() -> None:
    from potstill.cli_sweep import Kept

    assert [choice.value for choice in Kept] == [choice.value for choice in Keep]


def test_names_in_the_table_are_one_line_each(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    finish_all(planned, sweep)
    lines = results.markdown(tabulate(planned, sweep)).splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + len(FIGURES)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}) == 1
