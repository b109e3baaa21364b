"""Recipes from names, files and overrides: what is read, what is refused, and in which words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import recipe_io
from potstill.errors import ConfigError, Problem
from potstill.recipe import Budget, PretrainedStudent, PrunedStudent, Recipe, Section, Teacher
from potstill.recipe_errors import hints, members
from potstill.recipes import METHODS

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a recipe file."""

    def _write(text: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def load(target: Any, *arguments: str, **overrides: Any) -> Recipe:
    return recipe_io.load(target, recipe_io.parse_overrides(arguments) | overrides, methods=METHODS)


def refusal(target: Any, *arguments: str, **overrides: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(target, *arguments, **overrides)
    return caught.value


def problem(target: Any, *arguments: str) -> Problem:
    """The only problem there is."""
    (only,) = refusal(target, *arguments).problems
    return only


FULL = """\
method: mine
stages:
  - student: gpt2
    teacher: distilgpt2
    streams:
      - signal: logits
        terms:
          - objective: forward_kl
            coefficient: 0.5
          - cross_entropy
    optimizer:
      learning_rate: 1e-4
    budget:
      steps: 20
"""


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_name_gives_the_method(method: str) -> None:
    assert load(method) == METHODS[method]()


def test_a_full_recipe_is_read_with_its_short_forms(write: Write) -> None:
    recipe = load(write(FULL))
    assert recipe.method == "mine"
    assert recipe.stage.student == PretrainedStudent(model="gpt2")
    assert recipe.stage.teacher == Teacher(model="distilgpt2")
    assert [(t.objective.name, t.coefficient) for t in recipe.stage.streams[0].terms] == [
        ("forward_kl", 0.5),
        ("cross_entropy", 1.0),
    ]
    assert recipe.stage.budget == Budget(steps=20)


def test_a_file_with_a_method_changes_that_method(write: Write) -> None:
    file = write("method: kd\nce_weight: 0.25\ndata: rows.jsonl\nbudget: {epochs: 2}\nstudent.keep_layers: 5\n")
    recipe = load(file)
    assert recipe == load("kd", "ce_weight=0.25", "data=rows.jsonl", "budget.epochs=2", "student.keep_layers=5")
    assert recipe.stage.streams[0].terms[1].coefficient == 0.25


def test_the_command_line_wins_over_the_file(write: Write) -> None:
    file = write("method: kd\nbudget: {epochs: 2}\nce_weight: 0.25\nteacher: a\n")
    recipe = load(file, "budget.steps=3", "ce_weight=0", "teacher=b", "data.format=dolly")
    assert recipe == load("kd", "budget.steps=3", "teacher=b", "data.format=dolly")


def test_a_recipe_is_a_target_too() -> None:
    assert load(METHODS["kd"](), "budget.steps=7") == load("kd", "budget.steps=7")


def test_a_file_needs_no_suffix_and_a_name_comes_before_a_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(write("method: sft\n", "plain")) == METHODS["sft"]()
    monkeypatch.chdir(write("method: sft\n", "kd").parent)
    assert load("kd").method == "kd"
    assert load("./kd").method == "sft"


def test_a_byte_order_mark_and_windows_lines_are_read(write: Write) -> None:
    assert load(write(b"\xef\xbb\xbfmethod: kd\r\nseed: 3\r\n")).seed == 3


# --- Overrides --------------------------------------------------------------------------------------------------------


def at(recipe: Recipe, path: str) -> Any:
    value: Any = recipe.model_dump()
    for part in path.split("."):
        value = value[int(part)] if part.isdecimal() else value[part]
    return value


NO_BUDGET = dict.fromkeys(("steps", "epochs", "tokens", "seconds", "flops", "compute_of"))
OVERRIDES = [
    ("kd", "budget.steps=20", "stages.0.budget.steps", 20),
    ("kd", "stages.0.budget.steps=20", "stages.0.budget.steps", 20),
    ("kd", "budget.epochs=2", "stages.0.budget", NO_BUDGET | {"epochs": 2.0}),
    ("kd", "budget={tokens: 9}", "stages.0.budget", NO_BUDGET | {"tokens": 9}),
    ("kd", "streams.0.terms.0.coefficient=0.5", "stages.0.streams.0.terms.0.coefficient", 0.5),
    ("kd", "streams.0.terms.0.objective=reverse_kl", "stages.0.streams.0.terms.0.objective.name", "reverse_kl"),
    ("kd", "streams.0.terms.0=reverse_kl", "stages.0.streams.0.terms.0.objective.name", "reverse_kl"),
    ("kd", "teacher=X", "stages.0.teacher", Teacher(model="X").model_dump()),
    ("kd", "teacher.revision=main", "stages.0.teacher.model", Teacher().model),
    ("sft", "teacher=X", "stages.0.teacher", Teacher(model="X").model_dump()),
    ("sft", "teacher.model=X", "stages.0.teacher.model", "X"),
    ("kd", "checkpoint=5", "stages.0.checkpoint.every", 5),
    ("kd", "checkpoint=5", "stages.0.checkpoint.best_by", "rouge_l"),
    ("kd", "batch=16", "stages.0.batch.size", 16),
    ("kd", "data=F.jsonl", "stages.0.data.path", "F.jsonl"),
    ("kd", "student.keep_layers=[0, 2]", "stages.0.student.keep_layers", (0, 2)),
    ("kd", "student.keep_layers=4", "stages.0.student.kind", "pruned"),
    ("kd", "optimizer.betas.1=0.99", "stages.0.optimizer.betas", (0.9, 0.99)),
    ("kd", "data.fields.prompt=question", "stages.0.data.fields", {"prompt": "question"}),
    ("kd", "divergence=jensen_shannon", "stages.0.streams.0.terms.0.objective.name", "jensen_shannon"),
    ("kd", "divergence.temperature=2", "stages.0.streams.0.terms.0.objective.temperature", 2.0),
    ("kd", "run=a", "run", "a"),
    ("kd", "run=2024-01-01", "run", "2024-01-01"),
    ("sft", "label_smoothing=0.1", "stages.0.streams.0.terms.0.objective.label_smoothing", 0.1),
]


@pytest.mark.parametrize(("method", "argument", "path", "value"), OVERRIDES, ids=[f"{m} {a}" for m, a, *_ in OVERRIDES])
def test_override(method: str, argument: str, path: str, value: Any) -> None:
    assert at(load(method, argument), path) == value


def test_an_override_changes_nothing_else() -> None:
    before, after = METHODS["kd"]().stage.model_dump(), load("kd", "data=F.jsonl").stage.model_dump()
    assert after.pop("data") == before.pop("data") | {"path": "F.jsonl"}
    assert after == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("data=F", "data.format=dolly"),
        ("student=gpt2", "student.freeze_embeddings=true"),
        ("student.kind=pretrained", "student=gpt2", "student.freeze_embeddings=true"),
        ("student.kind=pretrained", "student={model: gpt2, freeze_embeddings: true}"),
        ("student={model: gpt2, freeze_embeddings: true, kind: pretrained}", "seed=2"),
        ("streams.0.terms.0.objective.name=jensen_shannon", "streams.0.terms.0.objective.teacher_weight=0.2"),
        ("streams=[{terms: [cross_entropy]}]", "streams.0.terms.0.coefficient=0.5"),
    ],
)
def test_the_order_of_overrides_does_not_matter(arguments: tuple[str, ...]) -> None:
    method = "sft" if arguments[0].startswith("streams=") else "kd"
    one, other = load(method, *arguments), load(method, *reversed(arguments))
    assert one == other != METHODS[method]()
    if "freeze_embeddings" in " ".join(arguments):
        assert one.stage.student == PretrainedStudent(model="gpt2", freeze_embeddings=True)


