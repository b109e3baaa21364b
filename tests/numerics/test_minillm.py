"""MiniLLM's gradient against exact enumeration: where it is the gradient of sequence-level reverse KL, and where not.

Every response that is possible (vocabulary 3, at most 3 tokens) goes once through the code that trains: rollout
source, judge, weightings, terms. Each one's gradient is multiplied by the exact probability that it is written, so what
comes out is the expectation, to the last digits of float64. Terms are sums over tokens here: a mean over the batch's
tokens is the same up to a factor, and one that depends on the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from potstill import recipe, recipes
from potstill.data.examples import Tokenised
from potstill.models.families import Causal, Family, family_of
from potstill.objectives.chunked import evaluate_terms
from potstill.recipes.common import distillation
from potstill.sampling.sampler import Response
from potstill.sources.credit import LogRatioJudge
from potstill.sources.dataset import DatasetSource
from potstill.sources.rollout import RolloutSource
from potstill.sources.source import Share
from potstill.teachers.local import LocalTeacher
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream, bound, weighed
from potstill.training.terms import LiveTerm
from potstill.types import Batch
from tests import tiny

VOCAB, LONGEST, END = 3, 3, 0
PROMPT = (1, 2)
SEED, INIT = 1, 0.5
RUNTIME = Runtime(torch.device("cpu"), torch.float64)
whether_responses_end = pytest.mark.parametrize("ends", [False, True], ids=["of_one_length", "ended"])


def model(seed: int, kind: str) -> Family:
    """A model whose parameters positions and prefixes share. The norms of a LLaMA, as of T5, compute in float32."""
    if kind != "gpt2":
        make = partial(tiny.bart, layers=1) if kind == "bart" else partial(tiny.t5, layers=1)
        return family_of(make(seed, vocab=VOCAB).double())
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=2, n_positions=8, initializer_range=INIT,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    return Causal(GPT2LMHeadModel(config).eval().double())


@cache
def models(kind: str = "gpt2") -> tuple[Family, LocalTeacher]:
    return model(SEED, kind), LocalTeacher(model(SEED + 1, kind))


@cache
def sequences(ends: bool) -> tuple[tuple[int, ...], ...]:
    """All responses; where they may end, nothing follows the end token."""
    full = product(range(VOCAB), repeat=LONGEST)
    return tuple(dict.fromkeys(s[: s.index(END) + 1] if ends and END in s else s for s in full))


def own_logits(family: Family, sequence: tuple[int, ...]) -> Tensor:
    """By the model's own forward, which shifts labels itself where it has an encoder."""
    if isinstance(family, Causal):
        logits: Tensor = family.model(input_ids=torch.tensor([[*PROMPT, *sequence]])).logits[0, len(PROMPT) - 1 : -1]
    else:
        logits = family.model(input_ids=torch.tensor([PROMPT]), labels=torch.tensor([sequence])).logits[0]
    return logits


def log_probs(family: Family, sequence: tuple[int, ...], temperature: float) -> Tensor:
    """The log-probability of each token of a response, by the model's own forward."""
    scores = (own_logits(family, sequence) / temperature).log_softmax(-1)
    return scores.gather(-1, torch.tensor(sequence)[:, None])[:, 0]


def gradient_of(student: Family) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    student.zero_grad(set_to_none=True)
    return found


@cache
def exact(ends: bool, temperature: float = 1.0, kind: str = "gpt2") -> Tensor:
    """The gradient of sum over responses of q (log q - log p), by automatic differentiation."""
    student, teacher = models(kind)
    student.zero_grad(set_to_none=True)
    for sequence in sequences(ends):
        log_q = log_probs(student, sequence, temperature).sum()
        log_p = log_probs(teacher.family, sequence, temperature).sum().detach()
        (log_q.exp() * (log_q - log_p)).backward()
    return gradient_of(student)


# --- The code that trains ---------------------------------------------------------------------------------------------


@cache
@torch.no_grad()
def response(sequence: tuple[int, ...], teacher_share: float, temperature: float, kind: str = "gpt2") -> Response:
    """A response as the sampler would report it, from a mixture of both models' probabilities."""
    student, teacher = models(kind)
    log_q, log_p = (log_probs(family, sequence, temperature) for family in (student, teacher.family))
    behaviour = ((1 - teacher_share) * log_q.exp() + teacher_share * log_p.exp()).log()
    return Response(sequence, tuple(behaviour.tolist()), tuple(log_q.tolist()), sequence[-1] == END)


