"""Token by token from encoder-decoder models: rows of different ages, each with its own source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from potstill.errors import ModelError
from potstill.models import seq2seq_decoding
from potstill.models.decoding import check_decoding, decoder_of
from potstill.models.families import Family, check_projection, family_of
from potstill.models.pruning import cut_layers
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed, Policy, Single, Speculative
from potstill.sampling.sampler import Response, sample
from potstill.sampling.writer import LocalWriter
from tests import tiny

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [18, 19, 20, 21], [22, 23, 24]]
KINDS = {
    "t5": lambda seed: tiny.t5(seed, layers=3, encoder_layers=2),
    "t5_gated_untied": lambda seed: tiny.t5(seed, gated=True, tied=False),
    "bart": lambda seed: tiny.bart(seed, layers=2, encoder_layers=3),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])
ENDS = frozenset(range(1, tiny.VOCAB, 8))  # so many that rows leave at all ages, and others come into their slots
POLICIES = {"student": Single(), "mixed": Mixed(0.3), "speculative": Speculative(5)}


def made(kind: str, seed: int, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Family:
    model = KINDS[kind](seed).to(dtype)
    model.set_attn_implementation(attention)
    return family_of(model)


def stop_of(family: Family) -> frozenset[int]:
    return frozenset({family.model.config.eos_token_id})


def run(
    policy: Policy,
    families: Sequence[Family],
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    slots: int = 3,
    seeds: Sequence[int] | None = None,
) -> list[Response]:
    decoders = [decoder_of(one, slots, max(map(len, prompts)), decoding.max_new_tokens) for one in families]
    return sample(policy, decoders, prompts, decoding, seeds=seeds or range(len(prompts)), slots=slots)


def log_probs(family: Family, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Of each token of a response and all others, ``[response, vocab]``, by the model's own forward."""
    start = family.model.config.decoder_start_token_id
    with torch.no_grad():
        logits = family.model(
            input_ids=torch.tensor([list(prompt)]), decoder_input_ids=torch.tensor([[start, *response[:-1]]])
        ).logits
    return logits[0].log_softmax(-1)


@every_kind
@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeats_are_looked_for_in_the_answer_and_not_in_the_source(kind: str, size: int) -> None:
    """As transformers has it: a summary may use the words of its article."""
    family = made(kind, 3)
    stop = family.model.config.eos_token_id
    found = run(Single(), [family], Decoding(12, frozenset({stop}), temperature=0, no_repeat_ngram=size))
    free = run(Single(), [family], Decoding(12, frozenset({stop}), temperature=0))
    assert [response.ids for response in found] != [response.ids for response in free]
    family.model.generation_config = GenerationConfig(
        eos_token_id=stop, pad_token_id=0, decoder_start_token_id=family.model.config.decoder_start_token_id
    )
    for prompt, response in zip(PROMPTS, found, strict=True):
        asked = {"max_new_tokens": 12, "do_sample": False, "no_repeat_ngram_size": size, "use_cache": False}
        expected = family.model.generate(torch.tensor([prompt]), **asked)[0, 1:].tolist()
        assert list(response.ids) == expected


@every_kind
@every_attention
@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_depends_on_its_prompt_and_seed_alone(kind: str, attention: str, policy: str) -> None:
    families = [made(kind, seed, attention) for seed in (3, 4)][: POLICIES[policy].num_models]
    decoding = Decoding(9, ENDS, temperature=1.3)
    together = run(POLICIES[policy], families, decoding, slots=6)
    assert len({len(response.ids) for response in together}) > 2
    for slots in (1, 4):
        found = run(POLICIES[policy], families, decoding, slots=slots)
        assert [response.ids for response in found] == [response.ids for response in together]
        for ours, theirs in zip(found, together, strict=True):
            assert ours.behaviour_logprobs == pytest.approx(theirs.behaviour_logprobs, abs=1e-9)
    order = [4, 2, 0, 5, 1, 3]
    shuffled = run(POLICIES[policy], families, decoding, prompts=[PROMPTS[i] for i in order], seeds=order)
    assert [shuffled[order.index(i)].ids for i in range(6)] == [response.ids for response in together]


@every_kind
@every_attention
def test_log_probabilities_are_those_of_the_whole_response_read_at_once(kind: str, attention: str) -> None:
    """Each model's own: teacher and student each encode the prompt themselves."""
    student, teacher = made(kind, 3, attention), made(kind, 4, attention)
    share = 0.3
    found = run(Mixed(share), [student, teacher], Decoding(10, ENDS))
    assert len({len(response.ids) for response in found}) > 2
    for prompt, response in zip(PROMPTS, found, strict=True):
        q, p = (log_probs(one, prompt, response.ids).exp() for one in (student, teacher))
        for at, token in enumerate(response.ids):
            mixed = (1 - share) * q[at, token] + share * p[at, token]
            assert response.behaviour_logprobs[at] == pytest.approx(mixed.log().item(), abs=1e-9)
            assert response.student_logprobs[at] == pytest.approx(q[at, token].log().item(), abs=1e-9)


