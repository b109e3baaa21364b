"""Frozen weights in 4 or 8 bits, under an adapter that is trained: the optional extra ``potstill[bitsandbytes]``.

Run by us on CPUs only, with bitsandbytes 0.50; on GPUs NOT RUN.

Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314 (nf4); Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError, ModelError
from potstill.models.layout import stacks_of

QUANTISED = ("Linear4bit", "Linear8bitLt")
WIDEST = 0.31  # between two of nf4's sixteen levels, of which the outermost are -1 and 1


def quantise(model: Any, kind: str, device: torch.device) -> Any:
    """The model with every linear layer inside its layers in fewer bits, brought to a device layer by layer.

    Args:
        model: changed in place; embeddings, norms and the output embedding stay as they are.
        kind: "nf4" or "int8".
    Raises: ConfigError without bitsandbytes, or for float64; ModelError for a model without linear layers.
    """
    bnb = import_bitsandbytes()
    if model.dtype == torch.float64:
        raise ConfigError("quantise_base computes in at most float32, and dtype is float64", "set dtype=float32")
    found = [
        (f"{stack.path}.{name}", module)
        for stack in stacks_of(model).values()
        for name, module in stack.layers.named_modules()
        if type(module) is nn.Linear
    ]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no linear layers that bitsandbytes knows", "leave quantise_base out"
        )
    make = _nf4 if kind == "nf4" else _int8
    for name, module in found:
        model.set_submodule(name, make(bnb, module, device))
    model.to(device)
    # What peft goes by when it puts its matrices beside such a layer.
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)
    return model


def _nf4(bnb: Any, linear: nn.Linear, device: torch.device) -> nn.Module:
    has_bias = linear.bias is not None
    made = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=has_bias, compute_dtype=linear.weight.dtype, quant_type="nf4"
    )
    held = linear.weight.detach().clone()  # its data is replaced, and the source may live on
    made.weight = bnb.nn.Params4bit(held, requires_grad=False, quant_type="nf4", module=made)
    made.bias = linear.bias
    made = made.to(device).train(linear.training)
    settle(made)
    return made


def _int8(bnb: Any, linear: nn.Linear, device: torch.device) -> nn.Module:
    has_bias = linear.bias is not None
    made = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=has_bias, has_fp16_weights=False)
    made.weight = bnb.nn.Int8Params(linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    made.bias = linear.bias
    made = made.to(device).train(linear.training)
    made.init_8bit_state()  # now and not in the first forward, which only one of two that share the weight would do
    return made


def settle(model: nn.Module) -> None:
    """Keep 4-bit layers as they are packed, in the precision they were told to compute in, once they are in place.

    On processors with AVX-512 BF16 one would be repacked where it lies when it is first read: it then computes in
    bfloat16 whatever was asked for, refuses widths that are no multiple of 32, and could not be trained through.

    Raises: ModelError where this processor reads 4-bit matrices of such a width wrongly, as bitsandbytes 0.50 does with
        AVX-512 and 96 columns.
    """
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        module.support_avx512bf16_for_cpu = False
        if not _reads_back(module.in_features, module.weight.device):
            raise ModelError(
                f"{name or 'a layer'}: bitsandbytes misreads 4-bit matrices of {module.in_features} columns on this "
                f"{module.weight.device.type}",
                "quantise to 8 bits, or use another machine",
            )


@cache
def _reads_back(columns: int, device: torch.device) -> bool:
    """Whether a 4-bit matrix of so many columns is read as it was written: each number as near as nf4's levels are."""
    functional = import_bitsandbytes().functional
    told = torch.randn(64, columns, generator=torch.Generator().manual_seed(0))  # 64 rows: whole blocks of 64 numbers
    packed, state = functional.quantize_4bit(told.to(device), quant_type="nf4")
    error = (functional.dequantize_4bit(packed, state).cpu() - told).abs().view(-1, 64)
    largest = told.abs().view(-1, 64).amax(1, keepdim=True)
    return bool((error <= WIDEST / 2 * largest).all())


def is_quantised(module: nn.Module) -> bool:
    """Whether a layer's weight is kept in fewer bits."""
    return type(module).__name__ in QUANTISED and type(module).__module__.startswith("bitsandbytes")


def tensors_of(module: Any) -> list[Tensor]:
    """What a quantised layer keeps beside its parameters."""
    state = getattr(module, "state", None)
    return [value for value in (state.CB, state.SCB) if isinstance(value, Tensor)] if state is not None else []


def dequantised(module: Any, dtype: torch.dtype) -> nn.Linear:
    """A quantised layer as a plain one, with the weight that it computes with."""
    if type(module).__name__ == "Linear4bit":
        weight = import_bitsandbytes().functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    else:
        weight = module.state.CB.to(dtype) * module.state.SCB.to(dtype)[:, None] / 127
    plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    plain.bias = module.bias
    return plain


def entries(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for: of one in 4 bits, two for each byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def import_bitsandbytes() -> Any:
    """bitsandbytes, when it is asked for. Raises: ConfigError without the extra."""
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigError(
            f"quantise_base needs bitsandbytes, which cannot be imported: {error}",
            "pip install 'potstill[bitsandbytes]', or leave student.adapter.quantise_base out",
        ) from error