def test_a_bare_student_replaces_the_pruned_one() -> None:
    assert load("kd", "student=gpt2").stage.student == PretrainedStudent(model="gpt2")
    assert load("kd", "student=gpt2", "student.freeze_embeddings=true").stage.student.freeze_embeddings is True


def test_a_ready_student_cannot_be_cut_and_the_way_to_cut_it_is_said() -> None:
    said = str(refusal("kd", "student=models/small", "student.keep_layers=4"))
    assert "Set student.model=models/small beside student.keep_layers" in said
    cut = load("kd", "student.model=models/small", "student.keep_layers=4").stage.student
    assert (cut.kind, cut.model, cut.keep_layers) == ("pruned", "models/small", 4)


def test_a_bare_student_takes_nothing_from_another_model(write: Write) -> None:
    file = write("method: kd\nstudent: {kind: pretrained, model: a, revision: r}\n")
    assert load(file, "student=b").stage.student == PretrainedStudent(model="b")


def test_another_kind_of_student_keeps_what_was_set_but_no_defaults() -> None:
    recipe = load("sft", "student.kind=pretrained")  # sft sets the model; frozen embeddings are a pruned one's default
    assert recipe.stage.student == PretrainedStudent(model=Teacher().model, freeze_embeddings=False)


def test_naming_another_objective_keeps_its_temperature() -> None:
    (term,) = load("kd", "divergence.temperature=2", "streams.0.terms.0.objective=reverse_kl").stage.streams[0].terms
    assert (term.objective.name, term.objective.temperature) == ("reverse_kl", 2.0)