@dataclass(frozen=True)
class Scribe:
    """A writer that writes these responses and says with what probability it would have."""

    responses: tuple[Response, ...]

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        assert len(prompts) == len(seeds) == len(self.responses)
        return list(self.responses)


def rollouts_of(made: recipe.Recipe) -> recipe.Stream:
    return next(stream for stream in made.stage.streams if stream.name == "rollouts")


def written(spec: recipe.Stream, which: tuple[tuple[int, ...], ...], kind: str = "gpt2") -> tuple[Response, ...]:
    """These responses, as whoever writes in this stream would have written them."""
    assert isinstance(spec.source, recipe.RolloutSource)
    share = spec.source.policy.teacher_share if isinstance(spec.source.policy, recipe.TokenMixedPolicy) else 0.0
    return tuple(response(sequence, share, spec.source.temperature, kind) for sequence in which)


def judged(spec: recipe.Stream, responses: tuple[Response, ...], kind: str = "gpt2") -> Batch:
    """A rollout of these responses with their credit."""
    student, teacher = models(kind)
    assert isinstance(spec.source, recipe.RolloutSource)
    of_policy = next((t.objective for t in spec.terms if isinstance(t.objective, recipe.PolicyGradient)), None)
    judge = LogRatioJudge(student, teacher, of_policy) if of_policy else None
    prompts = DatasetSource([Tokenised("row", PROMPT, (END,), "", "", False)], seed=0, pad_id=END)
    once = spec.source.model_copy(update={"batches_per_rollout": 1})
    source = RolloutSource(prompts, Scribe(responses), once, seed=0, judge=judge, dtype=torch.float64)
    (batch,) = source.next(Share(len(responses), len(responses)), progress=0.0)
    return batch


def gradient(spec: recipe.Stream, batch: Batch, factors: Tensor, kind: str = "gpt2") -> Tensor:
    """Of the stream's terms, as sums over tokens, each response's multiplied by a factor."""
    student, teacher = models(kind)
    live = LiveStream(spec, None, teacher, tuple(LiveTerm(spec.name, term) for term in spec.terms))  # type: ignore[arg-type]
    micro = weighed(live, batch, student, RUNTIME)
    terms = bound(micro, {term.key: 1.0 for term in live.terms}, RUNTIME, progress=0.5)
    scaled = [replace(term, scale=term.scale * factors[:, None]) for term in terms]
    student.zero_grad(set_to_none=True)
    total, _ = evaluate_terms(student.output(batch), micro.ask(), batch, scaled)
    total.backward()
    return gradient_of(student)


def expected(
    made: recipe.Recipe, ends: bool, change: Callable[[Batch], Batch] = lambda batch: batch, kind: str = "gpt2"
) -> Tensor:
    """The mean gradient of a recipe's rollouts, over all responses as its policy writes them."""
    spec = rollouts_of(made)
    responses = written(spec, sequences(ends), kind)
    probabilities = torch.tensor([sum(r.behaviour_logprobs) for r in responses], dtype=torch.float64).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    return gradient(spec, change(judged(spec, responses, kind)), probabilities, kind)


unnormalised: Callable[..., recipe.Recipe] = partial(recipes.minillm, length_normalise=False)
alone: Callable[..., recipe.Recipe] = partial(unnormalised, teacher_share=0.0)


def deviation(found: Tensor, from_: Tensor) -> float:
    return ((found - from_).norm() / from_.norm()).item()


def cosine(found: Tensor, with_: Tensor) -> float:
    return torch.cosine_similarity(found, with_, dim=0).item()


# --- Where it is exact ------------------------------------------------------------------------------------------------


EXACT = {
    "single step and long part": alone(),
    "the same without a clip": alone(clip=None),
    "the whole return, no single step": alone(single_step=False, include_current=True),
    "on_policy at discount 1": recipes.on_policy(discount=1.0),
}


