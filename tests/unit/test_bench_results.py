"""What the benchmarks keep: ratios, what has fallen under the recorded ones, and the table of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import __main__ as command
from bench import measuring, results, scaling
from bench.measuring import Effort, LeftOut
from bench.results import Result

MACHINE = {"name": "Some Processor 9000 avx2 2 cores", "torch": "2.13"}
STEP = Result("B1", "step", "s", (2.0, 1.0, 4.0), "TRL GKD", (6.0, 5.0, 9.0), target=2.4)
FLOOR = Result("B3", "forward_kl", "s", (1.2,), "4 products", (1.0,), "floor", 0.8)


def slower(result: Result, times: float) -> Result:
    return replace(result, ours=tuple(times * figure for figure in result.ours))


def test_the_ratio_is_theirs_over_ours_of_the_medians() -> None:
    assert STEP.ratio == 3.0
    assert not STEP.misses
    assert slower(STEP, 2).misses
    assert not replace(slower(STEP, 2), target=None).misses


# --- What has fallen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "falls"), [(0.5, False), (1.0, False), (1 / 0.91, False), (1 / 0.89, True)])
def test_a_ratio_under_nine_tenths_of_the_recorded_one_has_fallen(times: float, falls: bool) -> None:
    found = results.fallen([slower(STEP, times), FLOOR], [STEP, FLOOR])
    assert bool(found) == falls
    assert all("B1" in line and "recorded 3.00" in line for line in found)


def test_a_machine_that_is_slower_at_everything_has_not_fallen() -> None:
    whole = replace(slower(STEP, 3), theirs=tuple(3 * figure for figure in STEP.theirs))
    assert results.fallen([whole], [STEP]) == []


@pytest.mark.parametrize("changed", [{"benchmark": "B2"}, {"case": "a"}, {"unit": "MiB"}, {"against": "full logits"}])
def test_only_the_same_comparison_is_compared(changed: dict[str, str]) -> None:
    assert results.fallen([slower(replace(STEP, **changed), 10)], [STEP]) == []  # type: ignore[arg-type]


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_what_was_saved_is_read_as_it_was(tmp_path: Path) -> None:
    path = results.save(tmp_path, "2026-11-22", MACHINE, [FLOOR, STEP])
    assert path.name == "2026-11-22_some-processor-9000-avx2-2-cores.json"
    assert results.read(path) == [STEP, FLOOR]
    told = json.loads(path.read_text())
    assert told["machine"] == MACHINE
    assert [one["ratio"] for one in told["results"]] == [3.0, 0.8333]


def test_benchmarks_that_were_not_run_again_stay_in_the_file_of_the_day(tmp_path: Path) -> None:
    results.save(tmp_path, "2026-11-22", MACHINE, [STEP, FLOOR])
    path = results.save(tmp_path, "2026-11-22", MACHINE, [slower(STEP, 0.5)])
    assert results.read(path) == [slower(STEP, 0.5), FLOOR]


def test_recorded_is_the_latest_of_each_comparison_on_this_machine(tmp_path: Path) -> None:
    results.save(tmp_path, "2026-11-20", MACHINE, [slower(STEP, 4), FLOOR])
    results.save(tmp_path, "2026-11-21", MACHINE, [STEP])
    results.save(tmp_path, "2026-11-22", MACHINE | {"name": "another"}, [slower(STEP, 9)])
    found = {result.benchmark: result for result in results.recorded(tmp_path, str(MACHINE["name"]))}
    assert found == {"B1": STEP, "B3": FLOOR}


def test_what_has_fallen_is_no_record(tmp_path: Path) -> None:
    results.save(tmp_path, "2026-11-21", MACHINE, [STEP])
    results.save(tmp_path, "2026-11-22", MACHINE, [slower(STEP, 2)], fell=["B1"])
    assert results.recorded(tmp_path, str(MACHINE["name"])) == [STEP]


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_the_table_has_floors_and_peers_in_columns_of_their_own_and_names_what_is_missed() -> None:
    _, _, step, floor, missed = results.table([STEP, FLOOR, slower(FLOOR, 2)]).splitlines()
    assert [cell.strip() for cell in step.split("|")[4:9]] == ["", "6 TRL GKD", "2 (1)", "3.00", ">= 2.4"]
    assert [cell.strip() for cell in floor.split("|")[4:9]] == ["1 4 products", "", "1.2 (1.2)", "0.83", ">= 0.8"]
    assert missed.endswith("| 0.42 | >= 0.8, missed |")


def test_a_page_gets_the_last_table_in_place_of_the_one_before() -> None:
    begin, end = results.MARKS
    page = f"before\n{begin}\nold\n{end}\nafter"
    once = results.put_into(page, "new")
    assert once == f"before\n{begin}\nnew\n{end}\nafter"
    assert results.put_into(once, "new") == once
    with pytest.raises(ValueError, match="no <!-- results"):
        results.put_into("nothing", "new")


# --- The command ------------------------------------------------------------------------------------------------------


class Measured:
    """A benchmark that finds what it is told to find, or cannot run."""

    def __init__(self, found: Any):
        self.found = found

    def measure(self, effort: Effort) -> list[Result]:
        if isinstance(self.found, Exception):
            raise self.found
        return [self.found]


def ran(monkeypatch: pytest.MonkeyPatch, folder: Path, found: dict[str, Any], *arguments: str) -> int:
    """The command's exit status over benchmarks that take no time."""
    (folder / "README.md").write_text("\n".join(results.MARKS)) if not (folder / "README.md").exists() else None
    monkeypatch.setattr(command, "HERE", folder)
    monkeypatch.setattr(command, "MODULES", {name: name for name in found})
    monkeypatch.setattr(command.importlib, "import_module", lambda name: Measured(found[name.removeprefix("bench.")]))
    monkeypatch.setattr(command.sys, "argv", ["bench", *arguments])
    return command.main()


