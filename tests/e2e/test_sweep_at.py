"""Tiny sweeps read at equal cost: what validations say of it is what the run has cost, also where nothing is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from potstill import cli
from potstill.run import Run
from tests.e2e.conftest import SMALL

METHODS = {"kd": {"method": "kd"}, "seqkd": {"method": "seqkd", "max_new_tokens": 4}}


def grid(**settings: object) -> None:
    content = {
        "set": SMALL | {"budget.steps": 4, "checkpoint.every": 2},
        "axes": {"method": METHODS, "seed": [1, 2]},
        "metric": "perplexity",
        "against": {"method": "kd"},
    } | settings
    Path("grid.yaml").write_text(json.dumps(content))


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["potstill", "sweep", "grid.yaml", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_a_sweep_at_equal_cost(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid()
    code, out, err = call(monkeypatch, capsys, "--keep", "nothing", "--at", "steps")
    assert code == 0, err
    assert out.startswith("# grid: perplexity at 4 steps\n")
    folder = Path("sweeps/grid")
    told = json.loads((folder / "at-steps.json").read_text())
    assert (told["x"], [row["n"] for row in told["rows"]]) == (4, [2, 2])
    assert {name.name for name in folder.glob("at-*")} == {f"at-steps.{kind}" for kind in ("md", "json", "svg", "png")}
    assert not list(folder.rglob("*.safetensors"))
    for cell in (cell for row in told["rows"] for cell in row["cells"]):
        run = Run(folder / cell["run"])
        first, *_, last = [line for line in run.metrics() if "validation/perplexity" in line]
        cost = run.read("cost")
        assert [first[key] for key in ("data/teacher_tokens", "time/training_s", "compute/flops")] == [0, 0, 0]
        assert last["data/teacher_tokens"] == cost["teacher_tokens"]
        assert last["time/training_s"] == pytest.approx(cost["training_s"], abs=1e-4)
        assert last["compute/flops"] == cost["flops"] > 0
        assert cell["curve"][-1] == [4, last["validation/perplexity"]]
        assert cell["value"] == last["validation/perplexity"]

    code, out, err = call(monkeypatch, capsys, "--at", "seconds", "--format", "json")  # nothing is left to run
    assert (code, err.count(": begins")) == (0, 0)
    by_method = {row["settings"]["method"]: row for row in json.loads(out)["rows"]}
    assert all(cell["curve"][0][0] == 0 for cell in by_method["kd"]["cells"])
    assert all(cell["curve"][0][0] > 0 for cell in by_method["seqkd"]["cells"])  # the teacher wrote first

    grid(metric="rouge_l_sampled")
    code, _, err = call(monkeypatch, capsys, "--at", "flops")
    assert (code, "--at needs a figure of validations" in err) == (2, True)
    assert not (folder / "at-flops.md").exists()