@whether_responses_end
@pytest.mark.parametrize("name", EXACT)
def test_it_is_the_gradient_of_sequence_level_reverse_kl(name: str, ends: bool) -> None:
    torch.testing.assert_close(expected(EXACT[name], ends), exact(ends), rtol=0, atol=1e-9)
    assert exact(ends).norm() > 1


# T5's norms, and so its gradients, are computed in float32 whatever the model is in.
ROUNDING = {"bart": 1e-9, "t5": 1e-5}


@whether_responses_end
@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("name", EXACT)
def test_it_is_that_of_an_encoder_decoder_too(name: str, kind: str, ends: bool) -> None:
    reference = exact(ends, kind=kind)
    torch.testing.assert_close(expected(EXACT[name], ends, kind=kind), reference, rtol=0, atol=ROUNDING[kind])
    assert reference.norm() > 0.5


@pytest.mark.parametrize("kind", ROUNDING)
def test_the_teachers_help_leaves_an_encoder_decoder_no_bias_either(kind: str) -> None:
    found = expected(unnormalised(teacher_share=0.5), True, whole_weights, kind)
    torch.testing.assert_close(found, exact(True, kind=kind), rtol=0, atol=ROUNDING[kind])
    assert deviation(expected(unnormalised(teacher_share=0.5), True, kind=kind), exact(True, kind=kind)) > 0.01


@pytest.mark.parametrize(
    "made", [alone(temperature=0.7), alone(temperature=0.7, single_step=False, include_current=True)]
)
def test_at_another_temperature_it_is_that_of_the_models_at_that_temperature(made: recipe.Recipe) -> None:
    torch.testing.assert_close(expected(made, True), exact(True, 0.7), rtol=0, atol=1e-9)
    assert deviation(exact(True), exact(True, 0.7)) > 0.1


def whole_weights(batch: Batch) -> Batch:
    """The weight of a whole response at each of its tokens."""
    assert batch.importance_weights is not None
    whole = batch.importance_weights.prod(1, keepdim=True).expand_as(batch.importance_weights)
    return replace(batch, importance_weights=whole.contiguous())


@whether_responses_end
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_with_the_weight_of_the_whole_response_the_teachers_help_leaves_no_bias(ends: bool, share: float) -> None:
    """So the bias of ``teacher_share`` is that of one token's weight alone, and nothing else's."""
    for switches in ({}, {"single_step": False, "include_current": True}):
        found = expected(unnormalised(teacher_share=share, **switches), ends, whole_weights)
        torch.testing.assert_close(found, exact(ends), rtol=0, atol=1e-9)


def of_single_steps(ends: bool) -> Tensor:
    """The gradient of reverse KL at each position of the student's text, the text taken as given."""
    student, teacher = models()
    student.zero_grad(set_to_none=True)
    for sequence in sequences(ends):
        ids = torch.tensor([[*PROMPT, *sequence]])
        log_q, log_p = (f.model(input_ids=ids).logits[0, 1:-1].log_softmax(-1) for f in (student, teacher.family))
        probability = log_probs(student, sequence, 1.0).sum().exp().detach()
        (probability * (log_q.exp() * (log_q - log_p.detach())).sum()).backward()
    return gradient_of(student)


@whether_responses_end
def test_at_discount_0_it_is_reverse_kl_on_the_students_own_text(ends: bool) -> None:
    """on_policy's default from sampled tokens, and GKD's from the whole vocabulary, as sums over tokens."""
    gkd = recipes.gkd(student_share=1.0, divergence=recipe.ReverseKL()).stage.streams[0]
    assert isinstance(gkd.source, recipe.MixtureSource)
    term = gkd.terms[0].model_copy(update={"reduction": "token_mean"})
    dense = distillation(
        "gkd", gkd.model_copy(update={"name": "rollouts", "source": gkd.source.rollout, "terms": (term,)})
    )
    reference = of_single_steps(ends)
    for made in (recipes.on_policy(), alone(discount=0.0), dense):
        torch.testing.assert_close(expected(made, ends), reference, rtol=0, atol=1e-9)
    assert deviation(reference, exact(ends)) > 0.1  # it is not sequence-level reverse KL's


# --- Where it is not, and by how much ---------------------------------------------------------------------------------


