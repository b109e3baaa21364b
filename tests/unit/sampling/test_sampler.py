"""The sampler: what it writes, with which probability, and that rows do not see each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from potstill.errors import ConfigError, ModelError
from potstill.models.decoding import CausalDecoder, check_decoding, decoder_of
from potstill.models.families import Causal, family_of
from potstill.models.slots import distinct_of
from potstill.sampling.distributions import Decoding, draw, warped
from potstill.sampling.policies import Mixed, Policy, Single, Speculative
from potstill.sampling.sampler import Response, sample
from tests import tiny

STOP = frozenset({0})
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [18, 19, 20, 21], [22, 23, 24]]
KINDS = {"llama": tiny.llama, "gpt2": tiny.gpt2}
ROUNDING = {"mistral": 1e-10, "gemma2": 1e-5, "qwen2": 1e-10}  # Gemma-2's own attention is taken in float32
WINDOW = 4  # tokens, shorter than most of what is written below


def windowed(kind: str) -> Any:
    """A random model some or all of whose layers see WINDOW tokens, itself counted: in the three forms there are."""
    sizes: dict[str, Any] = {
        "vocab_size": tiny.VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "sliding_window": WINDOW,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(3)
    if kind == "mistral":  # every layer, and one mask
        return MistralForCausalLM(MistralConfig(**sizes)).eval()
    if kind == "gemma2":  # every other layer
        return Gemma2ForCausalLM(Gemma2Config(**sizes)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**sizes, use_sliding_window=True, max_window_layers=1)).eval()  # from layer 1


def family(kind: str, seed: int, dtype: torch.dtype = torch.float64) -> Causal:
    return Causal(KINDS[kind](seed).to(dtype))


def run(
    policy: Policy,
    families: Sequence[Causal],
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    slots: int = 3,
    seeds: Sequence[int] | None = None,
) -> list[Response]:
    capacity = max(map(len, prompts)) + decoding.max_new_tokens
    decoders = [CausalDecoder(one, slots, capacity) for one in families]
    return sample(policy, decoders, prompts, decoding, seeds=seeds or range(len(prompts)), slots=slots)


def generated(one: Causal, prompt: list[int], **settings: Any) -> list[int]:
    """transformers' own, one prompt at a time."""
    one.model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0, **settings)
    return one.model.generate(torch.tensor([prompt]))[0, len(prompt) :].tolist()


# --- Greedy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [1, 2, 6])
@pytest.mark.parametrize("no_repeat_ngram", [0, 2, 3])
def test_greedy_is_generate_token_for_token(kind: str, slots: int, no_repeat_ngram: int) -> None:
    one = family(kind, 3)
    decoding = Decoding(20, STOP, temperature=0, no_repeat_ngram=no_repeat_ngram)
    found = run(Single(), [one], decoding, slots=slots)
    for prompt, response in zip(PROMPTS, found, strict=True):
        expected = generated(one, prompt, max_new_tokens=20, do_sample=False, no_repeat_ngram_size=no_repeat_ngram)
        assert list(response.ids) == expected
        assert response.finished == (expected[-1] == 0)
        assert response.behaviour_logprobs == (0.0,) * len(expected)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "qwen2"])
def test_layers_that_see_only_a_window_see_no_more(kind: str) -> None:
    one = Causal(windowed(kind).double())
    found = run(Single(), [one], Decoding(20, STOP))
    assert max(len(response.ids) for response in found) == 20
    for prompt, response in zip(PROMPTS, found, strict=True):
        for at, token in enumerate(response.ids):
            expected = next_log_probs(one, [*prompt, *response.ids[:at]])[token]
            assert response.behaviour_logprobs[at] == pytest.approx(expected.item(), abs=ROUNDING[kind])
    one.model.config.sliding_window = 256
    assert [response.ids for response in run(Single(), [one], Decoding(20, STOP))] != [r.ids for r in found]


def test_responses_stop_at_their_stop_token_and_it_is_theirs() -> None:
    one = family("llama", 3)
    long = run(Single(), [one], Decoding(20, frozenset(), temperature=0))
    stop = long[2].ids[7]
    first = long[2].ids.index(stop)
    found = run(Single(), [one], Decoding(20, frozenset({stop}), temperature=0))
    assert found[2].ids == long[2].ids[: first + 1]
    assert found[2].finished
    assert not long[2].finished


