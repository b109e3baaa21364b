"""Rows laid end to end: what comes out, and its gradient, are those of padded rows; who cannot read them is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from potstill import recipe
from potstill.features.attribution import signed_attributions
from potstill.models import adapters, taps
from potstill.models.families import Family, family_of, pack
from potstill.models.packing import PACKED, Packing, packed_attention
from potstill.training.compute import Meter
from potstill.training.recompute import recomputing
from potstill.training.trainer import training
from potstill.types import Batch, Tap
from tests import tiny
from tests.unit.models.test_adapters import adapted
from tests.unit.sampling.test_sampler import windowed

LENGTHS = [(3, 9), (1, 1), (7, 2), (5, 6), (1, 0), (4, 5)]  # two of one length side by side, and one of one token
TOTAL, LONGEST = 44, 12
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
}  # fmt: skip
GATED = SIZES | {"intermediate_size": 24, "num_key_value_heads": 2, "initializer_range": 0.2}


def seeded(made: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return made().eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GATED)),
    "every head its own keys": lambda: LlamaForCausalLM(LlamaConfig(**GATED | {"num_key_value_heads": 4})),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=tiny.VOCAB, n_embd=16, n_layer=3, n_head=4, n_positions=LONGEST, initializer_range=0.2)
    ),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, word_embed_proj_dim=8, ffn_dim=32, init_std=0.2)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GATED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GATED, sliding_window=LONGEST)),
    "some layers windowed": lambda: Qwen2ForCausalLM(
        Qwen2Config(**GATED, use_sliding_window=True, sliding_window=LONGEST, max_window_layers=1)
    ),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def packed(model: Any) -> Family:
    family = family_of(model)
    assert pack(family, "always") is None
    return family


def both(kind: str) -> tuple[Family, Family]:
    """One model padded and packed, in float64."""
    model = seeded(MODELS[kind]).double()
    return family_of(model), packed(model)


def shapes(family: Family, batch: Batch) -> list[tuple[int, ...]]:
    """What the first layer reads."""
    seen: list[tuple[int, ...]] = []
    hook = family.model.get_input_embeddings().register_forward_hook(lambda *call: seen.append(call[2].shape[:2]))
    with torch.no_grad():
        family(batch)
    hook.remove()
    return [tuple(shape) for shape in seen]


def gradient(family: Family, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that differs from position to position, and its gradient."""
    family.zero_grad(set_to_none=True)
    scores = family.head(family(batch))[batch.response_mask].logsumexp(-1)
    loss = (scores * torch.linspace(-1, 2, len(scores), dtype=scores.dtype)).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in family.model.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    assert any(one.abs().max() > 0.1 for one in expected.values())
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=within, atol=within, msg=lambda told, name=name: name + told)


