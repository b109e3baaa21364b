"""Matching what is inside models beside a method: trained, stopped, resumed, exported, over two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import potstill
from potstill import api, stage
from potstill.checks.selftest import selftest
from potstill.errors import ConfigError, DataError
from potstill.recipes import METHODS
from potstill.run import Run
from potstill.training import checkpoint
from tests import tiny
from tests.e2e.conftest import SMALL, Command, as_arguments

NARROW = {"student.keep_layers": 3, "student.keep_hidden": 12}
WEIGHTS = "student/model.safetensors"


def train(**settings: Any) -> Run:
    return potstill.train("feature_kd", **(SMALL | NARROW | settings))


def values(run: Run, key: str) -> list[float]:
    return [line[key] for line in run.metrics() if key in line]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    "feature",
    [
        "hidden_cosine",
        {"name": "hidden_mse", "channels": "random", "layers": {"name": "last", "count": 2}},
        {"name": "hidden_mse", "place": "mlp", "layers": {"name": "pairs", "pairs": [[0, 0], [2, 3]]}},
        {"name": "hidden_correlation", "channels": "kept", "layers": "block_influence"},
        "relation_divergence",
    ],
)
def test_a_feature_is_trained_on_and_leaves_nothing_in_the_student(feature: Any) -> None:
    run = train(run="first", feature=feature, **{"budget.steps": 30, "optimizer.learning_rate": 3e-3})
    name = feature if isinstance(feature, str) else feature["name"]
    unit = "_nats" if name == "relation_divergence" else ""
    found = values(run, f"train/data/{name}{unit}")
    assert len(found) == 30
    assert sum(found[-5:]) < sum(found[:5])
    assert len(values(run, "train/data/forward_kl_nats")) == 30
    student, before = AutoModelForCausalLM.from_pretrained(run.student), run.evaluations()["student_before"]
    assert sum(p.numel() for p in student.parameters()) == before["num_parameters"]
    names = load_file(run.student / "model.safetensors").keys()
    assert not [name for name in names if "map" in name or "projection" in name]


@pytest.mark.usefixtures("workspace")
def test_projections_are_trained_and_kept_in_checkpoints() -> None:
    run = train(run="first")
    first, last = (checkpoint.at(run.checkpoints, step).read_tensors("maps.pt") for step in (6, 8))
    assert list(first) == ["data/hidden_cosine"]
    one, other = (maps["data/hidden_cosine"]["maps.0.projection.weight"] for maps in (first, last))
    assert one.shape == (16, 12)
    assert not torch.equal(one, other)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("channels", ["projection", "selected"])
def test_stopped_and_resumed_is_the_same_bit_for_bit(channels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = {"name": "hidden_cosine", "channels": channels}
    whole = train(run="whole", feature=feature)
    commit = checkpoint.Writer.commit

    def then_die(writer: checkpoint.Writer) -> Any:
        commit(writer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Writer, "commit", then_die)
        with pytest.raises(KeyboardInterrupt):
            train(run="cut", feature=feature)
    cut = api.resume("cut")
    assert (whole.path / WEIGHTS).read_bytes() == (cut.path / WEIGHTS).read_bytes()
    last = (checkpoint.at(run.checkpoints, 8).read_tensors("maps.pt") for run in (whole, cut))
    one, other = (maps["data/hidden_cosine"] for maps in last)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("workspace")
def test_a_student_that_is_its_teacher_has_nothing_to_learn_inside() -> None:
    run = potstill.train(
        "feature_kd",
        **(SMALL | {"run": "same", "student.keep_layers": 4, "feature": {"name": "hidden_mse", "channels": "all"}}),
    )
    assert values(run, "train/data/hidden_mse")[0] == 0


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("text", ["data", "teacher", "student"])
def test_a_feature_may_have_a_stream_of_its_own(text: str) -> None:
    run = train(run="first", text=text, max_new_tokens=6)
    assert len(values(run, "train/inside/hidden_cosine")) == 8
    assert values(run, "train/data/forward_kl_nats")


@pytest.mark.usefixtures("workspace")
def test_any_method_can_have_one_beside_it() -> None:
    for method in ("gkd", "minillm"):
        text = "same" if method == "gkd" else "data"
        run = train(run=method, stage_method=method, text=text, **{"budget.steps": 2})
        stream = "data" if text == "same" else "inside"
        (key,) = {key for line in run.metrics() for key in line if key.endswith("/hidden_cosine")}
        assert len(values(run, key)) == 2
        assert text == "same" or key == f"train/{stream}/hidden_cosine"


@pytest.mark.usefixtures("workspace")
def test_mistakes_are_refused_with_the_fix_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "evaluate", lambda *_: pytest.fail("measured first, which takes minutes"))
    tiny.save(tiny.llama(2, layers=4), Path("other"))
    with pytest.raises(ConfigError, match="of a student that was cut in width from its teacher"):
        train(run="cut", feature={"name": "hidden_mse", "channels": "kept"}, **{"student.model": "other"})
    with pytest.raises(ConfigError, match="the student is 12 wide and the teacher 16"):
        train(run="all", feature={"name": "hidden_mse", "channels": "all"})
    with pytest.raises(ConfigError, match="is 9, and there are 3"):
        train(run="many", feature={"name": "hidden_mse", "layers": {"name": "uniform", "count": 9}})
    with pytest.raises(ConfigError, match="run its teacher with logits"):
        train(run="seqkd", stage_method="seqkd")
    with pytest.raises(ConfigError, match="unknown key"):
        train(run="word", feature={"name": "hidden_mse", "channel": "selected"})
    with pytest.raises(ConfigError, match=r"feature\.layers\.pairs: is missing. Give it a list"):
        train(run="pairs", feature={"name": "hidden_mse", "layers": "pairs"})
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        train(run="file", feature={"name": "hidden_mse", "channels": {"name": "selected", "file": "nowhere.json"}})


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("text", ["same", "data"])
def test_two_processes_equal_one(workspace: Path, potstill: Command, text: str) -> None:
    """Projections stand behind no wrapper, and a stream that is only inside gives the head no gradient."""
    settings = (
        SMALL
        | NARROW
        | {"dtype": "float64", "text": text, "student.freeze_embeddings": False, "evaluation.generate_examples": 1}
    )
    found = {}
    for name, processes, micro in (("one", 1, 4), ("two", 2, 1)):
        arguments = as_arguments(settings | {"run": name, "batch.micro_size": micro})
        done = potstill("train", "feature_kd", *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        run = workspace / "runs" / name
        maps = checkpoint.at(run / "checkpoints", 8).read_tensors("maps.pt")
        key = "data/hidden_cosine" if text == "same" else "inside/hidden_cosine"
        found[name] = losses(run), load_file(run / "checkpoints/step-000008" / WEIGHTS), maps[key]
    torch.testing.assert_close(found["two"], found["one"], rtol=0, atol=1e-9)


@pytest.mark.usefixtures("workspace")
def test_a_dry_run_tries_what_is_inside_and_refuses_layers_that_are_not_there() -> None:
    pairs = {"name": "pairs", "pairs": [[0, 0], [2, 3]]}
    for feature in (
        {"name": "hidden_cosine", "layers": pairs, "channels": "selected"},
        {"name": "hidden_mse", "layers": "last", "channels": "kept"},
        {"name": "relation_divergence", "heads": 2},
    ):
        (tried,) = api.dry_run("feature_kd", **(SMALL | NARROW | {"feature": feature}))
        assert [name for name in tried.terms if feature["name"] in name]
    missing = {"name": "hidden_mse", "layers": {"name": "pairs", "pairs": [[0, 4]]}}
    with pytest.raises(ConfigError, match="names layer 4 of the teacher, which has 4"):
        api.dry_run("feature_kd", **(SMALL | NARROW | {"feature": missing}))


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("feature", ["hidden_cosine", {"name": "hidden_correlation", "channels": "selected"}])
def test_the_selftest_knows_what_is_inside(feature: Any) -> None:
    checks = list(selftest("feature_kd", SMALL | NARROW | {"feature": feature}, METHODS, False))
    assert all(check.passed for check in checks)
    split = [check for check in checks if "one row in a micro-batch" in check.what]
    assert bool(split) == (feature == "hidden_cosine")


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("place", ["residual", "mlp"])
def test_layers_computed_again_show_the_same(place: str) -> None:
    feature = {"name": "hidden_cosine", "place": place}
    plain, again = (
        train(run=name, feature=feature, gradient_checkpointing=wanted)
        for name, wanted in (("plain", False), ("again", True))
    )
    assert values(plain, "train/data/hidden_cosine") == values(again, "train/data/hidden_cosine")
    assert (plain.path / WEIGHTS).read_bytes() == (again.path / WEIGHTS).read_bytes()


@pytest.mark.usefixtures("workspace")
def test_an_adapted_student_is_looked_into() -> None:
    pytest.importorskip("peft")
    whole = {"student": "teacher", "student.adapter": {"rank": 2}, "feature.channels": "all", "feature.place": "mlp"}
    small = {key: value for key, value in SMALL.items() if not key.startswith("student.")}
    run = potstill.train("feature_kd", **(small | whole | {"run": "lora", "optimizer.learning_rate": 1e-2}))
    found = values(run, "train/data/hidden_cosine")
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[-1] > 1e-4
