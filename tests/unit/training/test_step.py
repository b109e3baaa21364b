"""What a step tells of itself, beside what it does, which tests/numerics and tests/distributed are about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from potstill import objectives, recipe
from potstill.teachers.local import LocalTeacher
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream, anchor, weighed
from potstill.training.terms import LiveTerm
from potstill.types import Batch
from tests import rollouts
from tests.rollouts import Given, data, log_probs, step

STUDENT, TEACHER = rollouts.gpt2(1), rollouts.gpt2(2)


@pytest.mark.parametrize("micro_size", [2, 8])
def test_the_share_that_a_gate_lets_through_is_of_the_response_tokens_of_all_micro_batches(micro_size: int) -> None:
    """By hand, from the teacher's entropy at each token; a term that leaves nothing out has no share."""
    batches = data().next(rollouts.Share(8, micro_size), 0.0)
    with torch.no_grad():
        probabilities = [TEACHER.head(TEACHER(batch)).softmax(-1)[batch.response_mask] for batch in batches]
    entropies = torch.cat([-(p * p.log()).sum(-1) for p in probabilities])
    threshold = float(entropies.sort().values.unfold(0, 2, 1)[len(entropies) // 2 - 1].mean())  # at no token's own
    gate = {"name": "entropy_gate", "threshold": threshold}
    terms = [{"objective": "forward_kl", "weighting": gate}, {"objective": "reverse_kl"}]
    stream = recipe.Stream.model_validate({"name": "data", "signal": "logits", "terms": terms})
    result, _ = step(STUDENT, TEACHER, stream, Given(batches), size=8, micro_size=micro_size)
    expected = float((entropies > threshold).sum()) / len(entropies)
    assert result.selected == {"data/forward_kl": pytest.approx(expected)}
    assert 0.3 < expected < 0.6


@pytest.mark.parametrize(("signal", "objective"), [("logits", "forward_kl"), ("none", "cross_entropy")])
def test_the_teachers_tokens_are_all_those_of_batches_that_it_is_asked_about(signal: str, objective: str) -> None:
    batches = data().next(rollouts.Share(4, 4), 0.0)
    stream = recipe.Stream.model_validate({"name": "data", "signal": signal, "terms": [{"objective": objective}]})
    result, _ = step(STUDENT, TEACHER, stream, Given(batches))
    assert result.tokens == sum(batch.num_tokens for batch in batches) > result.response_tokens
    assert result.teacher_tokens == (result.tokens if signal == "logits" else 0)


def test_a_gate_that_lets_nothing_through_says_so() -> None:
    gate = {"name": "entropy_gate", "threshold": 99.0}
    terms = [{"objective": "forward_kl", "weighting": gate}]
    stream = recipe.Stream.model_validate({"name": "data", "signal": "logits", "terms": terms})
    result, _ = step(STUDENT, TEACHER, stream, Given(data().next(rollouts.Share(4, 4), 0.0)))
    assert result.selected == {"data/forward_kl": 0.0}


STUDENT, TEACHER = rollouts.gpt2(2), rollouts.gpt2(1)  # this way round the first gap is above 0
SEED = 0
START, LEAST = 0.9, 0.05
SKEW = {"name": "curriculum", "start": START, "least": LEAST}
ROWS = rollouts.rows()


def curriculum(objective: str = "skew_forward_kl") -> recipe.Stream:
    terms = [{"objective": {"name": objective, "skew": SKEW}, "reduction": "sequence_mean"}]
    return recipe.Stream.model_validate({"name": "data", "signal": "logits", "terms": terms})


def gaps(batches: Sequence[Batch]) -> torch.Tensor:
    """exp(mean log p) - exp(mean log q) of each response, by the models' own forward, one by one."""
    rows = {row.example_id: row for row in ROWS}
    found = [rows[name] for batch in batches for name in batch.example_ids]
    p, q = (
        torch.stack([log_probs(one, row.prompt_ids, row.response_ids).mean().exp() for row in found])
        for one in (TEACHER, STUDENT)
    )
    return p - q


@pytest.mark.parametrize("objective", ["skew_forward_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("micro_size", [2, 8])
def test_each_response_has_the_skew_of_its_own_gap_over_that_of_the_whole_first_batch(
    objective: str, micro_size: int
) -> None:
    batches = data(seed=SEED).next(rollouts.Share(8, micro_size), 0.0)
    result, _ = step(STUDENT, TEACHER, curriculum(objective), Given(batches), size=8, micro_size=micro_size)
    own = gaps(batches)
    assert own.mean() > 0
    skews = (1 - (1 - START) * own.mean() / (own + 1e-5)).clamp(LEAST, START)
    assert len(skews.unique()) > 3
    total, at = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            logits = [one.head(one(batch)) for one in (STUDENT, TEACHER)]
        for row in range(len(batch)):
            mask = batch.response_mask[row]
            value = getattr(objectives, objective)(*(x[row][mask] for x in logits), skew=skews[at].item())
            total, at = total + value.mean().item(), at + 1
    assert result.loss == pytest.approx(total / 8, rel=1e-9)


def test_a_curriculum_is_anchored_to_the_mean_gap_over_all_processes() -> None:
    class Two(Runtime):
        def sum(self, values: Sequence[float]) -> list[float]:
            total, count = values
            return [total + 4.5, count + 12]

    batches = data(seed=SEED).next(rollouts.Share(8, 4), 0.0)
    spec = curriculum()
    live = LiveStream(spec, Given(batches), LocalTeacher(TEACHER), (LiveTerm("data", spec.terms[0]),))
    anchor(
        [weighed(live, batch, STUDENT, rollouts.RUNTIME) for batch in batches], Two(torch.device("cpu"), torch.float64)
    )
    assert live.terms[0].curriculum is not None
    assert live.terms[0].curriculum.state_dict()["first"] == pytest.approx((gaps(batches).sum().item() + 4.5) / 20)


def test_a_term_keeps_its_curriculum_in_the_checkpoint() -> None:
    first, later = (LiveTerm("data", curriculum().terms[0]) for _ in range(2))
    assert first.curriculum is not None
    assert later.curriculum is not None
    first.curriculum.anchor(0.25)
    later.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert later.curriculum.state_dict() == {"first": 0.25}


def test_after_the_first_batch_the_anchor_stays() -> None:
    one, other = (data(seed=s).next(rollouts.Share(8, 8), 0.0) for s in (SEED, SEED + 1))
    spec = curriculum()
    live = LiveStream(spec, Given(one), LocalTeacher(TEACHER), (LiveTerm("data", spec.terms[0]),))
    for batches in (one, other):
        anchor([weighed(live, batch, STUDENT, rollouts.RUNTIME) for batch in batches], rollouts.RUNTIME)
    assert live.terms[0].curriculum is not None
    found: dict[str, Any] = live.terms[0].curriculum.state_dict()
    assert found["first"] == pytest.approx(gaps(one).mean().item())
