"""The built-in methods: each builds, is read back as it was written, and does what its page says."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill import recipe, recipe_io, stages
from potstill.errors import ConfigError
from potstill.recipe import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    CurriculumSkew,
    EntropyGateWeighting,
    ExponentialSchedule,
    ForwardKL,
    InterpolatedForwardKL,
    JensenShannon,
    LinearSchedule,
    LogitsSignal,
    MixtureSource,
    Recipe,
    ReplaySource,
    ReverseKL,
    RolloutSource,
    SkewForwardKL,
    SkewReverseKL,
    SpeculativePolicy,
    StudentPolicy,
    TaidSchedule,
    TeacherPolicy,
    Term,
    TokenMixedPolicy,
    TotalVariation,
)
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
    "step_by_step": {
        "variant": ("shuffled_rationales", {}),
        "alpha": (0.25, {}),
        "kd_weight": (0.5, {}),
        "divergence": ("reverse_kl", {"kd_weight": 0.5}),
        "label_prefix": ("answer: ", {}),
        "rationale_prefix": ("why: ", {}),
    },
    "anli_minillm": {
        "student": ("a", {}),
        "teacher": ("a", {}),
        "train": (["a", "b", "c"], {}),
        "heldout": ([None, None, None], {}),
        "label_share": ([1.0, 0.5, 0.0], {}),
        "teacher_share": (0.0, {}),
        "single_step": (True, {}),
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
    "feature_kd": {
        "stage_settings": ({"ce_weight": 0.5}, {}),
        "stage_method": ("gkd", {}),
        "feature": ("hidden_correlation", {}),
        "feature_weight": (0.5, {}),
        "text": ("teacher", {}),
        "max_new_tokens": (9, {"text": "student"}),
    },
    "pipeline": {
        "teacher": ("gpt2-xl", {}),
        "learner": (8, {}),
        "assistants": ([20], {}),
        "stage_method": ("gkd", {}),
        "stage_settings": ({"ce_weight": 0.5}, {}),
        "fine_tune": ("teacher", {}),
    },
    "teacher_assistant": {
        "stage_method": ("gkd", {}),
        "stage_settings": ({"ce_weight": 0.5}, {}),
        "teacher": ("gpt2-xl", {}),
        "assistants": ([20, 15], {}),
        "learner": (8, {}),
        "direct": ("steps", {}),
        "gate": (False, {}),
    },
    "dgkd": {
        "stage_settings": ({"ce_weight": 0.5}, {}),
        "stage_method": ("akl", {}),
        "teacher": ("gpt2-xl", {}),
        "assistants": ([20, 15], {}),
        "learner": (8, {}),
        "drop": (0.5, {}),
        "direct": ("steps", {}),
        "gate": (False, {}),
    },
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
OF_STAGES = {"teacher_assistant", "dgkd", "pipeline"}
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
    assert (made.stage.teacher is None) == (method in ("sft", "step_by_step"))


@pytest.mark.parametrize("method", METHODS)
def test_the_parameters_of_a_method_can_be_shown(method: str) -> None:
    from potstill import cli_recipes

    shown = cli_recipes.parameters(METHODS[method])
    assert all(f"{name}=" in shown for name in OTHER[method])
    assert "object at" not in shown


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
    "a policy gradient of a greedy student": (
        "on_policy",
        {"rollout.temperature": 0.0},
        "the rollout's temperature is 0. Set it above 0|one temperature",
    ),
    "a policy gradient of the likeliest tokens": ("on_policy", {"rollout.top_k": 5}, "has top_k 5. *Set top_k to 0"),
    "a policy gradient of a nucleus": ("minillm", {"streams.0.source.top_p": 0.5}, "has top_p 0.5. *Set top_p to 1"),
    "a policy gradient without repeats": (
        "on_policy",
        {"rollout.no_repeat_ngram": 4},
        "has no_repeat_ngram 4. *Set no_repeat_ngram to 0",
    ),
    "the same greedy text four times": (
        "seqkd",
        {"temperature": 0.0, "samples_per_prompt": 4},
        "all 4 responses to a prompt would be the same. *Set samples_per_prompt to 1",
    ),
    "a share of no plain text": ("minillm", {"plain_text_kd": 0.5}, "plain_text_kd is of the loss on plain text"),
    "a coefficient of no plain text": (
        "distillm",
        {"plain_text_coefficient": 0.5},
        "plain_text_coefficient is of the loss on plain text, and plain_text is not set",
    ),
    "a rollout's key where it is a parameter": (
        "seqkd",
        {"rollout.max_new_tokens": 24},
        "rollout: unknown key.*Did you mean 'max_new_tokens'",
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


def streams(method: str, **settings: Any) -> dict[str, recipe.Stream]:
    return {stream.name: stream for stream in load(method, **settings).stage.streams}


def test_distillm2_pulls_on_the_teachers_text_and_pushes_on_its_own() -> None:
    how = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9}
    for preset, skew, up, down in (
        ("paper", CurriculumSkew(start=0.2), LinearSchedule(start=1, end=0.5, share=0.5),
         LinearSchedule(start=1, end=1.5, share=0.5)),
        ("code", 0.2, 1.0, 1.0),
    ):  # fmt: skip
        made = streams("distillm2", preset=preset, skew=0.2, batches_per_rollout=3, **how)
        pull, push = made["teacher_text"], made["rollouts"]
        assert pull.terms == (Term(objective=SkewForwardKL(skew=skew), coefficient=up, reduction="sequence_mean"),)
        assert push.terms == (Term(objective=SkewReverseKL(skew=skew), coefficient=down, reduction="sequence_mean"),)
        assert pull.source == RolloutSource(policy=TeacherPolicy(), **how)
        assert push.source == RolloutSource(policy=StudentPolicy(), batches_per_rollout=3, **how)


def test_gkd_takes_the_mean_over_responses_and_the_students_share() -> None:
    (stream,) = streams("gkd", student_share=0.3).values()
    assert stream.source == MixtureSource(rollout_share=0.3)
    assert stream.terms == (Term(objective=JensenShannon(), reduction="sequence_mean"),)


def test_imitkds_share_of_the_students_text_rises() -> None:
    (stream,) = streams("imitkd", left=0.2).values()
    assert stream.source == MixtureSource(rollout_share=ExponentialSchedule(start=0, end=1, left=0.2))
    assert stream.terms == (Term(objective=ForwardKL()),)


def test_skds_teacher_keeps_its_top_k() -> None:
    (stream,) = streams("skd", top_k=7, temperature=0.6, max_new_tokens=9).values()
    assert stream.source == RolloutSource(policy=SpeculativePolicy(top_k=7), temperature=0.6, max_new_tokens=9)


def test_distillms_skew_and_plain_text_are_its_own() -> None:
    made = streams("distillm", plain_text="text.txt", plain_text_coefficient=0.6)
    assert made["data"].source == ReplaySource()
    assert made["data"].terms == (Term(objective=SkewReverseKL(skew=0.1)),)
    assert made["plain_text"].terms == (Term(objective=CrossEntropy(), coefficient=0.6),)


def test_entropy_aware_seeks_everywhere_and_covers_where_the_teacher_is_uncertain() -> None:
    (stream,) = streams("entropy_aware", threshold=0.6, weight=0.7).values()
    cover = Term(objective=ForwardKL(), weighting=EntropyGateWeighting(threshold=0.6), coefficient=0.7)
    assert stream.terms == (Term(objective=ReverseKL()), cover)
    assert stream.source == RolloutSource()


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("kl", [(ForwardKL(), 1.0)]),
        ("reverse_kl", [(ReverseKL(), 1.0)]),
        ("jensen_shannon", [(SkewForwardKL(skew=0.5), 0.5), (SkewReverseKL(skew=0.5), 0.5)]),
        ("total_variation", [(TotalVariation(), 0.5), (TotalVariation(), 0.5)]),
    ],
)
def test_f_distills_parts_have_the_weights_of_its_table(divergence: str, expected: list[Any]) -> None:
    made = streams("f_distill", divergence=divergence).values()
    assert [stream.terms for stream in made] == [(Term(objective=o, coefficient=c),) for o, c in expected]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_minillms_plain_text_loss_is_divided_by_the_share(share: float) -> None:
    made = streams("minillm", plain_text="text.txt", plain_text_coefficient=0.6, plain_text_kd=share)["plain_text"]
    found = {term.objective.name: term.coefficient for term in made.terms}
    assert found == pytest.approx(
        {k: v for k, v in (("cross_entropy", 0.6 * (1 - share)), ("forward_kl", 0.6 * share)) if v}
    )


def test_minillms_settings_reach_their_own_places() -> None:
    settings = {"num_updates_per_batch": 3, "batches_per_rollout": 2, "max_new_tokens": 9, "temperature": 0.7}
    stream = streams("minillm", teacher_share=0.3, clip=0.1, **settings)["rollouts"]
    assert stream.source == RolloutSource(policy=TokenMixedPolicy(teacher_share=0.3), **settings)
    long_part, exact = stream.terms
    assert long_part.objective.temperature == exact.objective.temperature == 0.7  # type: ignore[union-attr]
    assert long_part.objective.clip == 0.1  # type: ignore[union-attr]


def test_minillms_defaults_are_those_of_its_page() -> None:
    stream = streams("minillm")["rollouts"]
    assert stream.source == RolloutSource(
        policy=TokenMixedPolicy(teacher_share=0.2), batches_per_rollout=4, num_updates_per_batch=4
    )
    assert stream.terms[0].objective.clip == 0.2  # type: ignore[union-attr]


def test_seqkds_sampling_is_as_it_was_asked_for() -> None:
    how = {"samples_per_prompt": 2, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9, "filters": ("unfinished",)}
    (stream,) = streams("seqkd", **how).values()
    assert stream.source == RolloutSource(policy=TeacherPolicy(), **how)


def test_the_settings_of_one_divergence_keep_their_places() -> None:
    (made,) = streams("taid", start=0.2, end=0.9, rate=0.1, momentum=0.5).values()
    schedule = TaidSchedule(start=0.2, end=0.9, rate=0.1, momentum=0.5)
    assert made.terms == (Term(objective=InterpolatedForwardKL(t=schedule)),)
    (made,) = streams("abkd", alpha=0.3, beta=0.6).values()
    assert made.terms == (Term(objective=AlphaBeta(alpha=0.3, beta=0.6)),)
    (made,) = streams("akl", head_mass=0.7).values()
    assert made.terms == (Term(objective=AdaptiveKL(head_mass=0.7)),)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_kds_two_losses_share_the_loss(weight: float) -> None:
    (stream,) = streams("kd", ce_weight=weight).values()
    found = {term.objective.name: term.coefficient for term in stream.terms}
    assert found == {k: v for k, v in (("forward_kl", 1 - weight), ("cross_entropy", weight)) if v}


@pytest.mark.parametrize("weight", [0.3, 0.7, 1.0])
def test_the_penalised_methods_policy_and_data_share_the_loss(weight: float) -> None:
    made = streams("penalised_policy_gradient", policy_weight=weight, temperature=0.8, max_new_tokens=9)
    assert made["rollouts"].source == RolloutSource(temperature=0.8, max_new_tokens=9)
    found = {term.objective.name: term.coefficient for stream in made.values() for term in stream.terms}
    expected = {
        "policy_gradient": weight,
        "unlikelihood": 0.1 * weight,
        "embedding_similarity": 0.1 * weight,
        "entropy": -0.01 * weight,
        "cross_entropy": 1 - weight,
    }
    assert found == pytest.approx({name: value for name, value in expected.items() if value})


def test_on_policys_settings_are_its_own() -> None:
    (stream,) = streams("on_policy", discount=0.4, clip=0.2).values()
    advantages = recipe.Advantages(discount=0.4, include_current=True, length_normalise=False)
    assert stream.terms == (Term(objective=recipe.PolicyGradient(advantages=advantages, clip=0.2)),)


@pytest.mark.parametrize(
    "method",
    sorted(METHODS.keys() - {"sft", "kd", "step_by_step", "anli_minillm", "feature_kd"} - OF_STAGES),
)
def test_methods_that_are_to_be_compared_train_as_long_and_as_fast(method: str) -> None:
    stage = load(method).stage
    assert (stage.optimizer.learning_rate, stage.batch.size, stage.budget.steps) == (1e-4, 2, 60)
    dense = {s.name for s in stage.streams if isinstance(s.signal, LogitsSignal)}
    assert dense or method in ("seqkd", "on_policy", "penalised_policy_gradient")


@pytest.mark.parametrize("method", ["sft", "kd", "step_by_step", "teacher_assistant", "dgkd"])
def test_what_starts_from_a_cut_student_trains_longer_and_faster(method: str) -> None:
    stage = load(method).stage
    assert (stage.optimizer.learning_rate, stage.batch.size, stage.budget.steps) == (1e-3, 2, 120)


# --- dgkd -------------------------------------------------------------------------------------------------------------


def test_in_dgkd_everyone_above_teaches_and_has_an_equal_part_of_the_loss() -> None:
    made = load("dgkd", assistants=[20, 15], drop=0.4)
    assistant, second, student, direct, _ = made.stages
    assert (assistant.teachers, direct.teachers) == ({}, {})
    assert second.teachers == {"teacher": recipe.Teacher()}
    assert student.teachers == {"assistant": recipe.StageTeacher(stage="assistant"), "teacher": recipe.Teacher()}
    for stage in (second, student):
        assert stage.teacher == recipe.StageTeacher()
        assert stage.gate
        assert [stream.teacher for stream in stage.streams] == [None, *stage.teachers]
        parts = [term.coefficient for stream in stage.streams for term in stream.terms]
        assert parts == [pytest.approx(1 / len(stage.streams))] * len(stage.streams)
        assert {stream.drop for stream in stage.streams} == {0.4}
    assert {stream.drop for stage in (assistant, direct) for stream in stage.streams} == {0}


def test_dgkds_first_and_direct_stages_are_those_of_teacher_assistant() -> None:
    """By the hashes by which a stage of another run is taken over."""
    ours, chains = (stages.recipe_hashes(load(method, assistants=[20, 15])) for method in ("dgkd", "teacher_assistant"))
    assert {name for name in ours if ours[name] == chains[name]} == {"assistant", "direct"}
    assert ours.keys() == chains.keys()


@pytest.mark.parametrize("method", ["gkd", "sft", "seqkd", "minillm", "teacher_assistant", "dgkd", "step_by_step"])
def test_dgkd_is_of_methods_on_the_datas_text(method: str) -> None:
    with pytest.raises(ConfigError, match=f"stage_method is {method}, .* It is one of kd, taid, feature_kd, abkd, akl"):
        load("dgkd", stage_method=method)


# --- step_by_step -----------------------------------------------------------------------------------------------------


def of_step_by_step(**settings: Any) -> list[Any]:
    made = load("step_by_step", **settings).stage.streams
    return [(s.name, s.source.view, s.source.shuffled, [t.coefficient for t in s.terms]) for s in made]


def test_step_by_steps_two_streams_share_the_loss() -> None:
    label, rationale = of_step_by_step(alpha=0.75)
    assert label == ("label", "response", False, [0.75])
    assert rationale == ("rationale", "rationale", False, [0.25])
    both = [[0.5 * 0.7, 0.5 * 0.3], [0.5 * 0.7, 0.5 * 0.3]]
    assert [terms for *_, terms in of_step_by_step(kd_weight=0.3)] == [pytest.approx(terms) for terms in both]
    assert [[t.objective.name for t in s.terms] for s in load("step_by_step", kd_weight=1.0).stage.streams] == [
        ["forward_kl"],
        ["forward_kl"],
    ]


def test_step_by_steps_controls_change_one_thing_each() -> None:
    assert of_step_by_step(variant="standard") == [("label", "response", False, [1.0])]
    assert of_step_by_step(variant="shuffled_rationales")[1][2] is True
    assert of_step_by_step(variant="input_reconstruction")[1][1] == "input"
    twice = load("step_by_step", variant="standard_twice").stage.streams
    assert [(s.source.view, s.source.order) for s in twice] == [("response", 0), ("response", 1)]
    assert not any(s.source.prefix for s in twice)
    single = load("step_by_step", variant="single_task").stage
    assert (len(single.streams), single.data.target) == (1, "rationale_then_label")
    for variant in ("step_by_step", "standard", "shuffled_rationales", "input_reconstruction", "standard_twice"):
        assert load("step_by_step", variant=variant).stage.data == load("step_by_step").stage.data


def test_at_alpha_1_step_by_step_is_fine_tuning() -> None:
    assert load("step_by_step", alpha=1.0) == load("step_by_step", variant="standard")


def test_step_by_steps_prefixes_are_before_their_own_prompts() -> None:
    stage = load("step_by_step", label_prefix="answer: ", rationale_prefix={"text": "why: ", "chat": "Why?"}).stage
    assert stage.data.prefix.text == "answer: "
    source = stage.streams[1].source
    assert source.prefix is not None
    assert (source.prefix.text, source.prefix.chat) == ("why: ", "Why?")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": 0}, "alpha"),
        ({"variant": "standard", "alpha": 0.25}, "variant standard has one"),
        ({"divergence": "reverse_kl"}, "Set kd_weight"),
    ],
)
def test_what_step_by_step_would_pass_over_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("step_by_step", **settings)


def test_anli_minillm_has_the_settings_that_its_runs_recorded() -> None:
    made = load("anli_minillm")
    assert [stage.optimizer.learning_rate for stage in made.stages] == [1e-4, 9e-5, 7e-5, 7e-5]
    shares = [[term.coefficient for term in stage.streams[0].terms] for stage in made.stages[:3]]
    assert shares == [[0.9, 0.1], [0.9, 0.1], [0.8, 0.2]]
    assert [(stage.data.path, stage.data.heldout) for stage in made.stages] == [
        (f"anli:r{number}_train", f"anli:r{number}_dev") for number in (1, 2, 3, 3)
    ]
