"""What is predicted of recipes, against the runs that they then are; and that nothing of it is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill import cli
from potstill.checks.planning.results import StagePlan
from potstill.errors import ConfigError, ModelError, PotstillError
from potstill.models.loading import load
from tests import tiny
from tests.e2e.conftest import ROOT, SMALL


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where plans are made."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def planned(method: str, **settings: Any) -> StagePlan:
    (stage,) = potstill.plan(method, **(SMALL | settings)).stages
    return stage


def close(one: float, other: float, share: float) -> bool:
    return abs(one - other) <= share * other


DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "steps": ("kd", {}),
    "epochs": ("kd", {"budget": {"epochs": 1.4}}),
    "response tokens": ("kd", {"budget": {"tokens": 900}}),
    "flops": ("kd", {"budget": {"flops": 3e8}}),
    "small micro-batches": ("kd", {"batch": {"size": 6, "micro_size": 2}}),
    "frozen embeddings": ("kd", {"student.freeze_embeddings": True}),
    "a weighting that looks first": ("kd", {"weighting": "top_fraction"}),
    "no teacher": ("sft", {"student": "teacher"}),
}


@pytest.mark.parametrize("case", DATA)
def test_steps_tokens_and_operations_are_those_of_the_run(workspace: Path, case: str) -> None:
    method, settings = DATA[case]
    left_out = {"budget.steps"} if "budget" in settings else set()
    left_out |= {"teacher", "student.keep_layers"} if method == "sft" else set()
    given = {key: value for key, value in SMALL.items() if key not in left_out} | settings
    (plan,) = potstill.plan(method, **given).stages
    cost = potstill.train(method, run="real", **given).read("cost")
    assert plan.steps == cost["steps"]
    assert plan.response_tokens == cost["response_tokens"]
    assert close(plan.flops, cost["flops"], 1e-9)


def test_of_text_that_is_written_as_it_is_trained_on(workspace: Path) -> None:
    own = {"student": "teacher", "budget.steps": 12, "rollout.max_new_tokens": 6}
    given = {key: value for key, value in (SMALL | own).items() if key != "student.keep_layers"}
    (plan,) = potstill.plan("on_policy", **given).stages
    cost = potstill.train("on_policy", run="real", **given).read("cost")
    assert close(plan.response_tokens, cost["response_tokens"], 0.25)
    assert close(plan.flops, cost["flops"], 0.25)
    assert any("as the student learns" in one for one in plan.unknown)


def test_parameters_and_bytes_are_those_of_the_models(workspace: Path) -> None:
    plan = planned("kd", baseline="equal_time_sft")
    run = potstill.train("kd", run="real", **(SMALL | {"baseline": "equal_time_sft"}))
    teacher = sum(p.numel() for p in load("teacher").model.parameters())
    student = sum(p.numel() for p in load(str(run.student)).model.parameters())
    assert (plan.parameters["teacher"], plan.parameters["student"]) == (teacher, student)
    embedding = 16 * load("teacher").model.config.vocab_size
    assert plan.parameters["trained"] in (student, student - embedding)
    assert plan.memory["gradients"] == 4 * plan.parameters["trained"]
    one = run.checkpoints / "step-000008"
    real = sum(file.stat().st_size for file in one.rglob("*") if file.is_file())
    assert plan.disk["checkpoints"] == pytest.approx(real * len(list(run.checkpoints.glob("step-*"))), rel=0.35)
    assert plan.disk["student"] == pytest.approx(
        sum(f.stat().st_size for f in run.student.iterdir() if f.name != "README.md"), rel=0.02
    )
    assert plan.baseline_steps > 0
    assert {"set_up", "measuring_teacher", "training", "validations", "baseline_training"} <= plan.seconds.keys()


def test_the_stages_of_a_chain_and_a_budget_of_what_others_took(workspace: Path) -> None:
    chain = {
        "teacher": "teacher",
        "assistants": [3],
        "learner": 2,
        "direct": "compute",
        "gate": False,
        "device": "cpu",
        "dtype": "float32",
        "all.data": "rows.jsonl",
        "all.budget.steps": 4,
        "all.batch": 4,
        "all.checkpoint": {"every": 2, "best_by": "perplexity"},
        "all.evaluation": {"max_examples": 3, "generate_examples": 2, "max_new_tokens": 4},
    }
    plan = potstill.plan("teacher_assistant", **chain)
    run = potstill.train("teacher_assistant", run="real", **chain)
    for stage, part in zip(plan.stages, run.stages, strict=True):
        cost, trained = part.read("cost"), load(str(part.student)).model
        assert stage.steps == cost["steps"], stage.stage
        assert close(stage.flops, cost["flops"], 1e-9), stage.stage
        assert stage.parameters["student"] == sum(p.numel() for p in trained.parameters()), stage.stage
    (later,) = [stage for stage in plan.stages if stage.stage.startswith("direct")]
    assert any("untrained" in one for one in later.unknown)
    assert plan.flops == sum(stage.flops for stage in plan.stages)
    assert plan.as_data()["steps"] == sum(stage.steps for stage in plan.stages)


def test_nothing_is_written(workspace: Path, scratch: Path) -> None:
    before = files(workspace)
    planned("kd")
    assert files(workspace) == before
    assert files(scratch) == set()


@pytest.mark.parametrize(
    "settings",
    [
        {"student.keep_layers": 9},
        {"teacher": "nothing"},
        {"data": "no.jsonl"},
        {"budget.stepz": 3},
        {"evaluation.max_new_tokens": 4000},
    ],
)
def test_what_is_refused_is_what_training_refuses(workspace: Path, scratch: Path, settings: dict[str, Any]) -> None:
    told = []
    for verb in (potstill.plan, potstill.train):
        with pytest.raises(PotstillError) as refused:
            verb("kd", **(SMALL | settings))
        told.append((type(refused.value), str(refused.value)))
    assert told[0] == told[1]
    assert files(scratch) == set()


def test_a_plan_is_of_one_process(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        planned("kd")


def test_a_failure_names_its_stage(workspace: Path) -> None:
    with pytest.raises(ModelError):
        potstill.plan("teacher_assistant", teacher="nothing")


@pytest.mark.parametrize("format", ["human", "json"])
def test_the_command(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    words = [f"{key}={value}" for key, value in SMALL.items()]
    monkeypatch.setattr(sys, "argv", ["potstill", "plan", "kd", *words, "--format", format])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    if format == "json":
        (stage,) = json.loads(said)["stages"]
        assert stage["steps"] == 8
        assert stage["total_seconds"] == pytest.approx(sum(stage["seconds"].values()))
        assert stage["memory_bytes"] == max(stage["peaks"].values())
    else:
        assert "8 steps" in said
        assert "not known" in said


PLANNED = "import json, potstill\nprint(json.dumps(potstill.plan('kd', **{!r}).as_data()))"
TRAINED = "import json, potstill\nprint(json.dumps(potstill.train('kd', run='real', **{!r}).read('cost')))"


def in_a_process(workspace: Path, code: str) -> dict[str, Any]:
    """What a process of its own prints as JSON: memory is of one that has done nothing before."""
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=workspace, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read as Linux tells them")
def test_memory_is_what_a_run_takes(workspace: Path) -> None:
    """Of a teacher and a student whose weights, gradients and state are seen beside the interpreter."""
    tiny.save(tiny.llama(3, layers=6, hidden=512), workspace / "medium")
    settings = SMALL | {"teacher": "medium", "student.keep_layers": 2, "student.freeze_embeddings": False}
    plan = in_a_process(workspace, PLANNED.format(settings))
    cost = in_a_process(workspace, TRAINED.format(settings))
    assert plan["memory_bytes"] == pytest.approx(cost["peak_memory_bytes"], rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read as Linux tells them")
def test_memory_by_component_is_what_each_takes(workspace: Path) -> None:
    """Weights, gradients and optimizer of a training that is built up in a process of its own, one after the other."""
    tiny.save(tiny.llama(3, layers=8, hidden=640), workspace / "medium")
    settings = SMALL | {"teacher": "medium", "student.keep_layers": 6, "student.freeze_embeddings": False}
    (stage,) = in_a_process(workspace, PLANNED.format(settings))["stages"]
    seen = in_a_process(workspace, BUILT_UP)
    for part in ("teacher", "student", "gradients", "optimizer"):
        assert stage["memory"][part] == pytest.approx(seen[part], rel=0.2), part


BUILT_UP = """
import ctypes, gc, json, psutil, torch
from potstill.models.loading import load
from potstill.models.pruning import cut_layers
from potstill.models.families import family_of
from potstill.recipe import Optimizer
from potstill.training import optim
now = lambda: psutil.Process().memory_info().rss
found, before = {}, now()
def took(name):
    global before
    found[name], before = now() - before, now()
