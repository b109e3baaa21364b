"""The figures of the objectives: those the page shows are those that are drawn, and they show what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "objectives.md"


def _load(file: Path) -> ModuleType:
    """tools/ is no package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = _load(ROOT / "tools" / "draw_objectives.py")
LINES = {(family, label): line for family, lines in figures.families().items() for label, line in lines.items()}
every_line = pytest.mark.parametrize("line", LINES.values(), ids=[" ".join(key) for key in LINES])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return figures.draw(tmp_path_factory.mktemp("figures"))


def best_mean(family: str, label: str) -> float:
    means, values = figures.bimodal_curve(LINES[family, label])
    return means[values.argmin()].item()


def test_the_page_shows_every_figure_and_every_figure_is_drawn(drawn: list[Path]) -> None:
    shown = re.findall(r"!\[[^]]+\]\(\.\./images/objectives/([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(file.name for file in drawn) == sorted(f"{name}.svg" for name in figures.families())
    assert {file.name for file in figures.FOLDER.iterdir()} == set(shown)


def test_figures_are_small_white_and_the_same_every_time(drawn: list[Path], tmp_path: Path) -> None:
    for file in drawn:
        text = file.read_text(encoding="utf-8")
        assert file.stat().st_size < 80_000
        assert "fill: #ffffff" in text
        assert "<dc:date>" not in text
        for label in figures.families()[file.stem]:
            assert f">{label}<" in text
    for again in figures.draw(tmp_path):
        assert again.read_bytes() == (drawn[0].parent / again.name).read_bytes()


@every_line
def test_curves_are_finite_and_never_negative(line: Callable) -> None:
    for curve in (*figures.two_token_curve(line), *figures.bimodal_curve(line)):
        assert curve.isfinite().all()
    assert figures.two_token_curve(line)[1].min() > -1e-12
    assert figures.bimodal_curve(line)[1].min() > -1e-12


@every_line
def test_zero_with_gradient_zero_at_the_teacher(line: Callable) -> None:
    _, value, gradient = figures.two_token_curve(line, torch.tensor([0.9], dtype=torch.float64))
    assert abs(value.item()) < 1e-14
    assert abs(gradient.item()) < 1e-14


def test_forward_kl_lies_between_the_bumps_and_reverse_kl_on_one() -> None:
    left, right = figures.BUMPS
    assert left + figures.WIDTH < best_mean("kl", "forward_kl") < right - figures.WIDTH
    assert best_mean("kl", "reverse_kl") == left


def test_what_the_page_reads_from_the_figures() -> None:
    """Skewed forward KL at 0.1 and Jensen-Shannon at 0.1 sit on a bump; adaptive KL at 0.2 beside it."""
    assert best_mean("skew", "skew_forward_kl, skew 0.1") == figures.BUMPS[0]
    assert abs(best_mean("jensen_shannon", "teacher_weight 0.1") - figures.BUMPS[0]) <= 0.5
    assert best_mean("adaptive_kl", "adaptive_kl, head_mass 0.2") == 10
    far = torch.tensor([0.01, 0.02, 0.05, 0.1, 0.19], dtype=torch.float64)
    assert (figures.two_token_curve(LINES["assistant", "anchor student, alpha 3.0"], far)[2] > 0).all()
    assert (figures.two_token_curve(LINES["assistant", "anchor teacher, alpha 3.0"], far)[2] < 0).all()
    for family, label in (("interpolated", "t 0.4"), ("logit_matching", "weights student")):
        _, value, gradient = figures.two_token_curve(LINES[family, label], torch.tensor([0.01, 0.03]).double())
        assert value[0] < value[1]
        assert (gradient < 0).all()
