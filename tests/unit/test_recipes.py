"""The built-in methods: each builds, is read back as it was written, and does what its page says."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill import recipe, recipe_io
from potstill.errors import ConfigError
from potstill.recipe import Recipe
from potstill.recipes import METHODS

# Another value of each parameter; the second mapping is what else has to be set for it to matter.
Other = dict[str, tuple[Any, dict[str, Any]]]
ROLLOUT: tuple[Any, dict[str, Any]] = ({"max_new_tokens": 7}, {})
DIVERGENCE: tuple[Any, dict[str, Any]] = ("jeffreys", {})
TEXT = {"plain_text": "text.txt"}
OTHER: dict[str, Other] = {
    "kd": {
        "divergence": DIVERGENCE,
        "weighting": ("teacher_entropy", {}),
        "signal": ("top_k", {}),
        "ce_weight": (0.3, {}),
    },
    "sft": {"label_smoothing": (0.1, {})},
    "seqkd": {
        "samples_per_prompt": (3, {}),
        "temperature": (0.0, {}),
        "top_p": (0.9, {}),
        "max_new_tokens": (9, {}),
        "filters": (["unfinished", "repetitive"], {}),
        "kd_weight": (0.5, {}),
    },
    "imitkd": {"left": (0.5, {}), "divergence": DIVERGENCE, "rollout": ROLLOUT},
    "gkd": {"student_share": (1.0, {}), "divergence": DIVERGENCE, "rollout": ROLLOUT},
    "on_policy": {"discount": (1.0, {}), "clip": (0.2, {}), "rollout": ROLLOUT},
    "minillm": {
        "preset": ("lmops", {}),
        "single_step": (False, {}),
        "length_normalise": (False, {}),
        "teacher_share": (0.0, {}),
        "clip": (None, {}),
        "num_updates_per_batch": (1, {}),
        "batches_per_rollout": (1, {}),
        "max_new_tokens": (9, {}),
        "temperature": (0.9, {}),
        "include_current": (True, {}),
        "discount": (0.9, {}),
        "reward_scale": (2.0, {}),
        "reward_clip": (10.0, {}),
        "whiten": (True, {}),
        "weigh_single_step": (False, {}),
        "clip_weights": (True, {}),
        "plain_text": ("text.txt", {}),
        "plain_text_coefficient": (0.5, TEXT),
        "plain_text_kd": (0.5, TEXT),
    },
    "distillm": {
        "divergence": DIVERGENCE,
        "replay": ({"capacity": 20}, {}),
        "plain_text": ("text.txt", {}),
        "plain_text_coefficient": (0.5, TEXT),
    },
    "distillm2": {
        "preset": ("code", {}),
        "skew": (0.3, {}),
        "temperature": (1.0, {}),
        "top_p": (0.5, {}),
        "max_new_tokens": (9, {}),
        "batches_per_rollout": (2, {}),
    },
    "taid": {"start": (0.2, {}), "end": (0.9, {}), "rate": (0.1, {}), "momentum": (0.5, {})},
    "abkd": {"alpha": (0.5, {}), "beta": (0.5, {})},
    "akl": {"head_mass": (0.7, {})},
    "f_distill": {"divergence": ("reverse_kl", {}), "rollout": ROLLOUT},
    "skd": {"top_k": (5, {}), "divergence": DIVERGENCE, "temperature": (0.5, {}), "max_new_tokens": (9, {})},
    "entropy_aware": {"threshold": (0.5, {}), "weight": (0.5, {}), "rollout": ROLLOUT},
    "penalised_policy_gradient": {
        "policy_weight": (1.0, {}),
        "teacher_share": (0.3, {}),
        "mix": ("logits", {"teacher_share": 0.3}),
        "temperature": (1.0, {}),
        "immediate": (False, {}),
        "length_normalise": (False, {}),
        "clip": (0.2, {}),
        "frequency": (0.0, {}),
        "diversity": (0.0, {}),
        "entropy": (0.0, {}),
        "max_new_tokens": (9, {}),
    },
}
EVERY = [(method, parameter) for method, others in OTHER.items() for parameter in others]


def load(method: Any, **settings: Any) -> Recipe:
    return recipe_io.load(method, settings, methods=METHODS)


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}.{index}")
    elif a != b:
        yield path


def test_the_table_has_every_parameter_of_every_method() -> None:
    assert {name: set(inspect.signature(build).parameters) for name, build in METHODS.items()} == {
        name: set(others) for name, others in OTHER.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_method_builds_and_is_named_after_itself(method: str) -> None:
    made = METHODS[method]()
    assert made.method == method
    assert load(method) == made
    assert (made.stage.teacher is None) == (method == "sft")


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_on_paper_is_the_recipe(tmp_path: Path, method: str) -> None:
    for number, (parameter, (value, needed)) in enumerate([("run", ("a", {})), *OTHER[method].items()]):
        made = load(method, **needed | {parameter: value})
        file = tmp_path / f"{number}.yaml"
        file.write_text(recipe_io.dump(made), encoding="utf-8")
        assert load(file) == made, parameter


@pytest.mark.parametrize(("method", "parameter"), EVERY)
def test_each_parameter_changes_the_recipe_and_is_explained(method: str, parameter: str) -> None:
    value, needed = OTHER[method][parameter]
    assert load(method, **needed | {parameter: value}) != load(method, **needed)
    assert f"\n        {parameter}: " in inspect.cleandoc(METHODS[method].__doc__ or "").replace("\n    ", "\n        ")


# --- MiniLLM's presets ------------------------------------------------------------------------------------------------


def table() -> dict[str, tuple[str, str]]:
    """The switches in the method's own docstring: what the paper has and what the public code."""
    page = importlib.import_module("potstill.recipes.minillm").__doc__ or ""
    _, _, after = page.partition("switch                 paper    lmops\n")
    rows, _, _ = after.partition("\n\n")
    return {name: (paper, lmops) for name, paper, lmops, *_ in (row.split() for row in rows.splitlines())}