# --- The same ---------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("extra", [0, 3])
def test_loss_and_every_gradient_are_those_of_padded_rows(kind: str, extra: int) -> None:
    """Also where all rows together are longer than the model: positions begin again at each."""
    batch = tiny.batch(LENGTHS, extra_left=extra, extra_right=extra)
    padded, ours = both(kind)
    assert shapes(padded, batch) == [(len(LENGTHS), LONGEST)]
    assert shapes(ours, batch) == [(1, TOTAL)]
    expected, wanted = gradient(padded, batch)
    loss, found = gradient(ours, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    same(found, wanted)


@every_model
def test_rows_do_not_see_each_other(kind: str) -> None:
    _, ours = both(kind)
    batch, mask = tiny.batch(LENGTHS), tiny.batch(LENGTHS).response_mask
    with torch.no_grad():
        before = ours(batch)
        for row in (0, 3):
            batch.prompt_ids[row] = batch.prompt_ids[row].flip(0)
            after = ours(batch)
            others = [other for other in range(len(LENGTHS)) if other != row]
            assert torch.equal(after[others][mask[others]], before[others][mask[others]])
            assert not torch.allclose(after[row][mask[row]], before[row][mask[row]])
            before = after


@every_model
def test_a_row_says_the_same_wherever_it_stands(kind: str) -> None:
    _, ours = both(kind)
    batch = tiny.batch([(3, 5), (2, 9), (3, 5)])
    batch.prompt_ids[2], batch.response_ids[2] = batch.prompt_ids[0], batch.response_ids[0]
    with torch.no_grad():
        states = ours(batch)
    torch.testing.assert_close(states[2, :5], states[0, :5], rtol=0, atol=1e-12)
    assert shapes(ours, batch) == [(1, 27)]


@every_model
def test_what_is_inside_is_the_same(kind: str) -> None:
    places = [Tap(layer, place) for layer in (0, 2) for place in ("residual", "mlp", "queries", "keys", "values")]
    batch = tiny.batch(LENGTHS, extra_left=1, extra_right=2)
    told = []
    for family in both(kind):
        with taps.tapping(family, places) as seen, torch.no_grad():
            family(batch)
        told.append(taps.read(family, seen, batch))
    for place in places:
        assert told[1][place].shape == (*batch.response_mask.shape, taps.width(padded_of(kind), place))
        parts = (one[place][batch.response_mask] for one in told)
        torch.testing.assert_close(*parts, rtol=0, atol=1e-10)


def padded_of(kind: str) -> Family:
    return family_of(seeded(MODELS[kind]))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("place", ["residual", "mlp"])
@pytest.mark.parametrize("measure", ["grad_activation", "integrated_gradients", "mean_activation", "logit_lens"])
def test_attributions_are_the_same(kind: str, place: Any, measure: Any) -> None:
    batch = tiny.batch(LENGTHS)
    found = [signed_attributions(one, batch, [0, 1], place=place, measure=measure, steps=2) for one in both(kind)]
    for one, other in zip(*found, strict=True):
        assert one.shape[0] == batch.num_response_tokens
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_learns_the_same(kind: str) -> None:
    pytest.importorskip("peft", reason="needs the extra adapters")
    model = adapted({"llama": tiny.llama, "gpt2": tiny.gpt2}[kind]()).double()
    batch = tiny.batch(LENGTHS)
    (_, wanted), (_, found) = gradient(family_of(model), batch), gradient(packed(model), batch)
    assert all(adapters.is_matrix(name) for name in found)
    same(found, wanted)


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no_dropout"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_computed_again_is_the_same_bit_for_bit(kind: str, dropout: bool) -> None:
    batch, told, runs = tiny.batch(LENGTHS), [], []
    for wanted in (False, True):
        _, ours = both(kind)
        counted: list[int] = []
        for layer in ours.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                inner = next(module for module in layer.modules() if module._parameters)
                inner.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        with training(ours, dropout=dropout), recomputing(ours, wanted=wanted, dropout=dropout):
            torch.manual_seed(3)
            told.append(gradient(ours, batch)[1])
        runs.append(len(counted))
    assert runs[1] == 2 * runs[0] > 0
    assert all(torch.equal(told[1][name], one) for name, one in told[0].items())


def test_a_layer_that_is_computed_again_without_being_told_fails() -> None:
    """And does not go on with another attention, in which rows see each other."""
    _, ours = both("llama")
    batch = tiny.batch(LENGTHS)
    ours.train()
    ours.model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(RuntimeError):
        ours(batch).sum().backward()


def test_dropout_of_attention_is_applied() -> None:
    _, ours = both("gpt2")
    batch = tiny.batch(LENGTHS)
    for module in ours.model.modules():
        if isinstance(module, nn.Dropout) and module is not ours.model.transformer.h[0].attn.attn_dropout:
            module.p = 0.0
    assert torch.equal(ours(batch), ours(batch))
    ours.train()
    assert not torch.equal(ours(batch), ours(batch))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_no_operation_is_counted_for_padding(kind: str) -> None:
    """All rows together take as many as each by itself."""
    padded, ours = both(kind)
    with Meter().reading([ours]) as meter:
        ours(tiny.batch(LENGTHS))
    together = meter.flops
    with Meter().reading([padded]) as meter:
        for length in LENGTHS:
            padded(tiny.batch([length]))
    assert together == meter.flops > 0
    with Meter().reading([padded]) as meter:
        padded(tiny.batch(LENGTHS))
    assert meter.flops * TOTAL == pytest.approx(together * len(LENGTHS) * LONGEST)


# --- When -------------------------------------------------------------------------------------------------------------


def test_rows_of_one_length_are_the_rectangle_that_they_are() -> None:
    _, ours = both("llama")
    assert shapes(ours, tiny.batch([(3, 5), (6, 2)])) == [(2, 8)]
    assert shapes(ours, tiny.batch([(3, 5)], extra_left=2, extra_right=3)) == [(1, 8)]


def test_rows_longer_than_a_window_are_padded() -> None:
    ours = packed(seeded(MODELS["mistral"]).double())
    padded = padded_of("mistral").double()
    assert shapes(ours, tiny.batch([(3, LONGEST - 3), (2, 2)])) == [(1, LONGEST + 4)]
    longer = tiny.batch([(3, LONGEST - 2), (2, 2)])
    assert shapes(ours, longer) == [(2, LONGEST + 1)]
    assert torch.equal(ours(longer), padded(longer))


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_window_of_a_few_tokens_is_tried_on_rows_that_fit(kind: str) -> None:
    assert pack(family_of(windowed(kind)), "always") is None


def test_where_padding_costs_less_than_another_row_it_stays() -> None:
    """A small model's products take no time; of a large one each token of padding is worth leaving out."""
    small, large = family_of(tiny.llama()), family_of(tiny.llama(hidden=256))
    assert pack(small) is pack(large) is None
    batch = tiny.batch([(3, 9), (1, 7)])
    assert shapes(small, batch) == [(2, 12)]
    assert shapes(large, batch) == [(1, 20)]
    assert (small.num_positions(batch), large.num_positions(batch)) == ((24,), (20,))


def test_padding_counts_in_the_mean_over_a_batch() -> None:
    """One short row among many is not worth it."""
    packing = Packing((), None, 3.0)
    assert not packing.pays([10, 6, 10, 10])
    assert not packing.pays([10, 7, 7, 7, 4])
    assert packing.pays([10, 6, 7, 4])


def test_auto_is_the_default_and_for_a_cpu() -> None:
    assert recipe.Stage.model_fields["packing"].default == "auto"
    family = family_of(tiny.llama())
    with torch.device("meta"):
        elsewhere = family_of(LlamaForCausalLM(LlamaConfig(**GATED)))
    assert pack(elsewhere) == "packing is auto, and it is on meta"
    assert pack(family) is None
    assert pack(family, "never") == "packing is never"
    assert family.packing is None


def test_afterwards_the_model_is_as_it_was() -> None:
    _, ours = both("llama")
    ours.train()
    ours.model.model.layers[1].eval()
    before = [module.training for module in ours.modules()]
    assert pack(ours, "always") is None
    ours(tiny.batch(LENGTHS))
    assert [module.training for module in ours.modules()] == before
    assert ours.model.config._attn_implementation == "sdpa"
    ours.model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours(tiny.batch(LENGTHS))
    assert ours.model.config._attn_implementation == "sdpa"


# --- Who cannot -------------------------------------------------------------------------------------------------------


def eager() -> Any:
    model = tiny.llama()
    model.set_attn_implementation("eager")
    return model


def unheard_of() -> Any:
    AttentionInterface.register("unheard_of", sdpa_attention_forward)
    model = tiny.llama()
    model.config._attn_implementation = "unheard_of"
    return model


def of_its_own_code() -> Any:
    class Own(LlamaForCausalLM):
        pass

    return seeded(lambda: Own(LlamaConfig(**GATED)))


def chunked() -> Any:
    model = tiny.llama()
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    return model


def looking_back() -> Any:
    """A model in which each token sees the one before it, beside its attention."""
    model = tiny.llama()
    model.model.layers[1].mlp.register_forward_pre_hook(lambda _module, args: (args[0] + args[0].roll(1, 1),))
    return model


def counting_on() -> Any:
    """A model that goes by its own positions; a LLaMA would not mind, for which only distances count."""
    model = tiny.gpt2()

    def forget(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {name: value for name, value in kwargs.items() if name != "position_ids"}

    model.transformer.register_forward_pre_hook(forget, with_kwargs=True)
    return model


def with_more_to_say() -> Any:
    """A model that tells its attention what ours does not know."""
    model = tiny.llama()

    def tell(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"softcap": None, "position_bias": torch.zeros(())}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(tell, with_kwargs=True)
    return model


CANNOT: dict[str, tuple[Callable[[], Any], str]] = {
    "eager": (eager, "its attention is eager, not sdpa"),
    "soft capped": (lambda: windowed("gemma2"), "its attention is eager, not sdpa"),
    "unheard of": (unheard_of, "its attention is unheard_of, not sdpa"),
    "own code": (of_its_own_code, "its code is not that of transformers"),
    "chunks": (chunked, "it has layers of chunked_attention"),
    "tokens look back": (looking_back, "rows laid end to end see each other"),
    "own positions": (counting_on, "rows laid end to end differ by"),
    "an unknown setting": (with_more_to_say, "it cannot read rows laid end to end: ValueError"),
    "encoder and decoder": (tiny.t5, "it reads sources and targets"),
}


@pytest.mark.parametrize("kind", CANNOT)
def test_a_model_that_cannot_stays_padded_and_says_why(kind: str) -> None:
    make, why = CANNOT[kind]
    family, before = family_of(make()), family_of(make())
    assert (pack(family, "always") or "").startswith(why)
    assert family.packing is None
    batch = tiny.batch([(3, 4), (2, 2)])
    with torch.no_grad():
        assert torch.equal(family(batch), before(batch))


@pytest.mark.parametrize(
    ("given", "why"),
    [({"softcap": 30.0}, "softcap"), ({"s_aux": 1}, "s_aux"), ({"output_attentions": True}, "not causal attention")],
)
def test_attention_refuses_what_it_does_not_know(given: dict[str, Any], why: str) -> None:
    heads = torch.randn(1, 2, 5, 4)
    rows = torch.tensor([2, 3])[None, None, None]
    attended, _ = packed_attention(nn.Module(), heads, heads, heads, rows, scaling=0.5, dropout=0.0, softcap=None)
    assert attended.shape == (1, 5, 2, 4)
    with pytest.raises(ValueError, match=why):
        packed_attention(nn.Module(), heads, heads, heads, rows, **given)


def test_attention_refuses_rows_that_are_not_all() -> None:
    heads = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match="rows of 4 tokens in all, and there are 5"):
        packed_attention(nn.Module(), heads, heads, heads, torch.tensor([[[[1, 3]]]]))
    assert PACKED in AttentionInterface()
