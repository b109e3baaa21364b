"""The study in examples/study_divergences: its smoke runs, nothing is done twice, verdicts follow the rules."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "examples" / "study_divergences"
SEEDS = (101, 102, 103, 104, 105)


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    return _module("claims")


@pytest.fixture(scope="module")
def paired() -> ModuleType:
    return _module("paired")


def _module(name: str) -> ModuleType:
    """A module of the study, whose folder is on the path while it is imported and no longer."""
    sys.path.insert(0, str(FOLDER))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(FOLDER))


def figures(differences: tuple[float, ...], base: float = 3.0) -> dict[str, dict[int, dict[str, float]]]:
    """Two methods, "new" less "old" being what is given, seed by seed."""
    bases = {seed: base + 0.1 * at for at, seed in enumerate(SEEDS)}
    new = {seed: {"nll": bases[seed] + change} for seed, change in zip(SEEDS, differences, strict=False)}
    return {"old": {seed: {"nll": value} for seed, value in bases.items()}, "new": new}


def verdict_of(claims: ModuleType, differences: tuple[float, ...], margin: float) -> Any:
    comparison = claims.Comparison("new", "nll", "old", direction="lower", margin=margin)
    claim = claims.Claim("X", "new is lower", (comparison,))
    return claims.judge([claim], 0.05, SEEDS, {1: figures(differences)}, {})[0]


def test_a_claim_holds_only_if_every_seed_is_beyond_the_margin(claims: ModuleType) -> None:
    differences = (-0.31, -0.33, -0.32, -0.30, -0.34)
    held = verdict_of(claims, differences, margin=0.29)
    assert held.verdict == claims.HOLDS
    assert held.outcomes[0].mean == pytest.approx(-0.32)
    assert verdict_of(claims, differences, margin=0.305).verdict == claims.FAILS  # one seed of five is within it
    assert verdict_of(claims, tuple(-value for value in differences), margin=0.0).verdict == claims.FAILS
    assert verdict_of(claims, (*differences[:4], 0.01), margin=0.0).verdict == claims.FAILS


def test_a_noisy_difference_does_not_hold_though_every_seed_agrees(claims: ModuleType) -> None:
    verdict = verdict_of(claims, (-0.001, -0.001, -0.002, -3.0, -0.001), margin=0.0)
    assert verdict.outcomes[0].holds
    assert verdict.p > 0.05
    assert verdict.verdict == claims.FAILS


def test_holm_counts_the_whole_family(claims: ModuleType) -> None:
    """The same differences hold alone and not as one of five claims."""
    differences = (-0.001, -0.001, -0.002, -0.0035, -0.001)
    alone = verdict_of(claims, differences, margin=0.0)
    assert alone.verdict == claims.HOLDS
    family = claims.judge([alone.claim] * 5, 0.05, SEEDS, {1: figures(differences)}, {})
    assert family[0].p_holm == pytest.approx(5 * alone.p)
    assert family[0].outcomes[0].holds
    assert family[0].verdict == claims.FAILS


def test_a_missing_or_broken_run_is_never_a_success(claims: ModuleType) -> None:
    assert verdict_of(claims, (-1.0, -1.1, -1.2, -0.9), margin=0.1).verdict == claims.UNMEASURED
    assert verdict_of(claims, (-1.0, -1.1, -1.2, -0.9, math.nan), margin=0.1).verdict == claims.FAILS


def test_a_claim_without_a_rule_or_with_a_misspelt_one_is_refused(claims: ModuleType, tmp_path: Path) -> None:
    texts = (
        "- {id: X, claim: c, comparisons: [{of: a, against: b, metric: m}]}",
        "- {id: X, claim: c, comparisons: [{of: a, against: b, metric: m, direction: smaller}]}",
        "- {id: X, claim: c, comparisons: [{of: a, against: b, metric: m, direction: lower, margn: 1}]}",
        "- {id: X, claim: c}",
    )
    for text in texts:
        (tmp_path / "claims.yaml").write_text(f"alpha: 0.05\nclaims:\n  {text}\n")
        with pytest.raises((ValueError, TypeError)):
            claims.read_claims(tmp_path / "claims.yaml")


def test_the_declared_claims_are_read(claims: ModuleType) -> None:
    alpha, declared = claims.read_claims(FOLDER / "claims.yaml")
    rules = {
        (claim.id, part.of, part.against, part.metric): part.rule for claim in declared for part in claim.comparisons
    }
    assert alpha == 0.05
    assert {claim.id for claim in declared} == {"R1", "R1b", "R2", "R3", "R4", "R5", "R6", "R16"}
    assert rules["R4", "on_RKL", "SFT", "teacher_nll_own_nats"] == "each < -0.3"
    assert rules["R6", "on_k3", "on_PG", "teacher_nll_own_nats"] == "each > 0.3"


def test_statistics_of_five_differences(paired: ModuleType) -> None:
    """Tabled values of Student's t, and an exact binomial tail."""
    assert paired.t_quantile(0.95, 4) == pytest.approx(2.7764451, abs=1e-6)
    assert paired.t_quantile(0.95, 1) == pytest.approx(12.7062047, abs=1e-6)
    assert paired.t_quantile(0.99, 9) == pytest.approx(3.2498355, abs=1e-6)
    low, high = paired.t_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((3 - 1.9632432, 3 + 1.9632432), abs=1e-6)
    assert paired.t_test([1, 2, 3, 4, 5]) == pytest.approx(0.0066173, abs=1e-6)
    assert paired.t_test([-1, -2, -3, -4, -5]) == pytest.approx(1 - 0.0066173, abs=1e-6)
    assert paired.wins_by_chance([1, 1, 1, 1, 1]) == 1 / 32
    assert paired.wins_by_chance([1, 1, 1, 1, 0]) == 6 / 32


