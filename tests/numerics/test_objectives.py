"""The public face of the library: its names, its signatures, its refusals, and cross-entropy."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from potstill import objectives, recipe
from potstill.errors import ConfigError
from potstill.objectives import sparse
from potstill.recipe.objectives import ObjectiveSection
from tests.numerics.table import logits

TEMPERED = "(student_logits, teacher_logits, *, {}temperature=1.0)"
INTERFACE = {
    "cross_entropy": "(student_logits, target_ids, *, label_smoothing=0.0)",
    "forward_kl": TEMPERED.format(""),
    "reverse_kl": TEMPERED.format(""),
    "jeffreys": TEMPERED.format(""),
    "jensen_shannon": TEMPERED.format("teacher_weight=0.5, rescale=False, "),
    "skew_forward_kl": TEMPERED.format("skew=0.1, "),
    "skew_reverse_kl": TEMPERED.format("skew=0.1, "),
    "total_variation": TEMPERED.format(""),
    "squared_hellinger": TEMPERED.format(""),
    "adaptive_kl": TEMPERED.format("head_mass=0.5, "),
    "alpha_beta": TEMPERED.format("alpha, beta, "),
    "interpolated_forward_kl": TEMPERED.format("t, "),
    "assistant_divergence": TEMPERED.format(
        "alpha=-1.0, teacher_weight=0.1, anchor='teacher', divergence_alpha=0.2, divergence_beta=0.7, "
    ),
    "logit_matching": TEMPERED.format("weights='student', other_weights=None, "),
    "entropy": "(student_logits)",
    "unlikelihood": "(student_logits, seen_ids, seen_mask, target_ids)",
    "embedding_similarity": "(student_logits, embeddings, mask)",
    "policy_gradient": ("(student_logprobs, behaviour_logprobs, advantages, *, clip=None, importance_weights=None)"),
    "token_policy_gradient": (
        "(student_logits, target_ids, *, behaviour_logprobs, advantages, importance_weights=None, clip=None, "
        "clip_weights=False, temperature=1.0)"
    ),
    "hidden_mse": "(student_hidden, teacher_hidden, *, normalise=True)",
    "hidden_cosine": "(student_hidden, teacher_hidden)",
    "hidden_correlation": "(student_hidden, teacher_hidden, mask, *, off_diagonal_weight=0.005)",
    "relation_divergence": "(student_states, teacher_states, mask, *, causal=True)",
    "squared_log_ratio": "(student_logprobs, teacher_logprobs)",
    "k1": "(student_logprobs, teacher_logprobs)",
    "k3": "(student_logprobs, teacher_logprobs)",
}
OF_SAMPLED_TOKENS = {"policy_gradient", "squared_log_ratio", "k1", "k3"}  # what rollouts are scored with
OF_EACH_TOKEN = {"behaviour_logprobs", "advantages", "importance_weights"}  # told by the batch and not by a recipe


def function_of(section: type[ObjectiveSection]) -> str:
    return section.function or section.model_fields["name"].default


def test_the_interface_is_what_it_is() -> None:
    """Others import it: a change here is a change for them, and belongs into the changelog."""
    found = {}
    for name in objectives.__all__:
        parameters = inspect.signature(getattr(objectives, name)).parameters.values()
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        found[name] = str(inspect.Signature(bare))
    assert found == INTERFACE


def test_the_objectives_need_neither_transformers_nor_pydantic() -> None:
    """They are for other people's loops too."""
    code = "import potstill.objectives, sys; print([m for m in ('transformers', 'pydantic') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("section", get_args(recipe.AnyObjective), ids=lambda section: section.__name__)
def test_recipe_settings_are_the_functions_keywords_with_the_same_defaults(
    section: type[ObjectiveSection],
) -> None:
    elsewhere = {"name", *section.made_elsewhere}
    assert elsewhere <= section.model_fields.keys()
    declared = {name: field.default for name, field in section.model_fields.items() if name not in elsewhere}
    parameters = inspect.signature(getattr(objectives, function_of(section))).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in OF_EACH_TOKEN}
    assert declared.keys() == keywords.keys()
    required = inspect.Parameter.empty  # of the function; a recipe may have a vetted setting
    assert {k: v for k, v in declared.items() if keywords[k] is not required} == {
        k: v for k, v in keywords.items() if v is not required
    }


def test_every_objective_can_stand_in_a_recipe() -> None:
    sections = get_args(recipe.AnyObjective)
    inside = {function_of(section) for section in sections}
    assert inside == set(objectives.__all__) - OF_SAMPLED_TOKENS