def test_a_teacher_can_be_removed(write: Write) -> None:
    without = ("teacher=null", "student.model=m", "checkpoint.best_by=perplexity", "streams=[{terms: [cross_entropy]}]")
    assert load("kd", *without).stage.teacher is None
    assert load(write("method: sft\nteacher: X\n"), "teacher=null").stage.teacher is None


def test_overrides_from_python_may_be_paths_tuples_and_sections() -> None:
    recipe = load("kd", data=Path("a") / "b.jsonl", student=PrunedStudent(keep_layers=(1, 2)), budget=Budget(epochs=1))
    assert recipe == load("kd", "data=a/b.jsonl", "student.keep_layers=[1,2]", "budget.epochs=1")


def test_overrides_of_a_full_recipe_reach_what_it_leaves_out(write: Write) -> None:
    recipe = load(write(FULL), "data.format=dolly", "optimizer.betas.0=0.8", "streams.0.terms.1.coefficient=2")
    assert recipe.stage.data.format == "dolly"
    assert recipe.stage.optimizer.betas == (0.8, 0.95)
    assert recipe.stage.streams[0].terms[1].coefficient == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        ("1e-5", 1e-5),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("012", 12),
        ("1:30", "1:30"),
        ("[1, 2]", [1, 2]),
        ("{a: no}", {"a": "no"}),
        ('"20"', "20"),
        ("a=b", "a=b"),
        ("=", "="),
        ("<<", "<<"),
        ("*.jsonl", "*.jsonl"),
        ("@home", "@home"),
        ("a: b", "a: b"),
        ("a #1", "a #1"),
        ("- x", "- x"),
    ],
)
def test_values_are_typed_as_yaml_types_them(text: str, value: Any) -> None:
    (parsed,) = recipe_io.parse_overrides([f"a.b={text}"]).items()
    assert parsed == ("a.b", value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize(
    ("argument", "fragment", "fix"),
    [
        ("novalue", "'novalue' is not a setting", "Write novalue=VALUE"),
        ("=3", "is not a setting", "KEY=VALUE"),
        ("run=", "has no value", "run=null"),
        ("betas=[1", "command line: betas:1:3: is not valid YAML", ""),
        ('run="a', "is not valid YAML", ""),
        ("a={b: 1, b: 2}", "stands twice", ""),
        ("a=[!!python/name:os.system x]", "python/name:os.system is refused", ""),
        (f"seed={'9' * 5000}", "cannot be read as int", ""),
    ],
)
def test_an_argument_that_is_no_setting(argument: str, fragment: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_io.parse_overrides([argument])
    assert fragment in caught.value.cause + str(caught.value)
    assert fix in (caught.value.fix or "")


# --- What is refused: the target --------------------------------------------------------------------------------------


def test_an_unknown_method() -> None:
    error = refusal("kdd")
    assert error.cause == "no method or recipe file called 'kdd'"
    assert error.fix == f"Did you mean 'kd'? Methods: {', '.join(METHODS)}"
    assert refusal("zzzzz").fix == f"Methods: {', '.join(METHODS)}"


def test_a_missing_file_names_the_one_that_is_near(write: Write) -> None:
    file = write("method: kd\n", "mistral.yaml")
    error = refusal(file.with_name("mistrall.yaml"))
    assert "mistrall.yaml: file not found" in error.cause
    assert f"'{file}'" in str(error.fix)
    assert "file not found" in refusal(file.parent / "nowhere" / "x.yml").cause


def test_addresses_are_not_fetched() -> None:
    for address in ("https://user:secret@host/recipe.yaml", "HTTP://host/x", "s3://bucket/recipe.yaml"):
        assert "not fetched" in str(refusal(address))
        assert "secret" not in str(refusal(address))


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "recipe.yaml: is empty"),
        (b"# nothing\n", "recipe.yaml: is empty"),
        (b"- a\n", "recipe.yaml: is not a mapping"),
        (b"kd\n", "recipe.yaml: is not a mapping"),
        (b"method: kd\nrun: \xff\n", "recipe.yaml:2: is not UTF-8 text"),
        (b"method: kd\nrun: \x00\n", "recipe.yaml:2: is not valid YAML"),
        (b"method: kd\nbudget:\n\tsteps: 3\n", "recipe.yaml:3:1: is not valid YAML"),
        (b"method: kd\nbudget: {steps: 3\n", "recipe.yaml:3:1: is not valid YAML"),
        (b"method: kd: kd\n", "recipe.yaml:1:11: is not valid YAML"),
        (b"method: *kd\n", "recipe.yaml:1:9: is not valid YAML"),
        (b"method: kd\n---\nmethod: kd\n", "recipe.yaml:2:1: is not valid YAML"),
        (b'method: "\\UFFFFFFFF"\n', "recipe.yaml:1: is not valid YAML"),
        (b"a: &a [*a]\n", "recipe.yaml:1:4: too deep or too large"),
        (b"[" * 600, "recipe.yaml: is nested too deeply"),
        (b"a: " + b"[" * 60 + b"]" * 60, "too deep or too large"),
        (b"x" * 300_000, "recipe.yaml: has 300000 bytes"),
    ],
)
def test_a_file_that_is_no_recipe(write: Write, content: bytes, fragment: str) -> None:
    error = refusal(write(content))
    assert fragment in error.cause
    assert "\n" not in error.cause