def test_an_exact_row_is_held_to_its_bounds(claims: ModuleType) -> None:
    row = {"largest_nats": 2.0, "bound_nats": 2.3, "largest_gradient": 1.0, "gradient_bound": 2.0}
    claim = claims.Claim("X", "bounded", exact="bounds")
    broken = ({"largest_nats": 2.4}, {"largest_nats": math.nan}, {"largest_gradient": math.inf})
    assert claims.judge([claim], 0.05, SEEDS, {}, {"bounds": [row]})[0].verdict == claims.HOLDS
    assert claims.judge([claim], 0.05, SEEDS, {}, {"bounds": []})[0].verdict == claims.UNMEASURED
    for change in broken:
        assert claims.judge([claim], 0.05, SEEDS, {}, {"bounds": [row, row | change]})[0].verdict == claims.FAILS


def test_expected_gradients_of_the_sampled_losses() -> None:
    """Over every token the student may draw: the policy gradient's is reverse KL's, k3's is forward KL's."""
    methods = _module("methods")
    draws = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(7, generator=draws, dtype=torch.float64) for _ in range(2))
    tokens = torch.arange(7)[:, None]

    def gradient(loss: Callable[..., Tensor]) -> Tensor:
        logits = student.clone().requires_grad_()
        values = loss(logits.expand(7, 1, 7), teacher.expand(7, 1, 7), tokens)
        (found,) = torch.autograd.grad((values[:, 0] * student.softmax(-1)).sum(), logits)
        return found

    exact = {name: gradient(methods.METHODS[name].loss) for name in ("on_RKL", "on_FKL", "on_PG", "on_k3")}
    torch.testing.assert_close(exact["on_PG"], exact["on_RKL"])
    torch.testing.assert_close(exact["on_k3"], exact["on_FKL"])
    assert (exact["on_RKL"] - exact["on_FKL"]).abs().max() > 0.1


# --- The command ------------------------------------------------------------------------------------------------------


