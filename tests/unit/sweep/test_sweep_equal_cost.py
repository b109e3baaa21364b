"""The table at equal cost, of curves written by hand: where it is read, what is paired, and what it does not say."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.errors import ConfigError
from potstill.reporting.row_scores import RowScores
from potstill.run import Run
from potstill.sweep import equal_cost_results
from potstill.sweep.budgets import At
from potstill.sweep.cells import Cell, Plan, plan
from potstill.sweep.curve_figure import lines, write_files
from potstill.sweep.curves import Curve, NoCurve, curve
from potstill.sweep.equal_cost import View, averaged_curve, equal_cost
from potstill.sweep.folder import Folder, Keep, Status, prune
from potstill.sweep.metric import check_validated
from potstill.sweep.table import Row, tabulate

METRIC = "forward_kl_nats"
GRID = f"""
method: kd
axes:
  divergence: [forward_kl, reverse_kl, jeffreys]
  seed: [1, 2, 3]
metric: {METRIC}
against: {{divergence: forward_kl}}
"""
STEPS = {"forward_kl": (0, 10, 20), "reverse_kl": (0, 10, 20), "jeffreys": (0, 8, 16)}
SECONDS = {"forward_kl": 1.0, "reverse_kl": 2.0, "jeffreys": 0.5}  # a step
FIGURES = {  # at the second and third validation, of seeds 1, 2, 3; all are at 2 before the first step
    "forward_kl": ([1.0, 1.1, 1.2], [0.8, 0.9, 1.0]),
    "reverse_kl": ([0.9, 1.0, 1.2], [0.4, 0.5, 0.6]),
    "jeffreys": ([1.5, 1.5, 1.5], [0.98, 0.88, 1.08]),
}
T_OF_TWO = 4.302652729911275  # the 97.5% point of Student's t with 2 degrees of freedom


def validated(run: Run, points: Sequence[tuple[int, float, float | None]]) -> None:
    """The metrics of a run: steps, seconds and figures of its validations; 100 teacher tokens and 1e6 FLOPs a step."""
    costs = [(step, {"time/training_s": s, "data/teacher_tokens": 100 * step}, value) for step, s, value in points]
    lines = [
        {"step": step, f"validation/{METRIC}": value, "compute/flops": 1e6 * step, **cost}
        for step, cost, value in costs
    ]
    run.path.mkdir(parents=True, exist_ok=True)
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in [{"step": 1, "train/loss": 3.0}, *lines]))


def finish(sweep: Folder, cell: Cell) -> Run:
    """A cell as a finished run leaves it; its held-out figure is none of the curve's."""
    run, name, seed = sweep.run(cell), cell.places["divergence"], int(cell.places["seed"]) - 1
    figures = [2.0, *(values[seed] for values in FIGURES[name])]
    steps = STEPS[name]
    validated(run, [(step, step * SECONDS[name], figure) for step, figure in zip(steps, figures, strict=True)])
    run.write("eval/student_after", {METRIC: 7.0})
    run.write("cost", {"training_s": 1.0, "teacher_text_s": 0, "tokens": 10})
    sweep.note(cell, run, Status.done, seconds=1.0)
    return run


def made(folder: Path, text: str = GRID, *, leave_out: Sequence[tuple[str, str]] = ()) -> tuple[Plan, Folder]:
    """The sweep with all cells done but those left out."""
    (folder / "grid.yaml").write_text(text, encoding="utf-8")
    sweep, planned = Folder(folder / "sweeps" / "grid"), plan(folder / "grid.yaml")
    sweep.path.mkdir(parents=True)
    for cell in planned.cells:
        if (cell.places["divergence"], cell.places["seed"]) not in leave_out:
            finish(sweep, cell)
    return planned, sweep


def row_of(view: View, name: str) -> Row:
    return next(row for row in view.table.rows if row.places["divergence"] == name)


def said(view: View) -> dict[str, str]:
    at = equal_cost_results.head(view).index("said")
    return {cells[0]: cells[at] for cells in equal_cost_results.body(view)}


def notes(view: View) -> str:
    return "\n".join(equal_cost_results.notes(view))