# --- Rows do not see each other ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [Single(), Mixed(0.3), Speculative(5)], ids=["student", "mixed", "speculative"])
def test_a_row_depends_on_its_prompt_and_seed_alone(kind: str, policy: Policy) -> None:
    families = [family(kind, 3), family(kind, 4)][: policy.num_models]
    decoding = Decoding(12, STOP, temperature=1.3)
    together = run(policy, families, decoding, slots=6)
    for slots in (1, 2, 4):
        found = run(policy, families, decoding, slots=slots)
        assert [response.ids for response in found] == [response.ids for response in together]
        for ours, theirs in zip(found, together, strict=True):
            assert ours.behaviour_logprobs == pytest.approx(theirs.behaviour_logprobs, abs=1e-10)
    order = [4, 2, 0, 5, 1, 3]
    shuffled = run(policy, families, decoding, prompts=[PROMPTS[i] for i in order], seeds=order)
    assert [response.ids for response in shuffled] == [together[i].ids for i in order]
    assert len({response.ids for response in together}) == len(PROMPTS)
    other = run(policy, families, decoding, seeds=range(100, 106))
    assert [response.ids for response in other] != [response.ids for response in together]


# --- Probabilities ----------------------------------------------------------------------------------------------------


def next_log_probs(one: Causal, sequence: Sequence[int], temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        return (one.model(torch.tensor([list(sequence)])).logits[0, -1] / temperature).log_softmax(-1)


def test_behaviour_log_probabilities_are_those_of_the_whole_sequence_run_at_once() -> None:
    student, teacher = family("llama", 3), family("llama", 4)
    share, temperature = 0.3, 1.2
    for response, prompt in zip(
        run(Mixed(share), [student, teacher], Decoding(10, STOP, temperature=temperature)), PROMPTS, strict=True
    ):
        for at, token in enumerate(response.ids):
            before = [*prompt, *response.ids[:at]]
            q, p = (next_log_probs(one, before, temperature).exp() for one in (student, teacher))
            mixed = (1 - share) * q[token] + share * p[token]
            assert response.behaviour_logprobs[at] == pytest.approx(mixed.log().item(), abs=1e-10)
            assert response.student_logprobs[at] == pytest.approx(q[token].log().item(), abs=1e-10)
            assert response.importance_weights[at] == pytest.approx((q[token] / mixed).item(), rel=1e-9)
            assert response.importance_weights[at] <= 1 / (1 - share) + 1e-9


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """The statistic over its number of degrees of freedom's 99.99% quantile, by Wilson and Hilferty's approximation."""
    expected = probabilities * counts.sum()
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic / quantile


def small(seed: int) -> Causal:
    return Causal(tiny.llama(seed, vocab=4).double())


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("policy", [Single(), Mixed(0.4), Speculative(2)], ids=["student", "mixed", "speculative"])
def test_frequencies_of_whole_sequences_match_the_exact_distribution(policy: Policy, temperature: float) -> None:
    """Vocabulary 4, three tokens: all 64 sequences, from 1,500 samples."""
    families = [small(1), small(2)][: policy.num_models]
    count, prompt = 1500, [1, 2]
    decoding = Decoding(3, frozenset(), temperature=temperature)
    found = run(policy, families, decoding, prompts=[prompt] * count, slots=500, seeds=range(count))
    sequences = list(product(range(4), repeat=3))
    probabilities = torch.tensor([_probability(policy, families, prompt, s, temperature) for s in sequences])
    assert probabilities.sum().item() == pytest.approx(1)
    counts = torch.zeros(64)
    for response in found:
        counts[sequences.index(response.ids)] += 1
    possible = probabilities > 1e-12
    assert counts[~possible].sum() == 0
    assert chi_square(counts[possible], probabilities[possible]) < 1
    for response in found[:50]:
        exact = _probability(policy, families, prompt, response.ids, temperature)
        assert sum(response.behaviour_logprobs) == pytest.approx(math.log(exact), abs=1e-9)


def _probability(
    policy: Policy, families: Sequence[Causal], prompt: list[int], sequence: Sequence[int], temperature: float
) -> float:
    total = 1.0
    for at, token in enumerate(sequence):
        before = [*prompt, *sequence[:at]]
        q, *others = (next_log_probs(one, before, temperature).exp() for one in families)
        if isinstance(policy, Mixed):
            q = (1 - policy.teacher_share) * q + policy.teacher_share * others[0]
        if isinstance(policy, Speculative):
            kept = torch.zeros(4).bool().scatter(0, others[0].topk(policy.top_k).indices, True)
            q = torch.where(kept, q, 0.0) + q[~kept].sum() * others[0]
        total *= q[token].item()
    return total


def test_the_mixtures_ends_are_its_models() -> None:
    student, teacher = family("llama", 3), family("llama", 4)
    decoding = Decoding(10, STOP)
    alone = run(Single(), [student], decoding)
    assert [r.ids for r in run(Mixed(0.0), [student, teacher], decoding)] == [r.ids for r in alone]
    assert run(Mixed(0.0), [student, teacher], decoding)[0].importance_weights == pytest.approx(
        [1.0] * len(alone[0].ids)
    )
    taught = run(Single(), [teacher], decoding)
    assert [r.ids for r in run(Mixed(1.0), [student, teacher], decoding)] == [r.ids for r in taught]
    assert [r.ids for r in run(Speculative(tiny.VOCAB), [student, teacher], decoding)] == [r.ids for r in alone]


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_the_teacher_corrects_as_often_as_the_student_proposes_what_it_would_not(top_k: int) -> None:
    student, teacher = small(1), small(2)
    count, prompt = 1500, [1, 2]
    decoding = Decoding(1, frozenset())
    found = run(Speculative(top_k), [student, teacher], decoding, [prompt] * count, slots=500, seeds=range(count))
    listed = next_log_probs(teacher, prompt).topk(top_k).indices
    refused = 1 - next_log_probs(student, prompt).exp()[listed].sum().item()
    corrected = sum(response.num_corrected for response in found)
    assert corrected == pytest.approx(
        refused * count, abs=4 * math.sqrt(count * max(refused, 0.0) * (1 - refused)) + 1e-6
    )
    assert (corrected == 0) == (top_k == 4)
    assert all(r.num_corrected == 0 for r in run(Mixed(0.4), [student, teacher], decoding, [prompt] * 9))


# --- Warping ----------------------------------------------------------------------------------------------------------


LOGITS = 2 * torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.5, "temperature": 1.4}]
)
def test_warping_is_that_of_transformers(settings: dict[str, Any]) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    expected = TemperatureLogitsWarper(float(settings.get("temperature", 1.0)))(None, LOGITS)
    if "top_k" in settings:
        expected = TopKLogitsWarper(settings["top_k"])(None, expected)
    if "top_p" in settings:
        expected = TopPLogitsWarper(settings["top_p"])(None, expected)
    found = warped(LOGITS, Decoding(1, STOP, **settings))
    torch.testing.assert_close(found, expected.log_softmax(-1), rtol=0, atol=1e-12)