def test_cross_entropy_and_its_gradient() -> None:
    s, y = logits(19, 40, 9), torch.arange(40) % 9
    q = s.softmax(-1)
    nll = -q.log().gather(-1, y[:, None])[:, 0]
    torch.testing.assert_close(objectives.cross_entropy(s, y), nll, rtol=0, atol=1e-12)
    smooth = 0.9 * nll - 0.1 * q.log().mean(-1)
    torch.testing.assert_close(objectives.cross_entropy(s, y, label_smoothing=0.1), smooth, rtol=0, atol=1e-12)
    leaf = s.clone().requires_grad_()
    objectives.cross_entropy(leaf, y).sum().backward()
    torch.testing.assert_close(leaf.grad, q - torch.nn.functional.one_hot(y, 9), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: objectives.forward_kl(s, s, temperature=0),
        lambda s: objectives.reverse_kl(s, s, temperature=-1),
        lambda s: objectives.jensen_shannon(s, s, teacher_weight=0),
        lambda s: objectives.jensen_shannon(s, s, teacher_weight=1.0),
        lambda s: objectives.jensen_shannon(s, s, teacher_weight=1.1, rescale=True),
        lambda s: objectives.jensen_shannon(s, s, teacher_weight=float("nan")),
        lambda s: objectives.skew_forward_kl(s, s, skew=1.0),
        lambda s: objectives.skew_reverse_kl(s, s, skew=-0.1),
        lambda s: objectives.adaptive_kl(s, s, head_mass=0),
        lambda s: objectives.adaptive_kl(s, s, head_mass=1),
        lambda s: objectives.interpolated_forward_kl(s, s, t=1.01),
        lambda s: objectives.interpolated_forward_kl(s, s, t=-0.01),
        lambda s: objectives.assistant_divergence(s, s, teacher_weight=1.0),
        lambda s: objectives.assistant_divergence(s, s, teacher_weight=0.0, anchor="student"),
        lambda s: objectives.cross_entropy(s, torch.zeros(3, dtype=torch.long), label_smoothing=1.0),
    ],
)
def test_settings_out_of_range_are_refused_with_the_fix(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ConfigError, match="fix: give"):
        call(logits(22, 3, 4))


def test_unknown_choices_are_refused() -> None:
    s = logits(22, 3, 4)
    with pytest.raises(ConfigError, match="choose one of student, teacher, uniform"):
        objectives.logit_matching(s, s, weights="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choose teacher or student"):
        objectives.assistant_divergence(s, s, anchor="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n in INTERFACE if "teacher_logits" in INTERFACE[n]])
def test_vocabularies_of_different_size_are_refused(name: str) -> None:
    needed = {"alpha_beta": {"alpha": 0.2, "beta": 0.7}, "interpolated_forward_kl": {"t": 0.5}}
    with pytest.raises(ValueError, match="5 logits and the teacher 4"):
        getattr(objectives, name)(logits(23, 3, 5), logits(24, 3, 4), **needed.get(name, {}))


def test_positions_are_never_broadcast() -> None:
    """A batch of one would pair every student row with the same teacher row."""
    s, t = logits(25, 2, 3, 5), logits(26, 2, 3, 5)
    for teacher in (t[:1], t[0], t[:, :2], sparse.top_k(t[:1], 2), sparse.draw(t[:1], 4)):
        with pytest.raises(ValueError, match="must be the same positions"):
            objectives.forward_kl(s, teacher)


def test_a_sparse_teacher_of_a_larger_vocabulary_is_refused() -> None:
    s, t = logits(25, 3, 5), logits(26, 3, 50)
    for teacher in (sparse.top_k(t, 20), sparse.draw(t, 20)):
        with pytest.raises(ValueError, match=r"names token \d+ and the student has 5 logits"):
            objectives.forward_kl(s, teacher)


def test_something_else_than_a_teacher_is_said_so() -> None:
    with pytest.raises(TypeError, match="the teacher is a ndarray: give logits as a tensor, TopK or Sampled"):
        objectives.reverse_kl(logits(25, 3, 5), logits(26, 3, 5).numpy())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two finite powers"):
        objectives.alpha_beta(logits(25, 3, 5), logits(26, 3, 5), alpha=float("nan"), beta=1.0)


def test_a_label_that_is_no_token_is_no_silent_zero() -> None:
    with pytest.raises(IndexError, match="-100 is out of bounds"):
        objectives.cross_entropy(logits(25, 3, 5), torch.tensor([1, -100, 2]))


def test_one_position_without_a_batch_is_fine() -> None:
    s, t = logits(25, 5), logits(26, 5)
    for teacher in (t, sparse.top_k(t, 2), sparse.draw(t, 4)):
        assert objectives.forward_kl(s, teacher).shape == ()


def test_targets_of_other_positions_are_refused() -> None:
    s = logits(25, 2, 3, 5)
    for ids in (torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3, 1)):
        with pytest.raises(ValueError, match="one token id for each position"):
            objectives.cross_entropy(s, ids.long())
    assert objectives.cross_entropy(s, torch.zeros(2, 3, dtype=torch.int32)).shape == (2, 3)
