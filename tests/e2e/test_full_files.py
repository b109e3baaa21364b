"""The full-size recipe files of the examples: their models are counted exactly, and every stage takes a step."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest

from potstill import api, recipe_io
from potstill.checks.dry import world
from potstill.checks.dry.models import named_models
from potstill.checks.dry.sizes import count, memory, pairs
from potstill.models import architectures
from potstill.models.architectures import built, known_config
from potstill.recipe import HiddenCorrelation, LastLayers, Recipe, RolloutSource, SelectedChannels, Stage
from potstill.recipes import METHODS

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(
    file
    for folder in ("teacher_assistant", "selective_features")
    for file in (EXAMPLES / folder / "full").glob("*.yaml")
)
GPT2 = {"120m": 124_439_808, "340m": 354_823_168, "760m": 774_030_080, "1.5b": 1_557_611_200}
OPT = {"1.3b": 1_315_758_080, "6.7b": 6_658_473_984, "13b": 12_853_473_280}
LLAMA = {"7b": 6_738_415_616, "13b": 13_015_864_320}
# Of each file: the students of its stages, and the teachers of those that distil.
MODELS: dict[str, tuple[list[int], list[int]]] = {
    "gpt2_direct": ([GPT2["1.5b"], *[GPT2["120m"]] * 2], [GPT2["1.5b"]]),
    "gpt2_control": ([GPT2["1.5b"], *[GPT2["120m"]] * 2], [GPT2["1.5b"]]),
    "gpt2_selected": ([GPT2["1.5b"], *[GPT2["120m"]] * 2], [GPT2["1.5b"]]),
    "gpt2_340m": ([GPT2["1.5b"], *[GPT2["340m"]] * 2, *[GPT2["120m"]] * 2], [GPT2["1.5b"], GPT2["340m"]]),
    "gpt2_760m": ([GPT2["1.5b"], *[GPT2["760m"]] * 2, *[GPT2["120m"]] * 2], [GPT2["1.5b"], GPT2["760m"]]),
    "gpt2_760m_340m": (
        [GPT2["1.5b"], *[GPT2["760m"]] * 2, *[GPT2["340m"]] * 2, *[GPT2["120m"]] * 2],
        [GPT2["1.5b"], GPT2["760m"], GPT2["340m"]],
    ),
    "opt": ([OPT["13b"], *[OPT["6.7b"]] * 2, *[OPT["1.3b"]] * 2], [OPT["13b"], OPT["6.7b"]]),
    "opt_direct": ([OPT["13b"], *[OPT["1.3b"]] * 2], [OPT["13b"]]),
    "llama": ([LLAMA["13b"], *[LLAMA["7b"]] * 2], [LLAMA["13b"]]),
}
RATES = {"gpt2-xl": 5e-5, "gpt2-large": 1e-4, "gpt2-medium": 1e-4, "gpt2": 5e-4} | {
    "facebook/opt-13b": 1e-5, "facebook/opt-6.7b": 1e-5, "facebook/opt-1.3b": 5e-5,
    "huggyllama/llama-13b": 1e-5, "huggyllama/llama-7b": 1e-5,
}  # fmt: skip
LARGEST_GPU = 139 * 2**30  # bytes, of one that is sold


def loaded(file: Path) -> Recipe:
    return recipe_io.load(file, {}, methods=METHODS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is that the files name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path / "no-data"))
    return tmp_path


def test_every_file_is_checked() -> None:
    assert {file.stem for file in FILES} == MODELS.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_models_have_their_published_sizes_and_fit(file: Path) -> None:
    recipe = loaded(file)
    keys = {key for stage in recipe.stages for key in named_models(stage)}
    found = list(pairs(recipe, {key: built(known_config(key[0]), device="meta") for key in keys}))
    students, teachers = MODELS[file.stem]
    assert [count(pair.student) for pair in found] == students
    assert [count(pair.teacher) for pair in found if pair.teacher is not None] == teachers
    # bfloat16 copies of the student's weights come on top in a step.
    taken = [sum(memory(pair, recipe.dtype).values()) + 2 * count(pair.student) for pair in found]
    assert max(taken) < LARGEST_GPU * 0.95


def stages_of(recipe: Recipe, method: str) -> list[Stage]:
    return [stage for stage in recipe.stages if stage.method == method]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_settings_are_those_of_the_originals(file: Path) -> None:
    recipe = loaded(file)
    assert recipe.seed == 10
    for stage in stages_of(recipe, "minillm") + stages_of(recipe, "feature_kd"):
        small = file.stem in ("gpt2_control", "gpt2_selected")
        source = stage.streams[0].source
        assert isinstance(source, RolloutSource)
        assert (stage.batch.size, source.batches_per_rollout) == ((4, 64) if small else (64, 4))
        assert stage.batch.size * source.batches_per_rollout == 256
        assert (source.num_updates_per_batch, source.policy.teacher_share) == (4, 0.2)  # type: ignore[union-attr]
        assert (source.max_new_tokens, source.temperature) == (256, 1.0)
        optimizer = stage.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.betas) == (5e-6, 1e-6, (0.9, 0.95))
        assert (optimizer.schedule, optimizer.warmup_fraction * 5000) == ("constant", 100)
        assert (stage.budget.steps, stage.checkpoint.every) == (5000, 500 if small else 100)
        advantages = stage.streams[0].terms[0].objective.advantages  # type: ignore[union-attr]
        assert (advantages.discount, advantages.reward_scale, advantages.reward_clip) == (0.95, 2.0, 100.0)
        assert [term.coefficient for term in stage.streams[1].terms] == [0.5, 0.5]
        assert not stage.dropout
    for stage in stages_of(recipe, "feature_kd"):
        stream = stage.streams[2]
        (term,) = stream.terms
        feature = term.objective
        assert isinstance(feature, HiddenCorrelation)
        assert (feature.place, feature.layers, feature.off_diagonal_weight) == ("residual", LastLayers(count=3), 0.005)
        assert (feature.channels, term.coefficient) == (SelectedChannels(measure="grad_activation"), 0.05)
        assert isinstance(stream.source, RolloutSource)
        assert (stream.source.policy.name, stream.source.max_new_tokens) == ("teacher", 256)
    for stage in stages_of(recipe, "sft"):
        assert stage.optimizer.learning_rate == RATES[stage.student.model or ""]
        assert (stage.batch.size, stage.optimizer.weight_decay, stage.optimizer.schedule) == (32, 0.01, "cosine")
        assert stage.budget.epochs == (10 if stage.name == "teacher-sft" else 3)
        assert stage.checkpoint.best_by == ("rouge_l" if stage.name == "teacher-sft" else "perplexity")
    for stage in recipe.stages:
        assert (stage.data.max_prompt_tokens, stage.data.max_response_tokens) == (256, 256)
        assert (stage.data.path, stage.data.heldout) == ("dolly:raw", "dolly:valid")


@pytest.mark.parametrize("name", ["gpt2_direct", "gpt2_340m", "gpt2_760m"])
def test_the_routes_share_their_beginning(name: str) -> None:
    """So that a run takes over from another what is the same."""
    from potstill import stages

    folder = EXAMPLES / "teacher_assistant" / "full"
    ours, chain = (stages.recipe_hashes(loaded(folder / f"{one}.yaml")) for one in (name, "gpt2_760m_340m"))
    same = {"gpt2_direct": set(), "gpt2_340m": set(), "gpt2_760m": {"assistant-warm-up", "assistant"}}[name]
    assert {one for one in ours if ours[one] == chain.get(one)} == {"teacher-sft", "warm-up"} | same


# --- a step of every stage --------------------------------------------------------------------------------------------

NARROW: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "vocab_size": 1300, "bos_token_id": 1299, "eos_token_id": 1299},
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_attention_heads": 4, "vocab_size": 1300},
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 1300},
}


def check(file: Path, **settings: Any) -> None:
    tried = api.dry_run(file, device="cpu", dtype="float32", **settings)
    assert [stage.stage for stage in tried] == [stage.name for stage in loaded(file).stages]
    for stage in tried:
        rollouts = {"rollouts/policy_gradient", "rollouts/reverse_kl_nats"}
        text = {"plain_text/cross_entropy_nats", "plain_text/forward_kl_nats"}
        inside = {"inside/hidden_correlation"} if stage.method == "feature_kd" else set()
        distils = stage.method in ("minillm", "feature_kd")
        assert stage.terms.keys() == (rollouts | text | inside if distils else {"data/cross_entropy_nats"})
        assert all(math.isfinite(value) for value in (stage.loss, *stage.terms.values()))


# Of each family one that is short; the others are longer chains of the same stages.
QUICK = ("gpt2_selected", "opt", "llama")
STEPPED = [pytest.param(file, marks=[] if file.stem in QUICK else [pytest.mark.slow], id=file.stem) for file in FILES]


@pytest.mark.parametrize("file", STEPPED)
def test_every_stage_takes_a_step(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two layers, as a dry run has it, and here with few channels and tokens as well."""
    for name, config in architectures.KNOWN.items():
        if narrow := NARROW.get(config["model_type"]):
            monkeypatch.setitem(architectures.KNOWN, name, config | narrow)
    check(file)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_dry_run_of_the_file_as_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole vocabulary, and a sixteenth of the width."""
    monkeypatch.setattr(world, "MOST_BYTES", 0)
    check(file)