def test_draws_take_the_quantile_and_never_a_token_of_no_probability() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(5, 5).log()
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 1e-16], dtype=torch.float64)
    assert draw(probabilities, uniforms).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"no_repeat_ngram": -1},
        {"max_new_tokens": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Decoding(**{"max_new_tokens": 5, "stop_ids": STOP} | settings)


def test_policies_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="teacher_share"):
        Mixed(1.5)
    with pytest.raises(ConfigError, match="top_k"):
        Speculative(0)


def test_a_response_longer_than_the_model_sees_is_refused() -> None:
    with pytest.raises(ModelError, match="256 positions"):
        CausalDecoder(family("llama", 0), 2, 300)


def test_a_model_with_other_kinds_of_layers_is_refused_by_their_name() -> None:
    model = windowed("qwen2")
    model.config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    with pytest.raises(ModelError, match="some of its layers are linear_attention"):
        CausalDecoder(Causal(model), 2, 20)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_decodes_as_it_reads_is_let_through(kind: str, dtype: torch.dtype) -> None:
    check_decoding(family(kind, 3, dtype))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_that_counts_positions_its_own_way_is_refused(kind: str) -> None:
    one = family(kind, 3, torch.float32)
    own = one.model.base_model.forward
    one.model.base_model.forward = lambda *args, **inputs: own(*args, **{**inputs, "position_ids": None})
    with pytest.raises(ModelError, match=r"token by token its logits differ by \d"):
        check_decoding(one)