def test_at_equal_steps_by_hand(tmp_path: Path) -> None:
    view = equal_cost(tabulate(*made(tmp_path)), At.steps)
    assert view.x == 16  # where jeffreys ended
    base, reverse, jeffreys = (row_of(view, name) for name in STEPS)
    # Six tenths of the way from the validation at step 10 to that at 20.
    assert [cell.value for cell in base.cells] == pytest.approx([0.88, 0.98, 1.08])
    assert [cell.value for cell in reverse.cells] == pytest.approx([0.6, 0.7, 0.84])
    assert base.mean.mean == pytest.approx(0.98)
    assert base.mean.high - 0.98 == pytest.approx(T_OF_TWO * 0.1 / math.sqrt(3))  # standard deviation 0.1
    # Seed by seed -0.28, -0.28 and -0.24: mean -4/15, standard error 1/75, t = -20.
    assert reverse.difference is not None
    found = reverse.difference.mean
    assert (found.mean, found.num) == (pytest.approx(-4 / 15), 3)
    assert (found.low, found.high) == (
        pytest.approx(-4 / 15 - T_OF_TWO / 75),
        pytest.approx(-4 / 15 + T_OF_TWO / 75),
    )
    assert found.p == pytest.approx(0.00249068, rel=1e-5)  # 1 - 20 / sqrt(402)
    assert reverse.difference.p_holm == pytest.approx(2 * found.p)  # the smaller of two
    assert jeffreys.difference is not None  # 0.10, -0.10 and 0: t = 0
    assert jeffreys.difference.mean.mean == pytest.approx(0, abs=1e-12)
    assert (jeffreys.difference.mean.p, jeffreys.difference.p_holm) == (pytest.approx(1), pytest.approx(1))
    assert said(view) == {"forward_kl": "-", "reverse_kl": "lower, better", "jeffreys": "no difference shown"}


def test_another_cost_may_turn_the_order_round(tmp_path: Path) -> None:
    view = equal_cost(tabulate(*made(tmp_path)), At.seconds)
    assert view.x == 8  # seconds that jeffreys took; reverse_kl was at step 4 by then
    reverse = row_of(view, "reverse_kl")
    assert [cell.value for cell in reverse.cells] == pytest.approx([1.56, 1.6, 1.68])
    assert reverse.difference is not None
    assert reverse.difference.mean.mean == pytest.approx(1 / 3)  # from 1.2, 1.28 and 1.36
    assert said(view)["reverse_kl"] == "higher, worse"


