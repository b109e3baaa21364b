"""Every objective, signal and weighting from the command's own settings to a trained student; and the selftest."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

import potstill as package
from potstill import recipe
from tests.e2e.conftest import SMALL, Command, as_arguments

DIVERGENCES = [section().name for section in get_args(recipe.AnyDivergence)]
# Importance weights are of sampled tokens, which kd has none of: tests/e2e/test_on_policy.py has those.
WEIGHTINGS = [name for section in get_args(recipe.AnyWeighting) if (name := section().name) != "importance"]
QUICK = SMALL | {"budget.steps": 3, "checkpoint.every": 3, "evaluation.generate_examples": 1}


def trained(**settings: Any) -> list[dict[str, Any]]:
    return [line for line in package.train("kd", **QUICK | settings).metrics() if "train/loss" in line]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_trains(divergence: str) -> None:
    lines = trained(divergence=divergence)
    unitless = {"total_variation", "squared_hellinger", "alpha_beta", "assistant_divergence", "logit_matching"}
    metric = f"train/data/{divergence}" + "_nats" * (divergence not in unitless)
    assert all(line[metric] > 0 for line in lines)
    assert all(line["optim/grad_norm"] > 0 for line in lines)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_trains(weighting: str) -> None:
    assert all(line["train/loss"] > 0 for line in trained(weighting=weighting))


@pytest.mark.usefixtures("workspace")
def test_every_sparse_teacher_trains() -> None:
    full = trained()[0]["train/loss"]
    assert 0 < trained(signal={"name": "top_k", "k": 8})[0]["train/loss"] < full  # a lower bound
    assert trained(signal={"name": "sampled", "draws": 12})[0]["train/loss"] > full  # to what is more certain


@pytest.mark.usefixtures("workspace")
def test_regularisers_stand_beside_a_divergence() -> None:
    terms = [
        {"objective": "forward_kl"},
        {"objective": "entropy", "coefficient": -0.01},
        {"objective": "unlikelihood", "coefficient": 0.1},
        {"objective": "embedding_similarity", "coefficient": 0.1, "reduction": "sequence_mean"},
    ]
    (first, *_) = trained(**{"streams.0.terms": terms})
    parts = {name: first[f"train/data/{name}_nats"] for name in ("forward_kl", "entropy", "unlikelihood")}
    similarity = first["train/data/embedding_similarity"]
    assert -1 <= similarity <= 1
    expected = parts["forward_kl"] - 0.01 * parts["entropy"] + 0.1 * parts["unlikelihood"] + 0.1 * similarity
    assert first["train/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("workspace")
def test_a_top_k_larger_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(package.PotstillError, match=r"(?s)signal.k is 5000 .* fix: set a smaller k"):
        trained(signal={"name": "top_k", "k": 5000})


# --- selftest ---------------------------------------------------------------------------------------------------------


MODELS = {"teacher": "teacher", "student.keep_layers": 2, "data": "rows.jsonl", "device": "cpu"}


def test_selftest_holds_on_a_pair_of_models(potstill: Command) -> None:
    result = potstill("selftest", *as_arguments(MODELS), "--format", "json")
    assert result.returncode == 0, result.stderr
    checks = json.loads(result.stdout)
    assert all(check["passed"] for check in checks)
    by_name = {check["what"]: check["figure"] for check in checks}
    for name in DIVERGENCES:
        assert by_name[f"student = teacher: largest {name}"] < 1e-5
        assert by_name[f"another teacher: change of the gradient of {name}"] > 1e-2
    assert by_name["cosine to forward_kl: top 64 + tail"] > by_name["cosine to forward_kl: top 8 + tail"] > 0
    limited = [check for check in checks if check["limit"] is not None]
    assert len(limited) >= 3 * len(DIVERGENCES) + 10


def test_selftest_tries_the_recipe_it_is_given(potstill: Command) -> None:
    result = potstill(
        "selftest", "kd", *as_arguments(MODELS), "divergence=skew_forward_kl", "weighting=top_fraction", "ce_weight=0.3"
    )
    assert result.returncode == 0, result.stderr
    assert "one row in a micro-batch: change of the gradient" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("all ")


def test_selftest_fails_where_an_identity_does_not_hold(
    potstill: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that is a cross-entropy, as three public codes have it, and a layout that counts padding."""
    import typer

    from potstill import cli, objectives

    true_kl = objectives.forward_kl
    monkeypatch.setattr(objectives, "forward_kl", lambda s, t, **k: true_kl(s, t, **k) + 1.0)
    with pytest.raises(typer.Exit) as caught:
        cli.selftest(as_arguments(MODELS))
    assert caught.value.exit_code == 1
    said = capsys.readouterr().out
    failed = [line for line in said.splitlines() if "FAILED" in line]
    assert [line.split("  ")[0] for line in failed] == ["student = teacher: largest forward_kl"]
    assert said.splitlines()[-1].startswith("1 of ")


def test_selftest_without_a_teacher_says_what_to_do(potstill: Command) -> None:
    result = potstill("selftest", "sft", "student.model=teacher", "data=rows.jsonl")
    assert result.returncode == 2
    assert "has no teacher to compare with" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("settings", [["student=teacher"], ["weighting=entropy_gate", "weighting.threshold=99"]])
def test_selftest_of_a_loss_that_is_nothing_measures_differences_and_not_shares(
    potstill: Command, settings: list[str]
) -> None:
    """At agreement, or where a gate lets nothing through, there is no gradient to take a share of."""
    models = {
        key: value for key, value in MODELS.items() if not (key.startswith("student") and "student" in settings[0])
    }
    result = potstill("selftest", *as_arguments(models), *settings, "--format", "json")
    assert "Traceback" not in result.stderr
    changes = [check for check in json.loads(result.stdout) if "change of the gradient" in check["what"]]
    arrangements = [check for check in changes if not check["what"].startswith("another teacher")]
    assert len(arrangements) == 5
    assert all(check["passed"] for check in arrangements)
