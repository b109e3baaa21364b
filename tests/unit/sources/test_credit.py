"""From what was sampled to the gradient: padding, micro-batches and order change nothing, each token counts once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import objectives, recipe, recipes
from potstill.models.families import Causal
from potstill.sources.credit import LogRatioJudge, whitened
from potstill.sources.mixture import MixtureSource
from potstill.sources.source import Share
from potstill.teachers.local import LocalTeacher
from potstill.training.step import StepResult
from potstill.types import Batch
from tests import rollouts, tiny
from tests.rollouts import Given, flat, log_probs, padded, picked, spec, step

STUDENT, TEACHER = rollouts.gpt2(1), rollouts.gpt2(2)
SIZE = 8
PROMPTS = {row.example_id: row.prompt_ids for row in rollouts.rows()}
STREAMS = {
    "minillm paper": recipes.minillm(max_new_tokens=rollouts.LONGEST),
    "minillm lmops": recipes.minillm(preset="lmops", max_new_tokens=rollouts.LONGEST),
    "on_policy": recipes.on_policy(rollout=spec()),
    "penalised": recipes.penalised_policy_gradient(max_new_tokens=rollouts.LONGEST, teacher_share=0.3, mix="logits"),
}


def stream_of(name: str) -> recipe.Stream:
    return next(stream for stream in STREAMS[name].stage.streams if stream.name == "rollouts")


def credit_of(stream: recipe.Stream) -> recipe.PolicyGradient:
    return next(t.objective for t in stream.terms if isinstance(t.objective, recipe.PolicyGradient))


def written(stream: recipe.Stream) -> Batch:
    """A global batch without credit."""
    assert isinstance(stream.source, recipe.RolloutSource)
    once = stream.source.model_copy(update={"batches_per_rollout": 1, "num_updates_per_batch": 1})
    (batch,) = rollouts.rollouts(STUDENT, TEACHER, once, credit=None).next(Share(SIZE, SIZE), 0.0)
    assert len({len(ids) for _, ids in flat([batch])}) > 2
    return batch


def judge(settings: recipe.PolicyGradient) -> LogRatioJudge:
    return LogRatioJudge(STUDENT, LocalTeacher(TEACHER), settings)


def outcome(stream: recipe.Stream, batches: Sequence[Batch]) -> tuple[StepResult, dict[str, Tensor]]:
    """Judge a rollout that comes in these micro-batches, and take a step on it."""
    return step(STUDENT, TEACHER, stream, Given(judge(credit_of(stream))(batches)), size=SIZE)


@pytest.mark.parametrize("name", STREAMS)
def test_padding_micro_batches_and_the_order_of_rows_change_nothing(name: str) -> None:
    stream = stream_of(name)
    batch = written(stream)
    result, gradient = outcome(stream, [batch])
    assert all(part.abs().max() > 1e-6 for part in gradient.values() if part.ndim > 1)
    arrangements = {
        "padding": [padded(batch, left=3, right=5)],
        "rows one by one": [picked(batch, [row]) for row in range(SIZE)],
        "micro-batches": [picked(batch, range(5)), padded(picked(batch, range(5, SIZE)), left=1, right=2)],
        "order": [picked(batch, [7, 0, 3, 2]), picked(batch, [1, 6, 5, 4])],
    }
    for how, batches in arrangements.items():
        other, found = outcome(stream, batches)
        assert other.values == pytest.approx(result.values, rel=1e-10, abs=1e-12), how
        assert (other.response_tokens, other.tokens) == (result.response_tokens, result.tokens), how
        for key, part in gradient.items():
            torch.testing.assert_close(found[key], part, rtol=1e-8, atol=1e-11, msg=f"{how}: {key}")


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("settings", [{}, {"include_current": True, "discount": 0.9}, {"add_current": True}])
def test_padding_never_enters_an_advantage(settings: dict[str, Any], whiten: bool) -> None:
    batch = written(stream_of("minillm paper"))
    judged = judge(recipe.PolicyGradient(advantages=recipe.Advantages(**settings, whiten=whiten)))
    (plain,), (wide,) = judged([batch]), judged([padded(batch, left=2, right=6)])
    assert plain.credit is not None
    assert wide.credit is not None
    for found, expected in zip(vars(wide.credit).values(), vars(plain.credit).values(), strict=True):
        torch.testing.assert_close(found[:, : batch.response_ids.shape[1]], expected, rtol=0, atol=1e-12)
        assert (found[~wide.response_mask] == 0).all()
        assert (expected[~plain.response_mask] == 0).all()
    assert (plain.credit.advantages[plain.response_mask] != 0).sum() > SIZE


def test_the_end_token_is_rewarded_once_and_a_response_that_was_cut_has_no_end() -> None:
    """At discount 1 the first token's return is the sum of all rewards: of the response's own tokens, each once."""
    batch = written(stream_of("minillm paper"))
    whole = recipe.Advantages(include_current=True, length_normalise=False)
    (judged,) = judge(recipe.PolicyGradient(advantages=whole))([batch])
    assert judged.credit is not None
    kinds = set()
    for row, (name, ids) in enumerate(flat([batch])):
        prompt = PROMPTS[name.split("#")[0]]
        log_q, log_p = log_probs(STUDENT, prompt, ids), log_probs(TEACHER, prompt, ids)
        rewards, advantages = log_p - log_q, judged.credit.advantages[row]
        torch.testing.assert_close(judged.credit.behaviour_logprobs[row, : len(ids)], log_q, rtol=0, atol=1e-12)
        assert advantages[0].item() == pytest.approx(rewards.sum().item(), abs=1e-10)
        assert advantages[len(ids) - 1].item() == pytest.approx(rewards[-1].item(), abs=1e-10)
        assert abs(rewards[-1].item()) > 1e-3  # twice or not at all would be seen
        kinds.add(ids[-1] == rollouts.END)
    assert kinds == {True, False}


def test_without_the_current_reward_the_last_token_has_no_credit_and_the_end_counts_for_those_before_it() -> None:
    batch = written(stream_of("minillm paper"))
    (judged,) = judge(recipe.PolicyGradient(advantages=recipe.Advantages(length_normalise=False)))([batch])
    assert judged.credit is not None
    for row, (name, ids) in enumerate(flat([batch])):
        prompt = PROMPTS[name.split("#")[0]]
        rewards = log_probs(TEACHER, prompt, ids) - log_probs(STUDENT, prompt, ids)
        expected = rewards.sum() - rewards.cumsum(0)
        torch.testing.assert_close(judged.credit.advantages[row, : len(ids)], expected, rtol=0, atol=1e-10)


def test_a_rollout_is_whitened_as_a_whole_and_over_all_processes() -> None:
    batch = written(stream_of("minillm paper"))
    settings = recipe.PolicyGradient(advantages=recipe.Advantages(whiten=True))
    (whole,) = judge(settings)([batch])
    assert whole.credit is not None
    real = whole.credit.advantages[whole.response_mask]
    assert real.mean().item() == pytest.approx(0, abs=1e-12)
    assert real.square().mean().item() == pytest.approx(1, abs=1e-6)
    parts = judge(settings)([picked(batch, range(3)), picked(batch, range(3, SIZE))])
    joined = torch.cat([part.credit.advantages for part in parts if part.credit])
    torch.testing.assert_close(joined, whole.credit.advantages, rtol=0, atol=1e-12)


def test_whitening_over_two_processes_is_that_of_one() -> None:
    """Each process's sums are added to the other's, in the order in which it asks for them."""
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [-3.0, 0.5, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    (expected,) = whitened([values], [mask], list)
    mean = 11.5 / 6
    others = iter([[3.0, 4.5], [sum((value - mean) ** 2 for value in (-3.0, 0.5, 7.0))]])
    (found,) = whitened([values[:2]], [mask[:2]], lambda own: [a + b for a, b in zip(own, next(others), strict=True)])
    torch.testing.assert_close(found, expected[:2], rtol=0, atol=1e-12)
    assert found[0, 0].item() == pytest.approx((1.0 - mean) / statistics.pstdev([1, 2, 4, -3, 0.5, 7]), rel=1e-6)


def test_a_batch_without_credit_cannot_be_trained_on_by_a_policy_gradient() -> None:
    stream = stream_of("on_policy")
    with pytest.raises(ValueError, match="sampled tokens with credit, and this batch has none"):
        step(STUDENT, TEACHER, stream, Given([written(stream)]), size=SIZE)


def test_text_of_an_earlier_student_is_seen_by_the_ratio() -> None:
    """The second update of a batch: behaviour and advantages stay, the student has moved."""
    stream = stream_of("on_policy")
    batches = judge(credit_of(stream))([written(stream)])
    moved = rollouts.gpt2(1)
    with torch.no_grad():
        moved.model.lm_head.weight.mul_(1.1)
    _, now = step(moved, TEACHER, stream, Given(batches), size=SIZE)
    fresh = [replace(batch, credit=replace(batch.credit, behaviour_logprobs=own(moved, batch))) for batch in batches]  # type: ignore[type-var]
    _, without_ratio = step(moved, TEACHER, stream, Given(fresh), size=SIZE)
    assert max((now[name] - without_ratio[name]).abs().max() for name in now) > 1e-3


def own(family: Any, batch: Batch) -> Tensor:
    found = torch.zeros(batch.response_mask.shape, dtype=torch.float64)
    for row, (name, ids) in enumerate(flat([batch])):
        found[row, : len(ids)] = log_probs(family, PROMPTS[name.split("#")[0]], ids)
    return found


# --- What is not used does not count ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_gkds_loss_does_not_change_when_unused_reference_answers_get_longer(reduction: str) -> None:
    """To the last bit; public code counts the reference's tokens in the denominator, and its loss goes sevenfold."""
    stream = recipes.gkd(student_share=1.0, rollout=spec()).stage.streams[0]
    assert isinstance(stream.source, recipe.MixtureSource)
    term = stream.terms[0].model_copy(update={"reduction": reduction})
    stream = stream.model_copy(update={"terms": (term,)})

    def outcome_with(longest: int, share: float) -> tuple[StepResult, dict[str, Tensor]]:
        rollout = rollouts.rollouts(STUDENT, TEACHER, spec(), credit=None, prompts=rollouts.data(longest=longest))
        mixed = MixtureSource(rollouts.data(longest=longest), rollout, rollouts.fixed(share), seed=0)
        return step(STUDENT, TEACHER, stream, mixed, size=SIZE, micro_size=2)

    (short, gradient), (long, same_gradient) = (outcome_with(longest, 1.0) for longest in (2, 40))
    assert short == long
    assert all(torch.equal(gradient[name], same_gradient[name]) for name in gradient)
    assert short.loss == pytest.approx(mean_divergence(reduction), rel=1e-9)
    assert outcome_with(2, 0.0)[0].values != outcome_with(40, 0.0)[0].values  # where they are used they count


