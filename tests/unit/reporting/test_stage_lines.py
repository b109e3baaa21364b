"""A run of several stages in its table and on its page, finished or not."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from potstill.reporting.report import render, write_report
from potstill.reporting.stages import rich_stages, stage_lines
from potstill.reporting.summary import is_finished, places, summary
from potstill.run import Run
from tests.unit.reporting.fake_runs import COST, RECIPE, write_run

NAMES = ("warm-up", "assistant")
EVIL = "</td><script>alert(1)</script>"


def several(folder: Path, *, begun: int) -> Run:
    """Two stages, of which so many were run."""
    run = Run(folder)
    folder.mkdir()
    run.recipe_file.write_text(RECIPE.replace("method: kd", f"method: '{EVIL}'"), encoding="utf-8")
    plan = [{"name": name, "method": "kd", "folder": f"stages/{at}-{name}"} for at, name in enumerate(NAMES, 1)]
    run.write("stages", [one | {"recipe_sha256": "0", "student_sha256": None} for one in plan])
    for one in plan[:begun]:
        recipe = RECIPE.replace("model: smollm2-135m-instruct", "model: runs/r/stages/1-warm-up/student")
        write_report(write_run(folder / one["folder"], recipe=recipe))
    return run


def test_a_line_has_what_its_stage_has_measured_and_dashes_for_the_rest(tmp_path: Path) -> None:
    first, second = stage_lines(several(tmp_path / "r", begun=1))
    assert (first.steps, first.seconds, first.metric) == (60, COST["training_s"], "forward_kl_nats")
    assert (first.before, first.after, first.data) == (7.913, 1.704, "starter")
    assert first.teacher == "of 1-warm-up"
    assert list(first.shown.values()) == ["60", "3 min 23 s", "forward KL (nats)", "7.913", "1.704"]
    assert (second.steps, second.before, second.after, second.teacher) == (None, None, None, None)
    assert set(second.shown.values()) == {"-"}


def test_the_page_leads_to_the_reports_that_are_there_and_shows_text_as_text(tmp_path: Path) -> None:
    run = several(tmp_path / "r", begun=1)
    page = render(run)
    assert 'href="stages/1-warm-up/report.html"' in page
    assert "2-assistant/report.html" not in page
    assert "<script" not in page
    assert "The trained student has not been measured yet." in page  # that of the last stage
    assert 'href="stages/2-assistant/report.html"' in render(several(tmp_path / "both", begun=2))


def test_the_terminal_and_json_have_the_same_lines(tmp_path: Path) -> None:
    run = several(tmp_path / "r", begun=2)
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(rich_stages(run))
    assert out.getvalue().splitlines()[0].strip() == "stages of r"
    assert "warm-up" in out.getvalue()
    told = summary(run)
    assert [line["after"] for line in told["stages"]] == [1.704, 1.704]
    assert (told["run"], told["student_after"]["forward_kl_nats"]) == ("r", 1.704)
    assert run.result.name == "r"
    assert run.stages[0].name == "r/stages/1-warm-up"


def test_stages_that_are_not_finished_are_named_and_how_the_run_goes_on(tmp_path: Path) -> None:
    run = several(tmp_path / "r", begun=2)
    plan = run.read("stages")
    for hashes, named in ((["0", None], "not finished: assistant"), (["0", "0"], None)):
        run.write("stages", [one | {"student_sha256": sha} for one, sha in zip(plan, hashes, strict=True)])
        out = io.StringIO()
        Console(file=out, width=80, color_system=None).print(rich_stages(run))
        assert ("not finished" in out.getvalue()) == bool(named)
        assert (named or "assistant") in out.getvalue()
        assert is_finished(run) == (named is None)
        assert ("go on with `potstill resume" in places(run)[-1]) == bool(named)
    assert summary(run)["student"] is None


def test_a_run_of_one_stage_has_no_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    assert stage_lines(run) == []
    assert "stages" not in summary(run)
    assert run.result is run