def test_the_command_fails_only_where_a_ratio_falls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(monkeypatch, tmp_path, {"B1": STEP, "B8": LeftOut("no packing")}) == 0
    assert "B8 B8 is left out: no packing" in capsys.readouterr().out
    page = (tmp_path / "README.md").read_text()
    assert "| B1 | step |" in page
    assert ran(monkeypatch, tmp_path, {"B1": slower(STEP, 2)}) == 1
    assert "fallen" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == page
    assert ran(monkeypatch, tmp_path, {"B1": slower(STEP, 2)}) == 1  # it has not become the record
    assert ran(monkeypatch, tmp_path, {"B1": slower(STEP, 1.05)}) == 0


def test_a_quick_run_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ran(monkeypatch, tmp_path, {"B1": STEP}, "--quick") == 0
    assert not (tmp_path / "results").exists()


def test_an_unknown_benchmark_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no benchmark B9: choose from B1"):
        ran(monkeypatch, tmp_path, {"B1": STEP}, "--only", "b1,b9")


# --- Growth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_an_exponent_is_the_power_that_a_figure_grows_with(power: float) -> None:
    at = [1_000, 2_000, 16_000]
    assert scaling.exponent(at, [3 * x**power for x in at]) == pytest.approx(power, abs=1e-12)
    disturbed = [3 * x**power * times for x, times in zip(at, (1.1, 1.0, 0.8), strict=True)]
    assert scaling.exponent(at, disturbed) == pytest.approx(np.polyfit(np.log(at), np.log(disturbed), 1)[0])


# --- Measuring --------------------------------------------------------------------------------------------------------


def test_subjects_have_their_turns_in_order() -> None:
    seen: list[str] = []
    found = measuring.in_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3)
    assert seen == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}


def test_subjects_that_disagree_are_not_timed() -> None:
    measuring.assert_equal({"a": 2.0, "b": 2.0001})
    with pytest.raises(RuntimeError, match="should be equal"):
        measuring.assert_equal({"a": 2.0, "b": 2.001})