def mean_divergence(reduction: str) -> float:
    """Of what the student has written: over its tokens, or over responses of the mean over theirs."""
    (batch,) = rollouts.rollouts(STUDENT, TEACHER, spec(), credit=None).next(Share(SIZE, SIZE), 0.0)
    with torch.no_grad():
        logits = [family.head(family(batch)) for family in (STUDENT, TEACHER)]
    values = objectives.jensen_shannon(*logits).masked_fill(~batch.response_mask, 0.0)
    lengths = batch.response_mask.sum(1)
    mean = values.sum() / lengths.sum() if reduction == "token_mean" else (values.sum(1) / lengths).mean()
    return mean.item()


def test_the_judge_reads_without_dropout_and_leaves_it_as_it_was() -> None:
    batch = tiny.batch([(3, 7), (6, 1)])
    teacher = LocalTeacher(Causal(tiny.gpt2(4).double()))
    found = []
    for dropout in (0.0, 0.5):
        student = Causal(tiny.gpt2(3, dropout=dropout).double())
        student.train()
        (judged,) = LogRatioJudge(student, teacher, recipe.PolicyGradient())([batch])
        assert judged.credit is not None
        assert all(part.training for part in student.modules())
        found.append(judged.credit)
    for plain, dropped in zip(vars(found[0]).values(), vars(found[1]).values(), strict=True):
        torch.testing.assert_close(dropped, plain, rtol=0, atol=1e-12)
