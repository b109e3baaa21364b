"""Runs side by side, from training to the page: what the command says is what the rows say."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill import api
from potstill.errors import ConfigError
from potstill.run import Run
from potstill.run_models import model_named
from tests import tiny
from tests.e2e.conftest import SMALL, Command

SUITE = {"suites": ["instruction"], "max_new_tokens": 6, "seeds": [1]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A folder with two finished runs."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "teacher").symlink_to(teacher_folder)
    tiny.data_file(folder)
    with contextlib.chdir(folder):
        api.train("kd", **SMALL | {"run": "first", "baseline": "equal_time_sft"})
        api.train("kd", **SMALL | {"run": "second", "budget.steps": 2, "optimizer.learning_rate": 1e-5})
    return folder


@pytest.fixture
def runs(trained: Path, workspace: Path) -> tuple[Run, Run]:
    shutil.copytree(trained / "runs", workspace / "runs", symlinks=True)
    return Run(Path("runs/first")), Run(Path("runs/second"))


@pytest.fixture
def own_rows(workspace: Path) -> Path:
    file = workspace / "own.jsonl"
    rows = [{"prompt": f"row {n}", "response": f"answer {n} {n % 3}"} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_models_of_a_run_have_names(runs: tuple[Run, Run]) -> None:
    first, _ = runs
    assert model_named("first") == model_named("first:student") == str(first.student)
    assert model_named("first:teacher") == "teacher"
    assert model_named("first:sft") == str(first.baseline.student)
    assert model_named("teacher") == "teacher"  # a folder is a folder
    assert model_named("someone/some-model:first") == "someone/some-model:first"
    with pytest.raises(ConfigError, match=r"no model 'best'.*"):
        model_named("first:best")
    with pytest.raises(ConfigError, match=r"no model 'techer'\n  fix: Did you mean 'teacher'\? It is one of teacher, "):
        model_named("first:techer")
    with pytest.raises(ConfigError, match="second has no sft\n  fix: train with baseline=equal_time_sft"):
        model_named("second:sft")


def test_a_run_of_sft_says_which_models_stand_for_those_it_has_not(workspace: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "teacher"}
    api.train("sft", **settings | {"run": "tuned", "student.model": "teacher", "budget.steps": 1})
    with pytest.raises(ConfigError, match="method sft trains without one; name another run's teacher, or tuned:untou"):
        model_named("tuned:teacher")
    with pytest.raises(ConfigError, match="fix: name the run itself, tuned: it is fine-tuned"):
        model_named("tuned:sft")
    assert model_named("tuned") == str(Path("runs/tuned/student"))


def test_the_untouched_student_is_cut_again_as_it_was(runs: tuple[Run, Run]) -> None:
    """Other layers are noted than the first ones, which a cut that does not look would take too."""
    first, _ = runs
    first.write("student", first.read("student") | {"kept_layers": [1, 3]})
    folder = Path(model_named("first:untouched"))
    assert folder == first.path / "untouched"
    kept = first.read("student")["kept_layers"]
    teacher = AutoModelForCausalLM.from_pretrained("teacher")
    untouched = AutoModelForCausalLM.from_pretrained(folder)
    assert len(untouched.model.layers) == len(kept)
    for mine, layer in zip(untouched.model.layers, kept, strict=True):
        for a, b in zip(mine.parameters(), teacher.model.layers[layer].parameters(), strict=True):
            assert torch.equal(a, b)
    figures = api.evaluate("first:untouched", data="rows.jsonl", answers=False, device="cpu")
    assert figures["num_parameters"] == first.evaluations()["student_before"]["num_parameters"]


def test_the_table_is_what_the_runs_have_measured(runs: tuple[Run, Run]) -> None:
    first, second = runs
    table = api.compare(["first", "second"]).table
    assert [(entry.name, entry.role) for entry in table.entries] == [
        ("teacher", "teacher"),
        ("untouched student", "untouched"),
        ("first, equal-time SFT", "sft"),
        ("first", "student"),
        ("second", "student"),
    ]
    assert table.baseline == table.entries[2]
    parts = ("teacher", "student_before", "equal_time_sft", "student_after", "student_after")
    kl, agreement, perplexity, rouge = table.measures
    for entry, part, run in zip(table.entries, parts, (first, first, first, first, second), strict=True):
        measured = run.evaluations()[part]
        cells = [found[entry.key] for found in table.cells]
        assert cells[0].mean == pytest.approx(measured["forward_kl_nats"], abs=1e-9)
        assert cells[1].mean == pytest.approx(measured["top1_agreement"], abs=1e-9)
        assert perplexity.shown(cells[2].mean) == pytest.approx(measured["perplexity"])
        assert cells[3].mean == pytest.approx(measured["rouge_l"])
        assert [cell.num for cell in cells] == [measured["num_examples"]] * 3 + [measured["num_generated_examples"]]
    assert (kl.better, agreement.better, rouge.better) == ("lower", "higher", "higher")


def test_gaps_and_differences_are_those_of_the_rows(runs: tuple[Run, Run]) -> None:
    first, second = runs
    table = api.compare(["first", "second"]).table
    cell = table.cells[0][table.entries[3].key]
    before, after, sft = (
        first.evaluations()[part]["forward_kl_nats"] for part in ("student_before", "student_after", "equal_time_sft")
    )
    assert cell.gap is not None
    assert cell.gap.share == pytest.approx(1 - after / before)  # the teacher's own forward KL is 0
    assert cell.against is not None
    assert cell.against.difference.mean == pytest.approx(after - sft)
    other = table.cells[0][table.entries[4].key]
    assert other.against is not None
    assert other.against.num == second.evaluations()["student_after"]["num_examples"]
    assert cell.against.p_holm >= cell.against.difference.p
    assert table.cells[0][table.entries[0].key].against is None  # a teacher is no competitor


def test_suites_are_asked_of_every_model_and_only_once(runs: tuple[Run, Run], own_rows: Path) -> None:
    asked: dict[str, Any] = SUITE | {"data": str(own_rows), "device": "cpu"}
    compared = api.compare(["first", "second"], **asked)
    measure = compared.table.measures[-1]
    assert measure.name == "instruction: rouge l greedy"
    assert len(measure.scores) == 5
    folders = sorted(Path("evaluations").iterdir())
    assert len(folders) == 5
    times = [(folder / "scores.json").stat().st_mtime_ns for folder in folders]
    again = api.compare(["first", "second"], **asked)
    assert [(folder / "scores.json").stat().st_mtime_ns for folder in folders] == times
    assert again.table.cells == compared.table.cells
    means = {entry.key: np.mean(list(measure.scores[entry.key].values())) for entry in compared.table.entries}
    for folder in folders:
        scores, told = (json.loads((folder / f"{name}.json").read_text()) for name in ("scores", "settings"))
        assert any(scores["rouge_l_greedy"]["mean"] == pytest.approx(mean) for mean in means.values()), told["model"]
    assert any("5 models have been asked" in line for line in compared.hygiene)


def test_samples_stand_side_by_side_the_most_disputed_first(runs: tuple[Run, Run]) -> None:
    compared = api.compare(["first", "second"])
    assert len(compared.samples) == SMALL["evaluation.generate_examples"]
    assert [answer.entry.name for answer in compared.samples[0].answers] == [e.name for e in compared.table.entries]
    spreads = [sample.spread for sample in compared.samples]
    assert spreads == sorted(spreads, reverse=True)


def test_on_the_command_line(runs: tuple[Run, Run], potstill: Command, own_rows: Path) -> None:
    options = ("--suite", "instruction", "--data", str(own_rows), "--max-new-tokens", "6", "--page", "page.html")
    done = potstill("compare", "first", "second", *options)
    assert done.returncode == 0, done.stderr
    assert "| first, equal-time SFT |" in done.stdout
    assert "Less first, equal-time SFT, on the same examples:" in done.stdout
    assert "one training each" in done.stdout
    page = Path("page.html").read_text()
    assert "instruction: rouge l greedy" in page
    found = json.loads(potstill("compare", "first", "second", "--format", "json").stdout)
    assert [model["name"] for model in found["models"]][-1] == "second"
    refused = potstill("compare", "first", "second", "--baseline", "third")
    assert refused.returncode == 2
    assert "first, equal-time SFT" in refused.stderr
    assert potstill("compare", "first", "first").returncode == 2
