"""Policy gradient with penalties: the text is sampled from whom it should be, and each term pulls the way it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from potstill import recipe, recipes
from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.models.families import Causal
from potstill.sources.credit import LogRatioJudge
from potstill.sources.dataset import DatasetSource
from potstill.sources.source import Share
from potstill.teachers.local import LocalTeacher
from potstill.types import Batch
from tests import rollouts
from tests.rollouts import Given, step

TEACHER = rollouts.gpt2(2)
TEMPERATURE = 0.9
MADE = recipes.penalised_policy_gradient(max_new_tokens=rollouts.LONGEST)
OWN, DATA = MADE.stage.streams


def student() -> Causal:
    return rollouts.gpt2(1)


def written() -> Batch:
    """What the recipe's source writes, with credit."""
    assert isinstance(OWN.source, recipe.RolloutSource)
    credit = OWN.terms[0].objective
    assert isinstance(credit, recipe.PolicyGradient)
    (batch,) = rollouts.rollouts(student(), TEACHER, OWN.source, credit=credit).next(Share(8, 8), 0.0)
    return batch


def alone(objective: str, stream: recipe.Stream = OWN) -> recipe.Stream:
    """The stream with one of its terms, sign and weight as the recipe has them."""
    terms = tuple(term for term in stream.terms if term.objective.name == objective)
    assert len(terms) == 1
    return stream.model_copy(update={"terms": terms})


def moved(stream: recipe.Stream, batch: Batch, distance: float = 1e-3) -> Causal:
    """The student after a small step down the stream's gradient, which must be there."""
    one = student()
    _, gradient = step(one, TEACHER, stream, Given([batch]), size=8)
    size = sum(part.square().sum() for part in gradient.values()) ** 0.5
    assert size > 1e-5
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            parameter.sub_(distance / size * gradient[name])
    return one


# --- What each term does: written out again, from whole tensors of logits ---------------------------------------------


def probs(one: Causal, batch: Batch) -> Tensor:
    with torch.no_grad():
        return one.head(one(batch)).softmax(-1)


def repetition(one: Causal, batch: Batch) -> float:
    """The probability of tokens that stood before and are not due, on average."""
    q, total, count = probs(one, batch), 0.0, 0
    for row in range(len(batch)):
        ids = batch.response_ids[row, batch.response_mask[row]].tolist()
        for at in range(len(ids)):
            total += sum(q[row, at, token].item() for token in set(ids[:at]) - {ids[at]})
            count += 1
    return total / count


def likeness(one: Causal, batch: Batch) -> float:
    """The mean cosine of a response's expected embeddings, pair by pair."""
    q, weight = probs(one, batch), student().head.weight.detach()
    found = []
    for row in range(len(batch)):
        expected = q[row, batch.response_mask[row]] @ weight
        for i in range(len(expected)):
            found += [torch.cosine_similarity(expected[i], expected[j], dim=0).item() for j in range(i)]
    return sum(found) / len(found)


def spread(one: Causal, batch: Batch) -> float:
    q = probs(one, batch)[batch.response_mask]
    return -(q * q.log()).sum(-1).mean().item()


def merit(one: Causal, batch: Batch) -> float:
    """The log-probability of the tokens, each as often as its advantage says."""
    assert batch.credit is not None
    return (batch.credit.advantages * token_log_probs(one, batch)).sum().item()


def likelihood(one: Causal, batch: Batch) -> float:
    return token_log_probs(one, batch)[batch.response_mask].sum().item()


