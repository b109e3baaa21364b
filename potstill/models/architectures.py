"""Architectures by hub id, for a recipe whose models are not on this machine; and models built from a config alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from potstill.errors import ModelError, nearest
from potstill.models.layout import auto_class, is_encoder_decoder

# The layouts of T5 1.1 (Raffel et al. 2020, arXiv:1910.10683, and the checkpoints' own config.json), which Flan-T5
# shares (Chung et al. 2022, arXiv:2210.11416): hidden size, inner size, layers of each stack, heads.
T5_V1_1 = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}


def _t5_v1_1(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": hidden,
        "d_kv": 64,
        "d_ff": inner,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.1,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


# Radford et al. 2019: hidden size, layers, heads. The config's own defaults are those of the smallest.
GPT2 = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20), "gpt2-xl": (1600, 48, 25)}
# Zhang et al. 2022, arXiv:2205.01068, table 1: hidden size, layers, heads; the inner size is four times the hidden one.
OPT = {"1.3b": (2048, 24, 32), "2.7b": (2560, 32, 32), "6.7b": (4096, 32, 32), "13b": (5120, 40, 40)}
# Touvron et al. 2023, arXiv:2302.13971, table 2, as converted: hidden size, inner size, layers, heads.
LLAMA = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    ends = {"bos_token_id": 50256, "eos_token_id": 50256}
    return {"model_type": "gpt2", "vocab_size": 50257, "n_embd": hidden, "n_layer": layers, "n_head": heads, **ends}


def _opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _llama(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


# Hub id -> what its config.json says, model_type included: another architecture is a line.
KNOWN: dict[str, dict[str, Any]] = {
    **{f"google/flan-t5-{size}": _t5_v1_1(*shape) for size, shape in T5_V1_1.items()},
    **{f"google/t5-v1_1-{size}": _t5_v1_1(*shape) for size, shape in T5_V1_1.items()},
    **{name: _gpt2(*shape) for name, shape in GPT2.items()},
    **{f"facebook/opt-{size}": _opt(*shape) for size, shape in OPT.items()},
    **{f"huggyllama/llama-{size}": _llama(*shape) for size, shape in LLAMA.items()},
}


def known_config(name: str) -> Any:
    """The config of an architecture in ``KNOWN``. Raises: ModelError for one that is not."""
    from transformers import AutoConfig

    if name not in KNOWN:
        raise ModelError(
            f"{name}: it is not on this machine, and its architecture is not known",
            f"{nearest(name, KNOWN)}Download its config.json and tokenizer (hf download {name}), "
            "or add a line to KNOWN in potstill/models/architectures.py",
        )
    settings = dict(KNOWN[name])
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def built(config: Any, *, device: str = "cpu", seed: int = 0) -> Any:
    """A model of a config with weights drawn anew, in float32.

    Args:
        device: "meta" for a model that takes no memory. seed: of the draws; the process's own random state is left as
            it was.
    Returns: the model; a T5 of version 1.1 with the head of its own that such checkpoints have, and that transformers
        makes of no config: a tied one has 32128 * d_model parameters fewer.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = auto_class(config).from_config(config)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if has_own_head(config) and head.weight is embedding.weight:
            rows, hidden = head.weight.shape
            head.weight = nn.Parameter(torch.randn(rows, hidden) * hidden**-0.5)
    return model.eval()


def has_own_head(config: Any) -> bool:
    """Whether the config is of a T5 whose output embedding is not its input embedding: version 1.1 and its kin."""
    return is_encoder_decoder(config) and getattr(config, "scale_decoder_outputs", None) is False