@every_kind
@pytest.mark.parametrize("slots", [1, 2, 6])
def test_greedy_is_generate_token_for_token(kind: str, slots: int) -> None:
    one = made(kind, 5)
    end = one.model.config.eos_token_id
    found = run(Single(), [one], Decoding(20, stop_of(one), temperature=0), slots=slots)
    one.model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=end, decoder_start_token_id=one.model.config.decoder_start_token_id,
        max_new_tokens=20, do_sample=False, use_cache=False,
    )  # fmt: skip
    for prompt, response in zip(PROMPTS, found, strict=True):
        assert list(response.ids) == one.model.generate(torch.tensor([prompt]))[0, 1:].tolist()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_attention
def test_a_model_that_decodes_as_it_reads_is_let_through(kind: str, dtype: torch.dtype, attention: str) -> None:
    check_decoding(made(kind, 3, attention, dtype))


def test_a_model_in_training_is_tried_without_its_dropout_and_goes_on_with_it() -> None:
    family = family_of(tiny.t5(3, dropout=0.5).double().train())
    check_decoding(family)
    assert family.model.training


def test_without_its_relative_bias_a_t5_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single token is the first one to it, so its own bias tells no distances."""
    monkeypatch.setattr(seq2seq_decoding, "_relative_attention", lambda _: None)
    with pytest.raises(ModelError, match="token by token its logits differ"):
        check_decoding(made("t5", 3))


def test_without_its_rows_positions_a_bart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq2seq_decoding, "_position_table", lambda _: None)
    with pytest.raises(ModelError, match="token by token its logits differ"):
        check_decoding(made("bart", 3))


KIN = {  # of which the classes' names begin so, and how they say their sizes
    "MBart": "bart",
    "Pegasus": "bart",
    "Marian": "bart",
    "Blenderbot": "bart",
    "PLBart": "bart",
    "MT5": "t5",
    "LongT5": "t5",
}


def of_kin(name: str, like: str) -> Family:
    import transformers

    sizes: dict[str, Any] = {"vocab_size": tiny.VOCAB, "d_model": 16, "decoder_start_token_id": 2, "pad_token_id": 1}
    if like == "t5":
        sizes |= {"d_kv": 4, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    else:
        sides = {"layers": 2, "attention_heads": 4, "ffn_dim": 32}
        sizes |= {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()}
        sizes |= {"max_position_embeddings": 64, "init_std": 0.3}
    torch.manual_seed(0)
    head = "MarianMTModel" if name == "Marian" else f"{name}ForConditionalGeneration"
    model = getattr(transformers, head)(getattr(transformers, f"{name}Config")(**sizes)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "relative_attention_bias" in parameter_name:
                parameter.mul_(6)
    return family_of(model)


@pytest.mark.parametrize("name", KIN)
def test_their_kin_decode_as_they_read_and_can_be_cut(name: str) -> None:
    one = of_kin(name, KIN[name])
    check_projection(one, name)
    check_decoding(one)
    cut = family_of(cut_layers(one.model, [1], [1]))
    check_projection(cut, name)
    check_decoding(cut)


@pytest.mark.parametrize("name", ["UMT5", "SwitchTransformers"])
def test_what_computes_its_logits_in_a_way_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="its logits differ by"):
        check_projection(of_kin(name, "t5"), name)


def test_positions_that_cannot_be_told_are_refused_by_name() -> None:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    config = M2M100Config(
        vocab_size=tiny.VOCAB, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(ModelError, match="SinusoidalPositionalEmbedding cannot be told the positions"):
        check_decoding(family_of(M2M100ForConditionalGeneration(config).eval()))


def test_the_last_token_has_room_and_one_more_is_refused() -> None:
    """BART's positions: as many for the source as for the target."""
    family = family_of(tiny.bart(3, positions=24).double())
    writer = LocalWriter(Single(), [family], Decoding(24, frozenset(), temperature=0), 2)
    assert [len(response.ids) for response in writer.write([[5] * 24, [6]], seeds=[0, 1])] == [24, 24]
    with pytest.raises(ModelError, match="24 positions for a source"):
        writer.write([[5] * 25], seeds=[0])
    with pytest.raises(ModelError, match="24 positions for a source"):
        LocalWriter(Single(), [family], Decoding(25, frozenset()), 2).write([[5]], seeds=[0])


def test_hooks_do_not_stay_on_the_model() -> None:
    family = made("bart", 3)
    check_decoding(family)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family.modules())