def study(out: Path, data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"POTSTILL_DATA": str(data), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "study.py"), "--out", str(out), "--smoke", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def smoke(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (data_dir / "tinystories").is_dir():
        pytest.skip(f"needs TinyStories in {data_dir / 'tinystories'}")
    out = tmp_path_factory.mktemp("study")
    done = study(out, data_dir)
    assert done.returncode == 0, done.stderr
    return out


def test_the_smoke_measures_two_methods_with_two_seeds_and_judges_them(smoke: Path) -> None:
    results = json.loads((smoke / "results.json").read_text())
    text = (smoke / "results.md").read_text()
    (verdict,) = [v for v in results["verdicts"] if v["id"] == "R4" and v["teacher"] == 1]
    seeds = results["figures"]["1"]
    for comparison in verdict["comparisons"]:
        for seed in ("101", "102"):
            new, old = (seeds[name][seed][comparison["metric"]] for name in ("on_RKL", "SFT"))
            assert comparison["differences"][seed] == pytest.approx(new - old, rel=1e-12)
        assert f"{comparison['differences']['101']:+.3f} / {comparison['differences']['102']:+.3f}" in text
    assert seeds["on_RKL"]["101"]["reverse_kl_own_nats"] < seeds["initial student"]["101"]["reverse_kl_own_nats"]
    assert seeds["SFT"]["101"]["ce_data_nats"] < seeds["initial student"]["101"]["ce_data_nats"]
    assert seeds["SFT"]["101"]["ce_data_nats"] != seeds["SFT"]["102"]["ce_data_nats"]
    assert seeds["teacher itself"]["0"]["reverse_kl_own_nats"] == 0
    assert {v["verdict"] for v in results["verdicts"] if v["id"] in ("R1", "R2", "R6")} == {"NOT MEASURED"}
    assert [v["verdict"] for v in results["verdicts"] if v["id"] == "R16"] == ["HOLDS"]
    assert seeds["gradient_noise"]["101"]["variance_ratio"] > 1
    assert all((smoke / name).stat().st_size > 5000 for name in ("modes.png", "claims.png", "exposure.png"))


def test_a_stopped_study_goes_on_without_doing_anything_twice(smoke: Path, data_dir: Path) -> None:
    """One result is taken away; it is made again, bit for bit but for its time, and nothing else is touched."""
    lost = smoke / "results" / "teacher-1" / "seed-102" / "on_RKL.json"
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    kept = json.loads(lost.read_text())
    lost.unlink()
    done = study(smoke, data_dir)
    assert done.returncode == 0, done.stderr
    assert "11 results, 10 of them there already" in done.stdout
    again = json.loads(lost.read_text())
    assert again["metrics"].pop("train_s") != kept["metrics"].pop("train_s")
    assert again == kept
    generated = {lost, *(smoke / name for name in ("results.md", "results.json", "modes.png", "claims.png"))}
    generated.add(smoke / "exposure.png")
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} == generated


def test_results_of_another_teacher_or_other_sizes_are_refused(smoke: Path) -> None:
    runs, store, settings = (_module(name) for name in ("runs", "store", "settings"))
    place = store.Place(smoke, 1, 101, "SFT")
    assert runs.finished(place, settings.SMOKE)["method"] == "SFT"
    with pytest.raises(SystemExit, match="another settings"):
        runs.finished(place, settings.FULL)
    kept = place.path.read_text()
    place.path.write_text(json.dumps(json.loads(kept) | {"teacher_hash": "0" * 64}))
    with pytest.raises(SystemExit, match=r"another teacher_hash \(000000000000"):
        runs.finished(place, settings.SMOKE)
    place.path.write_text(kept)


def test_rules_do_not_change_once_a_study_has_begun(tmp_path: Path) -> None:
    command = _module("study")
    command.freeze_claims(tmp_path)
    command.freeze_claims(tmp_path)
    frozen = tmp_path / "claims.yaml"
    frozen.write_text(frozen.read_text().replace("margin: 0.3", "margin: 0.1"))
    with pytest.raises(SystemExit, match="is not what this study was begun with"):
        command.freeze_claims(tmp_path)