def token_log_probs(one: Causal, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits = one.head(one(batch)) / TEMPERATURE
    return logits.log_softmax(-1).gather(-1, batch.response_ids[..., None])[..., 0]


EFFECTS: dict[str, tuple[Callable[[Causal, Batch], float], int]] = {
    "unlikelihood": (repetition, -1),
    "embedding_similarity": (likeness, -1),
    "entropy": (spread, +1),
    "policy_gradient": (merit, +1),
}


def test_the_terms_are_these() -> None:
    assert {term.objective.name for term in OWN.terms} == set(EFFECTS)
    assert [term.objective.name for term in DATA.terms] == ["cross_entropy"]


@pytest.mark.parametrize("objective", EFFECTS)
def test_each_term_alone_moves_the_student_the_way_it_says(objective: str) -> None:
    figure, direction = EFFECTS[objective]
    batch = written()
    change = figure(moved(alone(objective), batch), batch) - figure(student(), batch)
    assert direction * change > 1e-6


def test_the_datas_own_responses_become_likelier() -> None:
    batch = collate(rollouts.rows(8), rollouts.END)
    assert likelihood(moved(DATA, batch), batch) > likelihood(student(), batch) + 1e-6


def test_the_loss_is_the_terms_weighted_sum() -> None:
    batch = written()
    result, gradient = step(student(), TEACHER, OWN, Given([batch]), size=8)
    parts = [step(student(), TEACHER, alone(name), Given([batch]), size=8) for name in EFFECTS]
    assert result.loss == pytest.approx(sum(part.loss for part, _ in parts), rel=1e-9)
    for name, whole in gradient.items():
        torch.testing.assert_close(sum(part[name] for _, part in parts), whole, rtol=1e-8, atol=1e-12)
    weights = {term.objective.name: term.coefficient for term in OWN.terms}
    expected = {"policy_gradient": 0.5, "unlikelihood": 0.05, "embedding_similarity": 0.05, "entropy": -0.005}
    assert weights == pytest.approx(expected)
    assert DATA.terms[0].coefficient == 0.5


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_token_with_positive_advantage_becomes_likelier_and_one_with_negative_less(sign: float) -> None:
    batch = written()
    assert batch.credit is not None
    for row, at in ((0, 0), (3, 1)):
        assert batch.response_mask[row, at]
        advantages = torch.zeros_like(batch.credit.advantages)
        advantages[row, at] = sign
        only = replace(batch, credit=replace(batch.credit, advantages=advantages))
        before, after = (
            token_log_probs(one, only)[row, at] for one in (student(), moved(alone("policy_gradient"), only))
        )
        assert sign * (after - before) > 1e-6


def test_an_advantage_is_the_tokens_own_reward_and_the_mean_of_those_after_it() -> None:
    batch = written()
    assert batch.credit is not None
    prompts = {row.example_id: row.prompt_ids for row in rollouts.rows()}
    for row, (name, ids) in enumerate(rollouts.flat([batch])):
        given = prompts[name.split("#")[0]], ids, TEMPERATURE
        rewards = rollouts.log_probs(TEACHER, *given) - rollouts.log_probs(student(), *given)
        for at in range(len(ids)):
            after = rewards[at + 1 :].mean().item() if at + 1 < len(ids) else 0.0
            assert batch.credit.advantages[row, at].item() == pytest.approx(rewards[at].item() + after, abs=1e-10)


# --- Who writes -------------------------------------------------------------------------------------------------------


def first_tokens(count: int, **settings: object) -> Tensor:
    """How often each token was written first, to one prompt."""
    made = recipes.penalised_policy_gradient(max_new_tokens=1, **settings).stage.streams[0].source  # type: ignore[arg-type]
    assert isinstance(made, recipe.RolloutSource)
    prompt = DatasetSource([Tokenised("row", (3, 4), (0,), "", "", False)], seed=0, pad_id=0)
    wide = made.model_copy(update={"slots": 500})
    source = rollouts.rollouts(student(), TEACHER, wide, credit=None, prompts=prompt)
    (batch,) = source.next(Share(count, count), 0.0)
    return torch.bincount(batch.response_ids[:, 0], minlength=rollouts.VOCAB)


def exact(one: Causal) -> Tensor:
    with torch.no_grad():
        return (one.model(input_ids=torch.tensor([[3, 4]])).logits[0, -1] / TEMPERATURE).softmax(-1)


CHI_SQUARE_9 = 33.7  # exceeded once in ten thousand draws, with 9 degrees of freedom


def distance(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


def test_the_text_is_really_sampled_and_from_the_student() -> None:
    counts, q, p = first_tokens(2000), exact(student()), exact(TEACHER)
    assert distance(counts, q) < CHI_SQUARE_9
    assert distance(counts, p) > 2 * CHI_SQUARE_9


@pytest.mark.parametrize("mix", ["probabilities", "logits"])
def test_or_from_the_mixture_that_was_asked_for(mix: str) -> None:
    """Of logits: student**(1 - a) teacher**a, normalised."""
    counts, q, p = first_tokens(2000, teacher_share=0.5, mix=mix), exact(student()), exact(TEACHER)
    geometric = (q * p).sqrt() / (q * p).sqrt().sum()
    arithmetic = (q + p) / 2
    right, wrong = (geometric, arithmetic) if mix == "logits" else (arithmetic, geometric)
    assert distance(counts, right) < CHI_SQUARE_9
    assert distance(counts, wrong) > 2 * CHI_SQUARE_9


def test_the_judge_reads_at_the_temperature_of_the_sampling() -> None:
    batch = written()
    assert batch.credit is not None
    torch.testing.assert_close(
        batch.credit.behaviour_logprobs,
        token_log_probs(student(), batch).masked_fill(~batch.response_mask, 0.0),
        rtol=0,
        atol=1e-12,
    )
    at_one = LogRatioJudge(student(), LocalTeacher(TEACHER), recipe.PolicyGradient())([batch])[0].credit
    assert at_one is not None
    assert (at_one.behaviour_logprobs - batch.credit.behaviour_logprobs).abs().max() > 1e-2