def test_what_is_shown_of_it(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    view = equal_cost(tabulate(planned, sweep), At.steps)
    text = equal_cost_results.markdown(view)
    assert text.startswith(f"# grid: {METRIC} at 16 steps\n")
    assert "| reverse_kl | 0.7133 | [0.4139, 1.013] | 3 | -0.2667 | [-0.3240, -0.2093] | 0.00249 | 0.00498 |" in text
    assert "| lower, better | 20 steps |" in text
    assert "| no difference shown | 16 steps |" in text
    assert "16 steps, the most that all 9 compared cells have reached" in text
    assert "Stopped there: divergence jeffreys. The others went on, to at most 20 steps." in text
    assert "right for all differences of this table together (2)" in text
    assert "with its learning rate still up" in text
    assert "one budget, by budget.steps." in text
    told = json.loads(json.dumps(equal_cost_results.as_json(view, planned), allow_nan=False))
    assert (told["at"], told["x"]) == ("steps", 16)
    assert told["rows"][1]["said"] == "lower, better"
    assert told["rows"][1]["cells"][0]["curve"] == [[0, 2.0], [10, 0.9], [20, 0.4]]


def test_an_interval_beside_0_is_nothing_where_holm_says_no(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    for cell, value in zip(planned.cells[6:], (0.93, 1.04, 1.15), strict=True):  # less 0.88, 0.98, 1.08
        validated(sweep.run(cell), [(0, 0, 2.0), (16, 8, value)])
    for cell, value in zip(planned.cells[3:6], (0.83, 0.92, 1.01), strict=True):
        validated(sweep.run(cell), [(0, 0, 2.0), (16, 8, value)])
    view = equal_cost(tabulate(planned, sweep), At.steps)
    for name in ("reverse_kl", "jeffreys"):  # 0.05, 0.06, 0.07 above and below
        difference = row_of(view, name).difference
        assert difference is not None
        assert difference.mean.p == pytest.approx(1 - 6 * math.sqrt(3) / math.sqrt(110))  # t = 6 sqrt(3): 0.0091
        assert difference.p_holm == pytest.approx(2 * difference.mean.p)
    assert said(view)["jeffreys"] == "higher, worse"
    for cell, value in zip(planned.cells[6:], (0.93, 1.04, 1.17), strict=True):  # 0.05, 0.06, 0.09: p = 0.033
        validated(sweep.run(cell), [(0, 0, 2.0), (16, 8, value)])
    for cell, value in zip(planned.cells[3:6], (0.83, 0.92, 0.99), strict=True):
        validated(sweep.run(cell), [(0, 0, 2.0), (16, 8, value)])
    view = equal_cost(tabulate(planned, sweep), At.steps)
    difference = row_of(view, "jeffreys").difference
    assert difference is not None
    assert difference.mean.low > 0
    assert difference.mean.p < 0.05 < difference.p_holm
    assert set(said(view).values()) == {"-", "no difference shown"}


def test_scores_of_held_out_rows_give_no_interval_here(tmp_path: Path) -> None:
    table = tabulate(*made(tmp_path))
    scores = RowScores(("a", "b"), np.array([1.0, 2.0]), np.ones(2), is_log=False)
    rows = [replace(row, cells=tuple(replace(cell, scores=scores) for cell in row.cells)) for row in table.rows]
    view = equal_cost(replace(table, rows=tuple(rows)), At.steps)
    assert not any(row.two_level or (row.difference and row.difference.two_level) for row in view.table.rows)


def test_a_seed_without_its_partner_is_not_paired(tmp_path: Path) -> None:
    view = equal_cost(tabulate(*made(tmp_path, leave_out=[("forward_kl", "2")])), At.steps)
    difference = row_of(view, "reverse_kl").difference
    assert difference is not None
    assert (difference.mean.mean, difference.mean.num) == (pytest.approx((-0.28 - 0.24) / 2), 2)
    assert row_of(view, "reverse_kl").mean.num == 3
    assert "Not done, and so not compared: divergence forward_kl (seed 2)." in notes(view)


def test_one_seed_has_no_interval_and_shows_nothing(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path, GRID.replace("[1, 2, 3]", "[1]"))
    view = equal_cost(tabulate(planned, sweep), At.steps)
    assert said(view) == {"forward_kl": "-", "reverse_kl": "no interval over seed", "jeffreys": "no interval over seed"}
    assert "no interval over seed exists and no p, and so no difference can be shown" in notes(view)
    assert not any(line.has_band for line in lines(view))


def test_the_same_figures_of_all_seeds_show_nothing(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    for cell in planned.cells:
        value = 1.0 if cell.places["divergence"] == "forward_kl" else 0.5
        validated(sweep.run(cell), [(0, 0, 2.0), (16, 8, value)])
    view = equal_cost(tabulate(planned, sweep), At.steps)
    assert said(view)["reverse_kl"] == "no difference shown"
    assert "All of them ended there." in notes(view)
    assert "learning rate" not in notes(view)  # none was read before its end


# --- Curves -----------------------------------------------------------------------------------------------------------


def test_a_curve_between_at_and_beyond_its_points() -> None:
    found = Curve(((4, 3.0), (8, 2.0), (8, 1.0), (12, math.nan), (16, 0.5)))
    assert [found.at(x) for x in (4, 5, 8, 16)] == [3.0, 2.75, 1.0, 0.5]  # of two at one cost, the last
    assert all(math.isnan(found.at(x)) for x in (3.9, 9, 12, 13, 16.1))


def test_the_mean_of_curves_is_where_all_are() -> None:
    one, other = Curve(((0, 2.0), (10, 1.0), (20, 0.0))), Curve(((5, 3.0), (15, 1.0)))
    assert [(x, mean.mean) for x, mean in averaged_curve([one, other])] == [(5, 2.25), (10, 1.5), (15, 0.75)]
    assert averaged_curve([]) == []


def test_what_the_teacher_wrote_beforehand_counts(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    validated(run, [(0, 0, 2.0), (10, 10, 1.0)])
    run.write("cost", {"teacher_text_s": 5.0})
    run.write("teacher_text/data/card", {"written_tokens": 700})
    assert curve(run, METRIC, At.seconds).points == ((5, 2.0), (15, 1.0))
    assert curve(run, METRIC, At.teacher_tokens).points == ((700, 2.0), (1700, 1.0))
    assert curve(run, METRIC, At.steps).points == ((0, 2.0), (10, 1.0))
    assert curve(run, METRIC, At.flops).points == ((0, 2.0), (1e7, 1.0))


def test_the_stages_before_the_result_count_and_those_after_do_not(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    stages = [{"folder": f"stages/{at}-{name}"} for at, name in enumerate(("assistant", "student", "direct"), 1)]
    run.write("stages", [stage | {"is_result": "student" in stage["folder"]} for stage in stages])
    for part, cost in zip(run.stages, (30.0, 10.0, 40.0), strict=True):
        validated(part, [(0, 0, 2.0), (10, cost, 1.0)])
        part.write("cost", {"training_s": cost, "teacher_text_s": 1.0, "steps": 7, "flops": 4e6, "teacher_tokens": 50})
    assert curve(run, METRIC, At.seconds).points == ((32, 2.0), (42, 1.0))
    assert curve(run, METRIC, At.steps).points == ((7, 2.0), (17, 1.0))
    assert curve(run, METRIC, At.flops).points == ((4e6, 2.0), (1.4e7, 1.0))
    assert curve(run, METRIC, At.teacher_tokens).points == ((50, 2.0), (1050, 1.0))


def test_a_cell_that_begins_too_late_is_named(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    late = sweep.run(planned.cells[0])
    late.write("cost", {"teacher_text_s": 100.0})
    view = equal_cost(tabulate(planned, sweep), At.seconds)
    assert view.x == 8
    assert row_of(view, "forward_kl").mean.num == 2
    assert "No figure there: divergence forward_kl (seed 1). Before its first step" in notes(view)


def test_cells_without_a_curve_are_named_with_the_reason(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    silent, older, idle, broken = (sweep.run(planned.cells[at]) for at in (0, 4, 8, 3))
    silent.metrics_file.write_text('{"step": 10, "validation/perplexity": 3.0}\n')
    older.metrics_file.write_text(json.dumps({"step": 10, f"validation/{METRIC}": 3.0}) + "\n")
    line = {"step": 10, f"validation/{METRIC}": 3.0, "data/teacher_tokens": 0}
    idle.metrics_file.write_text(json.dumps(line) + "\n")
    validated(broken, [(0, 0, 2.0), (16, 8, None)])
    view = equal_cost(tabulate(planned, sweep), At.teacher_tokens)
    assert view.x == 1600
    assert len(view.curves) == 6
    told = notes(view)
    assert f"Without a curve: divergence forward_kl (seed 1): its validations do not measure {METRIC}." in told
    assert "divergence reverse_kl (seed 2): its run does not tell teacher tokens at validations" in told
    assert "divergence jeffreys (seed 3): it is trained without any teacher tokens." in told
    assert f"No finite {METRIC} there: divergence reverse_kl (seed 1)." in told
    with pytest.raises(NoCurve):
        curve(older, METRIC, At.flops)


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    for cell in planned.cells:
        sweep.run(cell).metrics_file.write_text("")
    with pytest.raises(ConfigError, match="nothing to compare at equal steps: its validations do not measure"):
        equal_cost(tabulate(planned, sweep), At.steps)


def test_the_curve_stays_where_nothing_is_kept(tmp_path: Path) -> None:
    planned, sweep = made(tmp_path)
    before = equal_cost(tabulate(planned, sweep), At.seconds)
    for cell in planned.cells:
        run = sweep.run(cell)
        run.write("teacher_text/data/card", {"written_tokens": 700})
        (run.path / "teacher_text" / "data" / "part-00000.jsonl").write_text("{}\n")
        prune(run, Keep.nothing)
    assert not list(sweep.path.rglob("part-*"))
    assert equal_cost(tabulate(planned, sweep), At.seconds) == before
    assert equal_cost(tabulate(planned, sweep), At.teacher_tokens).x == 1600 + 700


# --- The figure, and what is refused beforehand -----------------------------------------------------------------------


def test_the_figure_has_a_line_and_a_band_for_each_row(tmp_path: Path) -> None:
    view = equal_cost(tabulate(*made(tmp_path)), At.seconds)
    drawn = lines(view)
    assert [line.label for line in drawn] == [f"divergence {name}" for name in STEPS]
    assert all(line.has_band for line in drawn)
    assert [x for x, _ in drawn[1].points] == [0, 20, 40]  # all of its own course, beyond where it is compared
    assert drawn[0].points[1][1].high - 1.1 == pytest.approx(T_OF_TWO * 0.1 / math.sqrt(3))
    write_files(view, tmp_path / "at-seconds")
    svg = (tmp_path / "at-seconds.svg").read_text(encoding="utf-8")
    for words in ("divergence reverse_kl", "seconds of training so far", f"{METRIC}, 95% over seed"):
        assert words in svg
    assert (tmp_path / "at-seconds.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.glob("*at-*")) == ["at-seconds.png", "at-seconds.svg"]
    write_files(view, tmp_path / "again")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == svg


@pytest.mark.parametrize(
    ("metric", "settings", "refused"),
    [
        (METRIC, {}, None),
        ("rouge_l", {"checkpoint.best_by": "rouge_l"}, None),
        ("accuracy", {"checkpoint.best_by": "rouge_l", "evaluation.accuracy": "exact"}, None),
        ("rouge_l", {"checkpoint.best_by": "perplexity"}, "checkpoint.best_by=rouge_l validates by it"),
        ("accuracy", {"checkpoint.best_by": "rouge_l"}, "set metric to one of forward_kl_nats"),
        ("size_on_disk_bytes", {}, "set metric to one of forward_kl_nats"),
    ],
)
def test_a_figure_without_a_curve_is_refused_beforehand(
    tmp_path: Path, metric: str, settings: dict[str, Any], refused: str | None
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(json.dumps({"method": "kd", "axes": {"seed": [1]}, "set": settings}), encoding="utf-8")
    recipes = [cell.recipe for cell in plan(file).cells]
    if refused is None:
        check_validated(metric, recipes)
        return
    with pytest.raises(ConfigError) as caught:
        check_validated(metric, recipes)
    assert refused in str(caught.value)