WHERE = {
    name: f"stages.0.streams.0.terms.0.objective.advantages.{name}"
    for name in ("include_current", "discount", "reward_scale", "reward_clip", "whiten")
} | {
    "weigh_single_step": "stages.0.streams.0.terms.1.weighting.name",
    "clip_weights": "stages.0.streams.0.terms.0.objective.clip_weights",
}
SPELLED = {"true": True, "false": False, "none": None}


def at(made: Recipe, path: str) -> Any:
    value: Any = made.model_dump(mode="json")
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return {"importance": True, "uniform": False}.get(value, value) if path.endswith("weighting.name") else value


@pytest.mark.parametrize(("column", "preset"), [(0, "paper"), (1, "lmops")])
def test_minillms_presets_are_what_their_table_says(column: int, preset: str) -> None:
    made, said = load("minillm", preset=preset), table()
    assert said.keys() == WHERE.keys() | {"plain_text_kd"}
    for name, path in WHERE.items():
        word = said[name][column]
        assert at(made, path) == (SPELLED[word] if word in SPELLED else float(word)), name
    terms = load("minillm", preset=preset, **TEXT).stage.streams[1].terms
    share = sum(term.coefficient for term in terms if term.objective.name == "forward_kl")  # type: ignore[misc]
    assert share == float(said["plain_text_kd"][column])


def test_minillms_presets_differ_in_nothing_else() -> None:
    paper, lmops = (load("minillm", preset=preset).model_dump(mode="json") for preset in ("paper", "lmops"))
    assert set(differences(paper, lmops)) == set(WHERE.values())
    paper, lmops = (load("minillm", preset=p, **TEXT).model_dump(mode="json") for p in ("paper", "lmops"))
    rest = set(differences(paper, lmops)) - set(WHERE.values())
    assert rest
    assert all(path.startswith(("stages.0.streams.1.terms", "stages.0.streams.1.signal")) for path in rest)


@pytest.mark.parametrize("name", sorted(WHERE))
def test_a_switch_takes_the_other_presets_value_alone(name: str) -> None:
    other = at(load("minillm", preset="lmops"), WHERE[name])
    changed = load("minillm", **{name: other}).model_dump(mode="json")
    assert set(differences(load("minillm").model_dump(mode="json"), changed)) == {WHERE[name]}


# --- What cannot be meant ---------------------------------------------------------------------------------------------


