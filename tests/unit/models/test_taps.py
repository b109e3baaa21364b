"""Looking inside models: what is taken is what the model itself goes on with, at the response's positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potstill.errors import ModelError
from potstill.models import taps
from potstill.models.architectures import built
from potstill.models.families import Family, family_of
from potstill.models.layout import layers_of
from potstill.models.places import mlp_out_of
from potstill.types import Tap
from tests import tiny
from tests.contract.table import ENCODER_DECODER

LENGTHS = [(3, 7), (6, 1), (1, 9)]
BATCH = tiny.batch(LENGTHS, extra_left=2, extra_right=3)
OWN_ATTENTION = ("self_attn", "layer.0.selfattention")  # as modules call it, and not attention to an encoder


def opt(seed: int) -> Any:
    from transformers import OPTConfig

    config = OPTConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return built(config, seed=seed)


def qwen(seed: int) -> Any:
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=tiny.VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return built(config, seed=seed)


MODELS = {
    "llama": lambda: tiny.llama(1, layers=2),
    "qwen2": lambda: qwen(1),
    "gpt2": lambda: tiny.gpt2(1, layers=2),
    "opt": lambda: opt(1),
    "t5": lambda: tiny.t5(1, layers=2),
    "bart": lambda: tiny.bart(1, layers=2),
}


def family(kind: str) -> Family:
    return family_of(MODELS[kind]().double())


@torch.no_grad()
def seen(model: Family, *places: Tap) -> tuple[dict[Tap, torch.Tensor], torch.Tensor]:
    batch = tiny.batch(LENGTHS, extra_left=2, extra_right=3)
    with taps.tapping(model, places) as found:
        model(batch)
    return dict(taps.read(model, found, batch)), batch.response_mask


@pytest.mark.parametrize("kind", MODELS)
def test_the_residual_stream_is_the_models_own_hidden_states(kind: str) -> None:
    """Row by row, without padding, through transformers' own output_hidden_states."""
    model = family(kind)
    found, mask = seen(model, Tap(0, "residual"))
    states, batch = found[Tap(0, "residual")], tiny.batch(LENGTHS, extra_left=2, extra_right=3)
    assert states.shape == (*mask.shape, taps.width(model, Tap(0, "residual")))
    for row, (prompt, response) in enumerate(LENGTHS):
        prompt_ids = batch.prompt_ids[row, -prompt:][None]
        response_ids = batch.response_ids[row, :response][None]
        with torch.no_grad():
            if kind in ENCODER_DECODER:
                start = torch.full((1, 1), model.model.config.decoder_start_token_id)
                decoded = torch.cat([start, response_ids[:, :-1]], 1)
                out = model.model(input_ids=prompt_ids, decoder_input_ids=decoded, output_hidden_states=True)
                own = out.decoder_hidden_states[1][0]
            else:
                out = model.model(input_ids=torch.cat([prompt_ids, response_ids], 1), output_hidden_states=True)
                own = out.hidden_states[1][0, prompt - 1 : prompt + response - 1]
        torch.testing.assert_close(states[row, :response], own, rtol=1e-6, atol=1e-6 if kind == "t5" else 1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_inner_channels_are_what_the_mlps_last_matrix_reads(kind: str) -> None:
    model, place = family(kind), Tap(1, "mlp")
    batch = tiny.batch(LENGTHS)
    out: list[torch.Tensor] = []
    matrix = mlp_out_of(model.model, 1)
    handle = matrix.register_forward_hook(lambda _module, _args, output: out.append(output))
    with taps.tapping(model, [place]) as found, torch.no_grad():
        model(batch)
    handle.remove()
    states = taps.read(model, found, batch)[place]
    assert states.shape[-1] == taps.width(model, place) != 16
    through = matrix(states)
    own = model.aligned(out[0].view(len(batch), -1, 16), batch)
    torch.testing.assert_close(through[batch.response_mask], own[batch.response_mask], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_queries_keys_and_values_are_three_things_of_the_attention(kind: str) -> None:
    model = family(kind)
    places = [Tap(0, what) for what in ("queries", "keys", "values")]
    found, mask = seen(model, *places)
    assert [found[place].shape[-1] for place in places] == [taps.width(model, place) for place in places]
    queries, keys, values = (found[place][mask] for place in places)
    assert not torch.equal(queries[:, :8], keys[:, :8])
    assert not torch.equal(keys, values)
    own: dict[str, torch.Tensor] = {}
    for name, module in layers_of(model.model)[0].named_modules():
        if (last := name.rpartition(".")[2].removesuffix("_proj")) in "qkv" and name.lower().startswith(OWN_ATTENTION):
            module.register_forward_hook(lambda _m, _a, out, last=last: own.update({last: out}))
    again, _ = seen(model, *places)
    assert own.keys() == (set() if kind == "gpt2" else set("qkv"))
    for last, place in zip("qkv", places, strict=True):
        assert last not in own or torch.equal(again[place][mask], model.aligned(own[last], BATCH)[mask])
    if kind == "gpt2":
        joined: list[torch.Tensor] = []
        hook = layers_of(model.model)[0].attn.c_attn.register_forward_hook(lambda _m, _a, out: joined.append(out))
        again, _ = seen(model, *places)
        hook.remove()
        assert torch.equal(torch.cat([again[place] for place in places], -1), model.aligned(joined[0], BATCH))


def test_what_is_taken_has_a_gradient_and_changes_nothing() -> None:
    model, batch = family("llama"), tiny.batch(LENGTHS)
    plain = model(batch)
    with taps.tapping(model, [Tap(0, "residual"), Tap(1, "mlp")]) as found:
        looked = model(batch)
    assert torch.equal(plain, looked)
    assert all(states.requires_grad for states in found.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_are_gone_after_a_mistake() -> None:
    model = family("llama")
    with (
        pytest.raises(ModelError, match="layer 7 is not there: the model has 2"),
        taps.tapping(model, [Tap(0, "residual"), Tap(7, "residual")]),
    ):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_an_unknown_layer_says_what_to_add() -> None:
    model = family("llama")
    model.model.config.model_type = "unheard_of"
    for what in ("mlp", "queries"):
        with pytest.raises(ModelError, match="a unheard_of calls") as refused, taps.tapping(model, [Tap(0, what)]):
            pass
        assert "potstill/models/places.py" in refused.value.fix
    taps.width(model, Tap(0, "residual"))  # needs no names
