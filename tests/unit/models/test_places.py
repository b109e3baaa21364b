"""The table of module names: for every architecture in it, what it names is what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    MistralConfig,
    MT5Config,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from potstill.errors import ModelError
from potstill.features.activations import scored
from potstill.models.families import family_of
from potstill.models.layout import layers_of
from potstill.models.places import PLACES, mlp_out_of, to_head
from potstill.models.taps import tapping, width
from potstill.types import Tap
from tests import tiny

SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
OF_OPT: dict[str, Any] = {"ffn_dim": 40, "init_std": 0.3, "word_embed_proj_dim": 24}
OF_T5: dict[str, Any] = {"d_model": 24, "d_kv": 4, "d_ff": 40, "num_layers": 2, "num_heads": 6}


def of(config: Any, **other: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**(SIZES | other)), attn_implementation="eager").eval()


def mt5() -> Any:
    torch.manual_seed(0)
    config = MT5Config(vocab_size=tiny.VOCAB, decoder_start_token_id=0, pad_token_id=0, **OF_T5)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny.llama,
    "mistral": lambda: of(MistralConfig),
    "qwen2": lambda: of(Qwen2Config),
    "qwen3": lambda: of(Qwen3Config),
    "smollm3": lambda: of(SmolLM3Config),
    "gemma2": lambda: of(Gemma2Config),
    "gpt2": tiny.gpt2,
    "opt": lambda: of(OPTConfig, **OF_OPT),
    "opt_350m": lambda: of(OPTConfig, **OF_OPT | {"word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "t5": tiny.t5,
    "t5_gated": lambda: tiny.t5(gated=True, tied=False),
    "mt5": mt5,
    "bart": tiny.bart,
}


def test_every_architecture_of_the_table_is_tried() -> None:
    assert {make().config.model_type for make in MODELS.values()} == set(PLACES)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_names_are_those_of_the_head_and_of_the_inner_channels(make: Callable[[], Any]) -> None:
    model = make()
    family, batch = family_of(model), tiny.batch([(3, 4), (5, 2)], extra_left=1, extra_right=1)
    last = len(layers_of(model)) - 1
    leaving, inner = Tap(last, "residual"), Tap(last, "mlp")
    with torch.no_grad(), tapping(family, [leaving, inner]) as seen:
        states = family(batch)[batch.response_mask]
        torch.testing.assert_close(to_head(model, scored(seen[leaving], family.predicting(batch))), states)
    assert seen[inner].shape[-1] == inner_width(model.config) == width(family, inner)
    assert seen[leaving].shape[-1] == width(family, leaving)
    assert mlp_out_of(model, last)(seen[inner]).shape[-1] == model.config.hidden_size


def inner_width(config: Any) -> int:
    for key in ("intermediate_size", "ffn_dim", "d_ff", "decoder_ffn_dim"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    return 4 * int(config.n_embd)


def test_a_layer_unlike_its_kind_is_named() -> None:
    model = tiny.llama()
    model.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"layer 1 of this llama has no mlp\.down_proj"):
        mlp_out_of(model, 1)
