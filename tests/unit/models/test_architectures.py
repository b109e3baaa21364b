"""Architectures that are known by name, at the sizes that their checkpoints have."""

from __future__ import annotations

import pytest
import torch

from potstill.errors import ModelError
from potstill.models import architectures
from potstill.models.architectures import KNOWN, built, has_own_head, known_config
from tests import tiny


# As counted from the published checkpoints' own tensors.
@pytest.mark.parametrize(("size", "parameters"), [("small", 76_961_152), ("base", 247_577_856), ("large", 783_150_080)])
@pytest.mark.parametrize("family", ["google/flan-t5-", "google/t5-v1_1-"])
def test_a_known_architecture_has_its_checkpoints_size(family: str, size: str, parameters: int) -> None:
    model = built(known_config(family + size), device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(p.device.type == "meta" for p in model.parameters())


# Those of GPT-2 and LLaMA as published with the checkpoints; OPT's by the sizes of its paper, below.
SIZES = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-13b": 12_853_473_280,
    "huggyllama/llama-7b": 6_738_415_616,
    "huggyllama/llama-13b": 13_015_864_320,
}


@pytest.mark.parametrize("name", SIZES)
def test_a_decoder_has_its_checkpoints_size(name: str) -> None:
    assert sum(p.numel() for p in built(known_config(name), device="meta").parameters()) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "hidden", "layers"),
    [
        ("facebook/opt-1.3b", 2048, 24), ("facebook/opt-2.7b", 2560, 32), ("facebook/opt-6.7b", 4096, 32),
        ("facebook/opt-13b", 5120, 40),
    ],
)  # fmt: skip
def test_the_sizes_of_opt_add_up(name: str, hidden: int, layers: int) -> None:
    """Tokens and positions (2 more than 2048), then four projections, two inner ones, biases and two norms a layer."""
    layer = 4 * (hidden * hidden + hidden) + 2 * 4 * hidden * hidden + 5 * hidden + 4 * hidden
    assert SIZES[name] == (50272 + 2050) * hidden + layers * layer + 2 * hidden


def test_a_decoder_has_heads_of_the_published_width() -> None:
    """No parameter counts them."""
    others = {"facebook/opt-2.7b": 80, "facebook/opt-6.7b": 128, "facebook/opt-13b": 128}
    others |= {"huggyllama/llama-7b": 128, "huggyllama/llama-13b": 128}
    configs = {name: known_config(name) for name in SIZES}
    widths = {name: config.hidden_size // config.num_attention_heads for name, config in configs.items()}
    assert widths == dict.fromkeys(SIZES, 64) | others


def test_every_known_decoder_says_how_its_text_ends() -> None:
    for name in SIZES:
        config = known_config(name)
        assert config.eos_token_id == {"gpt2": 50256, "opt": 2, "llama": 2}[config.model_type], name
        assert config.bos_token_id == {"gpt2": 50256, "opt": 2, "llama": 1}[config.model_type], name


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in SIZES])
def test_every_known_architecture_says_how_its_text_begins_and_ends(name: str) -> None:
    config = known_config(name)
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 0)
    assert config.is_encoder_decoder
    assert config.dense_act_fn == "gelu_new"
    assert config.num_layers == config.num_decoder_layers


def test_a_t5_of_version_1_1_gets_a_head_of_its_own() -> None:
    version_1, version_1_1 = tiny.t5().config, tiny.t5(gated=True, tied=False).config
    assert (has_own_head(version_1), has_own_head(version_1_1)) == (False, True)
    assert has_own_head(known_config("google/flan-t5-small"))
    for config, own in ((version_1, False), (version_1_1, True)):
        model = built(config)
        assert (model.lm_head.weight is not model.shared.weight) == own
    assert not has_own_head(tiny.llama(tied=False).config)


def test_weights_are_the_seeds_and_nothing_else_is_drawn() -> None:
    config = tiny.t5(gated=True, tied=False).config
    before = torch.get_rng_state()
    first, again, other = built(config, seed=1), built(config, seed=1), built(config, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_another_architecture_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"model_type": "gpt2", "n_embd": 256, "n_layer": 2, "n_head": 4}
    monkeypatch.setitem(architectures.KNOWN, "example/gpt2", line)
    parameters = sum(p.numel() for p in built(known_config("example/gpt2"), device="meta").parameters())
    assert parameters == (50257 + 1024) * 256 + 2 * (12 * 256 * 256 + 13 * 256) + 2 * 256


def test_an_unknown_name_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"google/flan-t5-bas: .* not known") as error:
        known_config("google/flan-t5-bas")
    assert "Did you mean 'google/flan-t5-base'" in str(error.value)
    assert "add a line to KNOWN" in str(error.value)
