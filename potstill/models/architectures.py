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


# Hub id -> what its config.json says, model_type included: another architecture is a line.
KNOWN: dict[str, dict[str, Any]] = {
    **{f"google/flan-t5-{size}": _t5_v1_1(*shape) for size, shape in T5_V1_1.items()},
    **{f"google/t5-v1_1-{size}": _t5_v1_1(*shape) for size, shape in T5_V1_1.items()},
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