def rollout(**settings: Any) -> dict[str, Any]:
    return {"streams.0.source": {"name": "rollout", **settings}}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "importance of text that was not sampled": (
        "kd",
        {"weighting": "importance"},
        "weighting importance is about responses that the student has sampled, .*Set source to rollout",
    ),
    "policy gradient on the data": (
        "on_policy",
        {"streams.0.source": {"name": "dataset"}},
        "objective policy_gradient is about .*source is dataset. Set source to rollout",
    ),
    "policy gradient on the teacher's text": (
        "on_policy",
        {"rollout.policy": "teacher"},
        "source is rollout of the teacher's text. Set source to rollout",
    ),
    "policy gradient on a mixture": (
        "on_policy",
        {"streams.0.source": {"name": "mixture"}},
        "source is mixture. Set source to rollout",
    ),
    "a mixed policy without a teacher": ("sft", rollout(policy="token_mixed"), "has policy token_mixed. Set teacher"),
    "a teacher's text without a teacher": ("sft", rollout(policy="teacher"), "has policy teacher. Set teacher"),
    "a mixture's policy without a teacher": (
        "sft",
        {"streams.0.source": {"name": "mixture", "rollout": {"policy": "speculative"}}},
        "has policy speculative. Set teacher",
    ),
    "plain text without a file": (
        "sft",
        {"streams.0.source": {"name": "dataset", "view": "plain_text"}},
        "Plain text needs a path",
    ),
    "a file that is not read": ("sft", {"streams.0.source": {"name": "dataset", "path": "a.txt"}}, "only it has one"),
    "updates of the teacher's text": (
        "kd",
        rollout(policy="teacher", num_updates_per_batch=2),
        "num_updates_per_batch does not apply to policy teacher.*Leave it out",
    ),
    "filters of the student's text": (
        "gkd",
        {"rollout.filters": ["unfinished"]},
        "filters does not apply to policy student.*Leave it out",
    ),
    "a mixed policy in an engine": (
        "minillm",
        {"streams.0.source.engine": "vllm"},
        "policy token_mixed needs both models' logits.*Set engine to local",
    ),
    "policy gradient from a top k": ("on_policy", {"signal": "top_k"}, "Set signal to token_logprobs"),
    "policy gradient without a signal": ("on_policy", {"signal": "none"}, "signal is none. Set signal to logits"),
    "a divergence from the tokens' log-probabilities": (
        "gkd",
        {"signal": "token_logprobs"},
        "signal is token_logprobs. Set signal to logits",
    ),
    "a curriculum from a top k": (
        "distillm2",
        {"streams.0.signal": "top_k"},
        "a curriculum of skews .*Set signal to logits",
    ),
    "a replay of the teacher": (
        "distillm",
        {"replay.rollout.policy": "teacher"},
        "Use source rollout with policy teacher",
    ),
    "a replay that never writes": (
        "distillm",
        {"replay.adaptive": False},
        "nothing would ever be written. Set one of them",
    ),
    "a share above 1": (
        "gkd",
        {"streams.0.source.rollout_share": {"name": "linear", "start": 0.0, "end": 1.5}},
        "keep it from 0 to 1",
    ),
    "a reward twice": (
        "penalised_policy_gradient",
        {"streams.0.terms.0.objective.advantages.include_current": True},
        "count a token's own reward twice. Set one",
    ),
    "nothing to learn": ("on_policy", {"streams.0.terms.0.coefficient": 0.0}, "Give one term a coefficient above 0"),
    "a penalty that rewards": (
        "penalised_policy_gradient",
        {"streams.0.terms.1.coefficient": -1.0},
        "unlikelihood would be made large",
    ),
    "a smoothed estimate": ("on_policy", {"streams.0.terms.0.objective": "k1"}, "Use reverse_kl"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused_with_the_fix(what: str) -> None:
    method, settings, said = REFUSED[what]
    load(method)
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        load(method, **{"streams.0.signal" if k == "signal" and method != "kd" else k: v for k, v in settings.items()})


# --- What a page promises ---------------------------------------------------------------------------------------------


def test_where_the_students_own_text_is_written_dropout_may_not_change_its_probability() -> None:
    """A ratio of 1 at the first update: no dropout wherever a policy gradient is taken."""
    for build in METHODS.values():
        made = build()
        objectives = {term.objective.name for stream in made.stage.streams for term in stream.terms}
        assert made.stage.dropout == ("policy_gradient" not in objectives)


def test_f_distills_parts_stand_on_the_text_that_each_is_an_average_over() -> None:
    for divergence, expected in {
        "kl": {"teacher_text": ("forward_kl", "teacher")},
        "reverse_kl": {"rollouts": ("reverse_kl", "student")},
        "jensen_shannon": {"teacher_text": ("skew_forward_kl", "teacher"), "rollouts": ("skew_reverse_kl", "student")},
        "total_variation": {"teacher_text": ("total_variation", "teacher"), "rollouts": ("total_variation", "student")},
    }.items():
        streams = load("f_distill", divergence=divergence).stage.streams
        assert {s.name: (s.terms[0].objective.name, policy_of(s)) for s in streams} == expected


def policy_of(stream: recipe.Stream) -> str:
    assert isinstance(stream.source, recipe.RolloutSource)
    return stream.source.policy.name


@pytest.mark.parametrize("kd_weight", [0.0, 0.3, 1.0])
def test_seqkds_two_losses_share_the_loss(kd_weight: float) -> None:
    (stream,) = load("seqkd", kd_weight=kd_weight).stage.streams
    found = {term.objective.name: term.coefficient for term in stream.terms}
    assert found == {k: v for k, v in (("cross_entropy", 1 - kd_weight), ("forward_kl", kd_weight)) if v}
    assert policy_of(stream) == "teacher"