def test_a_tab_has_its_own_fix(write: Write) -> None:
    assert refusal(write("method: kd\nbudget:\n\tsteps: 3\n")).fix == "Indent with spaces, not tabs"


def test_a_few_lines_of_aliases_do_not_become_a_billion_values(write: Write) -> None:
    lines = ["a: &a [x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "too deep or too large, aliases included" in refusal(write("\n".join(lines))).cause


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).cause


def test_a_name_for_two_anchors_is_no_reason_to_warn(write: Write) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(write("method: &a kd\nseed: &a 3\n")).seed == 3


# --- What is refused: the content -------------------------------------------------------------------------------------

BROKEN = {
    # name: (text, line:column, key, fragment of the cause, fragment of the fix)
    "unknown key": (
        "method: kd\noptimizer:\n  learning_rat: 1\n",
        "3:3",
        "optimizer.learning_rat",
        "unknown key",
        "Did you mean 'learning_rate'?",
    ),
    "unknown key, nothing near": (
        "method: kd\nteacher: {zzz: 1}\n",
        "2:11",
        "teacher.zzz",
        "unknown key",
        "model, revision",
    ),
    "unknown key of one kind of student": (
        "method: kd\nstudent: {keep: 1}\n",
        "2:11",
        "student.keep",
        "unknown key",
        "Did you mean 'keep_layers'?",
    ),
    "unknown key at the top": ("method: kd\ndivergance: x\n", "2:1", "divergance", "unknown key", "'divergence'"),
    "key of a section at the top": ("method: kd\nsteps: 3\n", "2:1", "steps", "unknown key", "'budget.steps'"),
    "section of a stage at the top": (FULL + "budget: {}\n", "15:1", "budget", "unknown key", "'stages.0.budget'"),
    "unknown field": (
        "method: kd\ndata:\n  fields: {promt: q}\n",
        "3:12",
        "data.fields.promt",
        "unknown key",
        "Did you mean 'prompt'?",
    ),
    "text for a number": (
        "method: kd\nbudget:\n  steps: ten\n",
        "3:10",
        "budget.steps",
        "must be a whole number of at least 1, not 'ten'",
        None,
    ),
    "fraction for a count": (
        "method: kd\nbatch: 2.5\n",
        "2:8",
        "batch.size",
        "whole number of at least 1, not 2.5",
        None,
    ),
    "truth for a count": ("method: kd\nbatch: true\n", "2:8", "batch.size", "not true", None),
    "out of range": (
        "method: kd\noptimizer: {warmup_fraction: 1.5}\n",
        "2:30",
        "optimizer.warmup_fraction",
        "must be a number from 0 to 1, not 1.5",
        None,
    ),
    "zero for a positive number": (
        "method: kd\noptimizer: {learning_rate: 0}\n",
        "2:28",
        "optimizer.learning_rate",
        "must be a number above 0, not 0",
        None,
    ),
    "not a number": ("method: kd\noptimizer: {epsilon: .nan}\n", "2:22", "optimizer.epsilon", "not nan", None),
    "number for text": ("method: kd\nrun: 2024\n", "2:6", "run", "must be text", "Put it in quotes"),
    "unknown choice": (
        "method: kd\ndtype: bf16\n",
        "2:8",
        "dtype",
        "must be one of auto, float32, bfloat16, float64, not 'bf16'",
        "Did you mean 'bfloat16'?",
    ),
    "unknown choice of a list item": (
        FULL.replace("signal: logits", "signal: logit"),
        "6:17",
        "stages.0.streams.0.signal.name",
        "one of none, token_logprobs, logits, hidden, top_k, sampled, not 'logit'",
        "Did you mean 'logits'?",
    ),
    "unknown objective": (
        FULL.replace("objective: forward_kl", "objective: forwards_kl"),
        "8:24",
        "stages.0.streams.0.terms.0.objective.name",
        "must be one of forward_kl, reverse_kl, jeffreys, jensen_shannon",
        "Did you mean 'forward_kl'?",
    ),
    "objective without a name": (
        FULL.replace("objective: forward_kl", "objective: {temperature: 2}"),
        "8:13",
        "stages.0.streams.0.terms.0.objective.name",
        "is missing",
        "One of: forward_kl, reverse_kl",
    ),
    "unknown kind": (
        "method: kd\nstudent: {kind: prunned}\n",
        "2:17",
        "student.kind",
        "must be one of pruned, pretrained",
        "Did you mean 'pruned'?",
    ),
    "neither of two types": (
        "method: kd\nstudent: {keep_layers: few}\n",
        "2:24",
        "student.keep_layers",
        "a whole number of at least 1 or a list of at least 1, each a whole number of at least 0, not 'few'",
        None,
    ),
    "one bad item": (
        "method: kd\nstudent: {keep_layers: [0, -1]}\n",
        "2:28",
        "student.keep_layers.1",
        "must be a whole number of at least 0, not -1",
        None,
    ),
    "list too long": ("method: kd\noptimizer: {betas: [0, 0, 0]}\n", "2:20", "optimizer.betas", "a list of 2", None),
    "list too short": ("method: kd\noptimizer: {betas: [0]}\n", "2:20", "optimizer.betas", "a list of 2", None),
    "list without items": ("method: kd\nstreams: []\n", "2:10", "streams", "a list of at least 1", None),
    "value for a section": (
        "method: kd\nbudget: 5\n",
        "2:9",
        "budget",
        "must be a mapping, not 5",
        "Valid keys: steps, epochs, tokens, seconds",
    ),
    "nothing for a section": ("method: kd\nbudget:\n", "2:1", "budget", "must be a mapping, not null", "Valid keys"),
    "missing section": (FULL.split("    budget")[0], "3:5", "stages.0.budget", "is missing", "Valid keys: steps"),
    "missing key": ("method: kd\nstudent: {kind: pretrained}\n", "2:1", "student.model", "is missing", "Give it text"),
    "two of which one": (
        "method: kd\nbudget: {steps: 2, epochs: 3}\n",
        "2:1",
        "budget",
        "exactly one of steps, epochs, tokens, seconds, flops, compute_of, not steps and epochs",
        "Keep one",
    ),
    "no teacher to ask": (
        "method: kd\nteacher: null\n",
        "2:1",
        "teacher",
        "asks for a teacher's logits",
        "Set teacher",
    ),
    "signal that does not fit": (
        FULL.replace("signal: logits", "signal: none"),
        "6:9",
        "stages.0.streams.0",
        "objective forward_kl compares with a teacher but signal is none",
        "Set signal to logits",
    ),
    "parameter out of range": ("method: kd\nce_weight: 2\n", "2:12", "ce_weight", "from 0 to 1, not 2", None),
    "unknown parameter choice": (
        "method: kd\ndivergence: reverse\n",
        "2:13",
        "divergence.name",
        "must be one of forward_kl, reverse_kl, jeffreys",
        "Did you mean 'reverse_kl'?",
    ),
    "unknown method": ("method: kdd\n", "1:9", "method", "no method called 'kdd'", "Did you mean 'kd'?"),
    "no method": ("seed: 3\n", "1:1", "method", "is missing", f"Give one ({', '.join(METHODS)}), or stages"),
    "stages of one name": (FULL + FULL.split("stages:\n")[1], "2:1", "stages", "called student", "Give each a name"),
    "stages that are none": ("stages: 5\n", "1:9", "stages", "must be a list of at least 1", None),
    "duplicate key": ("method: kd\nseed: 1\nseed: 2\n", "3:1", "seed", "stands twice, first in line 2", "Remove one"),
    "duplicate key inside": (
        "method: kd\nbudget:\n  steps: 1\n  steps: 2\n",
        "4:3",
        "budget.steps",
        "stands twice, first in line 3",
        "Remove one",
    ),
    "python object": (
        "method: kd\nrun: !!python/object/apply:os.system [ls]\n",
        "2:6",
        "run",
        "python/object/apply:os.system is refused",
        "plain text",
    ),
    "python object as the method": ("method: !!python/name:os.system x\n", "1:9", "method", "is refused", "plain text"),
    "python object as the file": ("!!python/dict {method: kd}\n", "1:1", "", "is refused", "plain text"),
    "tag that does not fit": ("method: kd\nseed: !!int ten\n", "2:7", "seed", "'ten' cannot be read as int", None),
    "list as a key": ("method: kd\n? [1]\n: 2\n", "2:3", "?", "a list or mapping stands as a key", "Write a name"),
    "item of a list out of range": (
        "method: kd\nstreams.1.name: a\n",
        "2:1",
        "streams.1.name",
        "streams has 1 item, and 1 is none of them",
        "Count from 0 to 0",
    ),
    "1:30 is text": ("method: kd\nbudget: {seconds: 1:30}\n", "2:19", "budget.seconds", "above 0, not '1:30'", None),
    "merge keys mean nothing": ("method: kd\n<<: {seed: 3}\n", "2:1", "<<", "unknown key", "Valid keys: method"),
    "key with a line break": ('method: kd\n"a\\nb": 3\n', "2:1", r"'a\nb'", "unknown key", "Valid keys: method"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_says_where_what_and_how(write: Write, name: str) -> None:
    text, where, key, cause, fix = BROKEN[name]
    file = write(text)
    found = problem(file)
    assert (found.where, found.key) == (f"{file}:{where}", key)
    assert cause in found.cause
    assert (fix in str(found.fix)) if fix else (found.fix is None)


@pytest.mark.parametrize("name", BROKEN)
def test_messages_show_no_machinery_and_keep_to_their_lines(write: Write, name: str) -> None:
    said = str(refusal(write(BROKEN[name][0])))
    assert len(said.splitlines()) == 2
    for inside in ("pydantic", "http", "Input", "Value error", "constrained", "PrunedStudent", "Budget", "[key]"):
        assert inside not in said


def test_everything_is_reported_at_once_from_top_to_bottom(write: Write) -> None:
    file = write(
        "method: kd\n"
        "budget: {steps: 1, epochs: 1}\n"
        "seed: 1\n"
        "seed: 2\n"
        "student: {knd: x}\n"
        "optimizer:\n"
        "  learning_rate: ten\n"
        "  shedule: x\n"
        "ce_weight: -1\n"
        "streams.7.name: x\n"
        "run: !!python/x y\n"
        "streams:\n"
        "  - terms: [cross_entropy, {objective: forward_kl, coefficient: -2}]\n"
    )
    error = refusal(file, "batch=0", "optimzer.learning_rate=1", "teacher.modl=x")
    assert str(error).startswith(f"{file}: 12 problems\n")
    assert sorted((p.where, p.key) for p in error.problems[:3]) == [
        ("command line", "batch.size"),
        ("command line", "optimzer"),
        ("command line", "teacher.modl"),
    ]
    assert [(p.where.removeprefix(f"{file}:"), p.key) for p in error.problems[3:]] == [
        ("2:1", "budget"),
        ("4:1", "seed"),
        ("5:11", "student.knd"),
        ("7:18", "optimizer.learning_rate"),
        ("8:3", "optimizer.shedule"),
        ("9:12", "ce_weight"),
        ("10:1", "streams.7.name"),
        ("11:6", "run"),
        ("13:52", "streams.0.terms.1.coefficient"),
    ]
    assert error.exit_code == 2


def test_what_the_command_line_replaced_is_no_longer_the_files_fault(write: Write) -> None:
    found = problem(write(FULL), "stages=[{student: m, streams: [{terms: [cross_entropy]}]}]")
    assert (found.where, found.key, found.cause) == ("command line", "stages.0.budget", "is missing")


COMMANDS = [
    ("budget.steps=ten", "budget.steps", "whole number of at least 1, not 'ten'", None),
    ("stages.0.budget.steps=ten", "stages.0.budget.steps", "not 'ten'", None),
    ("batch=0", "batch.size", "at least 1, not 0", None),
    ("optimzer.learning_rate=1", "optimzer", "unknown key", "Did you mean 'optimizer'?"),
    ("learning_rate=1", "learning_rate", "unknown key", "Did you mean 'optimizer.learning_rate'?"),
    ("model=x", "model", "unknown key", "'teacher.model' or 'student.model'"),
    ("seed.x=1", "seed.x", "seed is a single value", None),
    ("streams.2.name=x", "streams.2.name", "streams has 1 item", "Count from 0 to 0"),
    ("streams.first.name=x", "streams.first.name", "first is none of them", "Count from 0 to 0"),
    ("stages.1.budget.steps=1", "stages.1.budget.steps", "stages has 1 item", "Count from 0 to 0"),
    ("budget.0=1", "budget.0", "unknown key", "Valid keys: steps"),
    ("student.keep_layers.0=1", "student.keep_layers.0", "keep_layers is a single value", None),
    ("student.revision=x", "student.revision", "unknown key", "Valid keys: kind, model"),
    ("data=null", "data.path", "must be text, not null", None),
    ("teacher=null", "teacher", "asks for a teacher's logits", "Set teacher"),
    ("checkpoint.best_by=loss", "checkpoint.best_by", "one of forward_kl_nats", None),
    ("divergence.x=1", "divergence.x", "unknown key", "Valid keys: temperature, name"),
    ("ce_weight.x=1", "ce_weight.x", "ce_weight is a single value", None),
    ("divergence=cross_entropy", "divergence.name", "must be one of forward_kl", None),
    ("divergence=interpolated_forward_kl divergence.t=2", "divergence.t", "from 0 to 1 or a mapping, not 2", None),
    ("divergence.t=taidd divergence=interpolated_forward_kl", "divergence.t", "from 0 to 1 or", None),
    ("signal=top_k signal.k=0", "signal.k", "at least 1, not 0", None),
    ("weighting=top_fraction weighting.fraction=0", "weighting.fraction", "above 0", None),
    ("weighting=top_fraction weighting.score=x", "weighting.score", "one of student_entropy", None),
    ("divergence.temperature=0", "divergence.temperature", "above 0, not 0", None),
    ("student.kind=pretrained", "student.model", "is missing", "Give it text"),
    ("method=sft", "method", "starts from kd", "Start from sft instead"),
]


@pytest.mark.parametrize(("argument", "key", "cause", "fix"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_a_wrong_override(argument: str, key: str, cause: str, fix: str | None) -> None:
    found = problem("kd", *argument.split())
    assert (found.where, found.key) == ("command line", key)
    assert cause in found.cause
    assert (fix in str(found.fix)) if fix else (found.fix is None)


def test_two_ways_to_end_are_a_contradiction_on_one_command_line() -> None:
    found = problem("kd", "budget.epochs=2", "budget.steps=3")
    assert (found.where, found.key, found.fix) == ("command line", "budget", "Keep one")
    assert str(refusal("kd", "budget.epochs=2", "budget.steps=3")).startswith("recipe kd: 1 problem\n")


def test_the_key_of_another_section_is_blamed_when_the_message_names_it() -> None:
    found = problem("sft", "seed=3", "optimizer.learning_rate=1e-3", "checkpoint.best_by=reverse_kl_nats")
    assert (found.where, found.key) == ("command line", "checkpoint.best_by")


def test_parameters_of_a_method_do_not_fit_a_recipe_written_out_in_full() -> None:
    found = problem(METHODS["kd"](), "ce_weight=0.5")
    assert (found.key, found.cause) == ("ce_weight", "is a parameter of kd, and this recipe is written out in full")


def test_an_error_nobody_wrote_stands_in_the_method() -> None:
    broken = METHODS["kd"]().model_copy(update={"seed": -1})
    found = problem(broken)
    assert (found.where, found.key) == ("recipe kd", "seed")


def test_parameters_that_are_refused_together_are_no_traceback() -> None:
    def twin(*, steps: int | None = None, epochs: float | None = None) -> Recipe:
        kd = METHODS["kd"]()
        budget = Budget(steps=steps, epochs=epochs) if steps or epochs else Budget(steps=1)
        return kd.model_copy(update={"stages": (kd.stage.model_copy(update={"budget": budget}),)})

    methods = {"twin": twin}
    assert recipe_io.load("twin", {"steps": 3}, methods=methods).stage.budget == Budget(steps=3)
    with pytest.raises(ConfigError, match=r"epochs: .*exactly one of steps, epochs"):
        recipe_io.load("twin", {"steps": 3, "epochs": 2}, methods=methods)


# --- There and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("kd", ()),
        ("sft", ()),
        ("kd", ("ce_weight=0.3", "divergence=jensen_shannon", "divergence.temperature=1.7", "run=no")),
        ("kd", ("student=gpt2", "budget.seconds=90.5", "data.fields={prompt: q, response: 'a: b'}")),
        ("kd", ("student.keep_layers=[0, 3, 29]", "optimizer.learning_rate=1e-7", "optimizer.betas=[0, 1]")),
        ("kd", ('teacher.revision="1e5"', 'teacher="012"', 'data="null"', 'data.heldout=" x # y"')),
        ("sft", ("teacher=X", "budget.tokens=1000000000000", "label_smoothing=0.1", "evaluation.batch_size=1")),
    ],
)
def test_a_dumped_recipe_is_the_same_when_loaded(write: Write, method: str, arguments: tuple[str, ...]) -> None:
    recipe = load(method, *arguments)
    text = recipe_io.dump(recipe)
    assert load(write(text)) == recipe
    assert text.startswith("# ")
    assert "stages:\n  - name: student\n" in text
    assert ("\nrun:" in text) == (recipe.run is not None)
    assert "epochs" not in text


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", "\ufeff", "a\n b\n", "\t", "no", "1e5", "", " a", "#", "é", "\x1b[31m"]
)
def test_odd_text_survives(write: Write, text: str) -> None:
    recipe = load("kd", teacher=text)
    assert recipe.stage.teacher == Teacher(model=text)
    assert load(write(recipe_io.dump(recipe))) == recipe


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(path=TEXT, model=TEXT, rate=POSITIVE, seed=st.integers(min_value=0))
def test_any_text_and_number_survives(tmp_path_factory: Any, path: str, model: str, rate: float, seed: int) -> None:
    recipe = load("kd", **{"data.path": path, "teacher": model, "optimizer.learning_rate": rate, "seed": seed})
    assert (recipe.stage.data.path, recipe.stage.teacher, recipe.seed) == (path, Teacher(model=model), seed)
    file = tmp_path_factory.getbasetemp() / "survives.yaml"
    file.write_text(recipe_io.dump(recipe), encoding="utf-8", newline="")
    assert load(file) == recipe


def every_section(kind: type = Section) -> list[type[Section]]:
    return [section for child in kind.__subclasses__() for section in (child, *every_section(child))]


@pytest.mark.parametrize("section", [s for s in every_section() if s.__module__ == "potstill.recipe"])
def test_what_may_be_unset_is_unset_by_default(section: type[Section]) -> None:
    """``dump`` leaves out what is None, so None has to be what comes back."""
    for key, hint in hints(section).items():
        if NoneType in members(hint):
            assert section.model_fields[key].get_default() is None


def test_the_schema_can_be_published() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert {"Stage", "Stream", "Term", "Budget", "PrunedStudent"} <= set(schema["$defs"])


# --- Terms: what goes with what ---------------------------------------------------------------------------------------


TERM = """\
method: custom
stages:
  - teacher: t
    budget: {steps: 1}
    streams:
      - signal: SIGNAL
        terms:
          - TERM
"""
MISFITS = {
    "k1 is no loss": ("logits", "{objective: k1}", "its gradient is zero on average", "Use reverse_kl"),
    "k3 is no loss": ("logits", "k3", "its gradient is forward KL's", "Use reverse_kl"),
    "reverse KL from the teacher's list": ("top_k", "reverse_kl", "cannot be computed from top_k", "signal to logits"),
    "draws for a skewed divergence": ("sampled", "skew_forward_kl", "it takes logits or top_k", "signal to logits"),
    "temperature of a sparse teacher": (
        "{name: top_k, temperature: 2}",
        "forward_kl",
        "signal.temperature is 2 and the objective's 1",
        "Set both the same",
    ),
    "a score of a sparse teacher": (
        "top_k",
        "{objective: forward_kl, weighting: teacher_entropy}",
        "weighting teacher_entropy needs all of the teacher's logits",
        "signal to logits",
    ),
    "negative coefficient": ("logits", "{objective: forward_kl, coefficient: -1}", "would be made large", "at least 0"),
    "a schedule that turns negative": (
        "logits",
        "{objective: forward_kl, coefficient: {name: linear, start: 1, end: -1}}",
        "would be made large",
        "at least 0",
    ),
    "a teacher nobody asks": ("logits", "entropy", "no term compares with the teacher", "signal to none"),
    "jensen-shannon of weight 0": (
        "logits",
        "{objective: {name: jensen_shannon, teacher_weight: 0}}",
        "the divergence is 0 everywhere",
        "Set rescale",
    ),
    "steps that do not fit": (
        "logits",
        "{objective: forward_kl, coefficient: {name: step, values: [1, 2], at: [0.1, 0.2]}}",
        "2 values need 1 changes, not 2",
        None,
    ),
    "t beyond the teacher": (
        "logits",
        "{objective: {name: interpolated_forward_kl, t: {name: linear, start: 0, end: 2}}}",
        "t goes from 0 to 2",
        "keep it from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_terms_that_cannot_be_computed_are_refused_with_the_reason(write: Write, name: str) -> None:
    signal, term, cause, fix = MISFITS[name]
    found = problem(write(TERM.replace("SIGNAL", signal).replace("TERM", term)))
    assert found.where.startswith(str(write(TERM).parent))
    assert cause in f"{found.cause}. {found.fix}"
    assert fix is None or fix in f"{found.cause}. {found.fix}"


FITS = {
    "a bonus for entropy": ("logits", "{objective: forward_kl}\n          - {objective: entropy, coefficient: -0.1}"),
    "draws": ("sampled", "forward_kl"),
    "a top k": ("{name: top_k, k: 3}", "jensen_shannon"),
    "a student's score with a sparse teacher": ("top_k", "{objective: forward_kl, weighting: student_entropy}"),
    "a coefficient that grows": ("logits", "{objective: forward_kl, coefficient: {name: cosine, start: 0, end: 1}}"),
    "taid": ("logits", "{objective: {name: interpolated_forward_kl, t: {name: taid, start: 0.2}}}"),
}


@pytest.mark.parametrize("name", FITS)
def test_terms_that_fit_are_read_and_written_back(write: Write, name: str) -> None:
    signal, term = FITS[name]
    recipe = load(write(TERM.replace("SIGNAL", signal).replace("TERM", term)))
    assert load(write(recipe_io.dump(recipe))) == recipe