# Of each switch alone: the relative deviation from the exact gradient, at least and at most, and the least cosine.
BIASED: dict[str, tuple[recipe.Recipe, float, float, float]] = {
    "length_normalise": (recipes.minillm(teacher_share=0.0), 0.04, 0.07, 0.998),
    "length_normalise, one part": (
        recipes.minillm(teacher_share=0.0, single_step=False, include_current=True), 0.3, 0.6, 0.94,
    ),
    "discount": (alone(discount=0.95), 0.005, 0.02, 0.999),
    "teacher_share 0.2": (unnormalised(), 0.08, 0.13, 0.99),
    "teacher_share 0.5": (unnormalised(teacher_share=0.5), 0.2, 0.35, 0.96),
    "clip_weights": (unnormalised(clip_weights=True), 0.13, 0.22, 0.99),
    "reward_clip": (alone(reward_clip=0.5), 0.02, 0.5, 0.9),
    "paper": (recipes.minillm(), 0.1, 0.13, 0.99),
    "current reward counted twice": (alone(include_current=True), 0.9, 1.3, 0.99),
    "reward_scale": (alone(single_step=False, include_current=True, reward_scale=2.0), 0.999999, 1.000001, 0.999999),
    "reward_scale of the long part": (alone(reward_scale=2.0), 0.1, 0.4, 0.95),
    "lmops": (recipes.minillm(preset="lmops", whiten=False), 1.1, 1.7, 0.97),
}  # fmt: skip


@whether_responses_end
@pytest.mark.parametrize("name", BIASED)
def test_each_other_switch_has_the_bias_it_is_said_to_have(name: str, ends: bool) -> None:
    made, least, most, direction = BIASED[name]
    found = expected(made, ends)
    assert least < deviation(found, exact(ends)) < most
    assert cosine(found, exact(ends)) > direction


@whether_responses_end
def test_counting_the_current_reward_twice_adds_the_single_steps_once_more(ends: bool) -> None:
    found = expected(alone(include_current=True), ends)
    torch.testing.assert_close(found - exact(ends), of_single_steps(ends), rtol=0, atol=1e-9)


@whether_responses_end
def test_the_single_steps_weight_makes_noise_and_no_difference_on_average(ends: bool) -> None:
    """Its term looks at what stands before a token, and the weight's mean over that token is 1."""
    found = expected(unnormalised(weigh_single_step=False), ends)
    torch.testing.assert_close(found, expected(unnormalised(), ends), rtol=0, atol=1e-9)


@whether_responses_end
def test_without_any_weight_the_bias_is_larger(ends: bool) -> None:
    spec = rollouts_of(unnormalised(single_step=False, include_current=True))
    term = spec.terms[0]
    bare = term.model_copy(update={"objective": term.objective.model_copy(update={"use_importance_weights": False})})
    unweighed = distillation("minillm", spec.model_copy(update={"terms": (bare,)}))
    assert deviation(expected(unweighed, ends), exact(ends)) > 1.3 * deviation(
        expected(unnormalised(), ends), exact(ends)
    )


def test_a_reward_clip_above_every_reward_does_nothing() -> None:
    torch.testing.assert_close(expected(alone(reward_clip=100.0), True), exact(True), rtol=0, atol=1e-9)


def census(made: recipe.Recipe, size: int = 3000) -> Tensor:
    """The mean gradient over one rollout in which each response stands as often as it is likely."""
    spec = rollouts_of(made)
    each = written(spec, sequences(True))
    times = [round(size * torch.tensor(sum(r.behaviour_logprobs)).exp().item()) for r in each]
    rows = tuple(r for r, count in zip(each, times, strict=True) for _ in range(count))
    return gradient(spec, judged(spec, rows), torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))


def test_whitening_changes_the_size_alone_and_so_the_balance_with_the_single_step() -> None:
    whole = {"single_step": False, "include_current": True}
    plain, white = census(alone(**whole)), census(alone(**whole, whiten=True))
    assert deviation(plain, exact(True)) < 0.01  # the rounded numbers of responses
    assert cosine(white, exact(True)) > 0.999
    assert not 0.9 < white.norm() / plain.norm() < 1.1
    both = census(alone(whiten=True))
    assert deviation(both, exact(True)) > 0.05
    assert cosine(both, exact(True)) < 0.999