def test_attention_that_adds_its_mask_gets_one_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    one = family("llama", 3)
    one.model.set_attn_implementation("eager")
    decoding = Decoding(12, STOP)
    assert [r.ids for r in run(Single(), [one], decoding)] == [
        r.ids for r in run(Single(), [family("llama", 3)], decoding)
    ]
    monkeypatch.setattr("potstill.models.decoding.EAGER", "never")
    with pytest.raises(ModelError, match="token by token"):
        check_decoding(one)


def test_each_response_is_cut_at_its_own_limit() -> None:
    one, decoding = family("llama", 3), Decoding(9, frozenset())
    whole, cut = (
        sample(Single(), [CausalDecoder(one, 3, 20)], PROMPTS, decoding, seeds=range(6), slots=3, limits=limits)
        for limits in (None, [1, 9, 2, 8, 3, 4])
    )
    assert [len(response.ids) for response in cut] == [1, 9, 2, 8, 3, 4]
    assert all(short.ids == long.ids[: len(short.ids)] for short, long in zip(cut, whole, strict=True))


def test_a_set_that_holds_exactly_top_p_is_large_enough() -> None:
    found = warped(torch.zeros(1, 4, dtype=torch.float64), Decoding(1, frozenset(), top_p=0.5))
    assert found.exp().tolist() == [[0.5, 0.5, 0.0, 0.0]]


def test_prompts_are_the_same_only_where_all_their_tokens_are() -> None:
    prompts = [[1, 2, 3], [4, 2, 3], [1, 2, 3], [2, 3], [1, 2]]
    assert distinct_of(prompts) == ([(1, 2, 3), (4, 2, 3), (2, 3), (1, 2)], [0, 1, 0, 2, 3])


@pytest.mark.parametrize("kind", [*KINDS, "t5", "bart"])
def test_a_prompt_that_comes_several_times_is_read_once_and_answered_as_if_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies beside each other and apart, more of them than slots, among prompts of other lengths."""
    made = {"t5": tiny.t5, "bart": tiny.bart}.get(kind) or KINDS[kind]
    own = family_of(made(1).to(torch.float64))
    prompts = [PROMPTS[at] for at in (0, 0, 1, 2, 0, 2, 2, 1, 3, 3)]
    decoding = Decoding(6, STOP)

    def answers(slots: int, chosen: Sequence[int]) -> list[Response]:
        asked = [prompts[at] for at in chosen]
        with torch.no_grad():
            decoder = decoder_of(own, slots, 8, 6)
            return sample(Single(), [decoder], asked, decoding, seeds=list(chosen), slots=slots)

    alone = [answers(1, [at])[0] for at in range(len(prompts))]
    assert len({response.ids for response in alone[:2]}) == 2  # of one prompt, by two seeds
    read = own.model.get_encoder() if kind in ("t5", "bart") else own.model.base_model
    rows: list[int] = []
    hook = read.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])) if kwargs["input_ids"].shape[1] > 1 else None,
        with_kwargs=True,
    )
    assert same_responses(answers(10, range(10)), alone)
    hook.remove()
    assert sum(rows) == 4
    for slots in (1, 3, 4):
        assert same_responses(answers(slots, range(10)), alone)


def same_responses(found: Sequence[Response], expected: Sequence[Response]) -> bool:
    """The same tokens, with the same probabilities to rounding."""
    pairs = list(zip(found, expected, strict=True))
    close = all(
        torch.allclose(torch.tensor(one.student_logprobs), torch.tensor(other.student_logprobs), atol=1e-9)
        for one, other in pairs
    )
    return close and [one.ids for one in found] == [one.ids for one in expected]