shapes = [p.shape for p in load("medium").model.parameters()]
cut = [p.shape for p in cut_layers(load("medium").model, range(6)).parameters()]
gc.collect(); ctypes.CDLL("libc.so.6").malloc_trim(0)
before = now()
teacher = [torch.ones(shape) for shape in shapes]
took("teacher")
student = [torch.nn.Parameter(torch.ones(shape)) for shape in cut]
took("student")
for p in student:
    p.grad = torch.ones_like(p)
took("gradients")
module = torch.nn.ParameterList(student)
optimizer = optim.build(module, Optimizer())
optimizer.step()
took("optimizer")
print(json.dumps(found))
"""


@pytest.mark.parametrize("settings", [{}, {"signal": "top_k"}])
def test_a_teacher_whose_words_are_kept_works_once_and_they_take_so_much(
    workspace: Path, settings: dict[str, Any]
) -> None:
    asked = settings | {"teacher.cache": "auto", "budget.steps": 40, "batch": 2}  # 17 steps are an epoch
    stage = planned("kd", **asked)
    assert not (workspace / "caches").exists()
    cost = potstill.train("kd", run="run", **(SMALL | asked)).read("cost")
    assert close(stage.flops, cost["flops"], 1e-9)  # those of the teacher in the first epoch alone
    assert stage.flops < 0.9 * planned("kd", **asked | {"teacher.cache": "never"}).flops
    size = sum(
        file.stat().st_size for suffix in ("rows", "index") for file in (workspace / "caches").rglob(f"*.{suffix}")
    )
    assert stage.disk["teacher_cache"] == pytest.approx(size, rel=1e-3)
    assert "teacher_cache" not in planned("kd").disk
