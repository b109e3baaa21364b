"""Which axis of each weight is which: the one table that width pruning, and whoever looks inside a layer, goes by.

Axes: ``hidden`` the residual stream; ``mlp`` a layer's inner channels; ``query`` its heads' channels side by side,
``key`` those of keys and values where queries share them, ``qkv`` three times ``query`` in one matrix; None for what is
not cut: vocabulary, positions, the inside of a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import ModelError

Axes = tuple[str | None, ...]
ROWS: Axes = (None, "hidden")
VECTOR: Axes = ("hidden",)


@dataclass(frozen=True)
class Layout:
    """How one kind of architecture names its weights and sizes.

    Args:
        weights: by the end of a parameter's name, without ``.weight``; a bias has its matrix's outputs.
        mlp_out, attention_out: matrices that read a layer's inner channels, and its heads', inside a layer.
        reads: matrices that read the residual stream behind each of a layer's norms.
        config: keys of the config for ``hidden``, ``mlp``, ``heads`` and ``key_heads``, and for ``embedding``, which is
            as wide as the residual stream in a model without projections between the two.
        inputs_first: whether matrices are stored [inputs, outputs].
        head_of_hidden: whether a head has hidden / heads channels, whatever the config says.
    """

    weights: Mapping[str, Axes]
    mlp_out: str
    attention_out: str
    reads: tuple[str, ...]
    config: Mapping[str, str]
    inputs_first: bool = False
    head_of_hidden: bool = False


LLAMA = Layout(  # and Mistral, Qwen2, Qwen3, SmolLM
    weights={
        "embed_tokens": ROWS,
        "lm_head": ROWS,
        "norm": VECTOR,
        "input_layernorm": VECTOR,
        "post_attention_layernorm": VECTOR,
        "q_proj": ("query", "hidden"),
        "k_proj": ("key", "hidden"),
        "v_proj": ("key", "hidden"),
        "o_proj": ("hidden", "query"),
        "q_norm": (None,),
        "k_norm": (None,),
        "gate_proj": ("mlp", "hidden"),
        "up_proj": ("mlp", "hidden"),
        "down_proj": ("hidden", "mlp"),
    },
    mlp_out="mlp.down_proj",
    attention_out="self_attn.o_proj",
    reads=("self_attn.q_proj", "mlp.gate_proj"),
    config={
        "hidden": "hidden_size",
        "mlp": "intermediate_size",
        "heads": "num_attention_heads",
        "key_heads": "num_key_value_heads",
    },
)
GPT2 = Layout(
    weights={
        "wte": ROWS,
        "wpe": ROWS,
        "lm_head": ROWS,
        "ln_1": VECTOR,
        "ln_2": VECTOR,
        "ln_f": VECTOR,
        "c_attn": ("hidden", "qkv"),
        "attn.c_proj": ("query", "hidden"),
        "c_fc": ("hidden", "mlp"),
        "mlp.c_proj": ("mlp", "hidden"),
    },
    mlp_out="mlp.c_proj",
    attention_out="attn.c_proj",
    reads=("attn.c_attn", "mlp.c_fc"),
    config={"hidden": "n_embd", "mlp": "n_inner", "heads": "n_head"},
    inputs_first=True,
    head_of_hidden=True,
)
OPT = Layout(
    weights={
        "embed_tokens": ROWS,
        "embed_positions": ROWS,
        "lm_head": ROWS,
        "final_layer_norm": VECTOR,
        "self_attn_layer_norm": VECTOR,
        "q_proj": ("query", "hidden"),
        "k_proj": ("query", "hidden"),
        "v_proj": ("query", "hidden"),
        "out_proj": ("hidden", "query"),
        "fc1": ("mlp", "hidden"),
        "fc2": ("hidden", "mlp"),
    },
    mlp_out="fc2",
    attention_out="self_attn.out_proj",
    reads=("self_attn.q_proj", "fc1"),
    config={
        "hidden": "hidden_size",
        "embedding": "word_embed_proj_dim",
        "mlp": "ffn_dim",
        "heads": "num_attention_heads",
    },
    head_of_hidden=True,
)
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    "gpt2": GPT2,
    "opt": OPT,
}


def layout_of(config: Any) -> Layout:
    """Raises: ModelError for an architecture that is not in the table."""
    if found := LAYOUTS.get(config.model_type):
        return found
    raise ModelError(
        f"how a {config.model_type} names its weights is not known, so it cannot be cut in width",
        f"cut its layers alone (keep_layers), or add it to LAYOUTS in potstill/models/axes.py; there are "
        f"{', '.join(LAYOUTS)}",
    )


def axes_of(name: str, layout: Layout) -> Axes:
    """The axes of a parameter by its name in the model. Raises: ModelError for one that the table does not have."""
    bare = re.sub(r"\.(weight|bias)$", "", name)
    key = max((end for end in layout.weights if f".{bare}".endswith(f".{end}")), key=len, default=None)
    if key is None:
        raise ModelError(
            f"{name} is a weight that potstill/models/axes.py does not know, so the model cannot be cut in width",
            "cut its layers alone (keep_layers), or add the weight to the table",
        )
    axes = layout.weights[key]
    if name.endswith(".bias") and len(axes) == 2:
        return (axes[1] if layout.inputs_first else axes[0],)
    return axes
