"""Products of a few rows with a large matrix on a processor: the shapes of decoding, which libraries treat badly.

Measured on one thread of a processor with AVX2, 49,152 by 576. float32: with the large matrix on the left, 4 rows take
half the time of the usual order, 8 rows five sixths. bfloat16, which such a processor has no instructions for: 8 rows
take half the time when blocks of the matrix are widened to float32 first, 512 rows a ninth; one row gains nothing.

On one with AVX512, float32: 4 rows take 15 ms with a transposed copy of the matrix, 28 with it on the left and 23 in
the usual order, 8 rows 21, 28 and 35; the copy takes 95 ms. With AVX2 alone 23, 31 and 25, and 21, 29 and 27. bfloat16:
under autocast a product takes 42 ms, of which all but 3 go to narrowing the matrix (2026-11-22).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from potstill.models.families import Family
from potstill.types import Head

FEW_ROWS = 8
WIDENED_FROM_ROWS = 4
TRANSPOSED_FROM = 8  # times asked: as many as it takes to save what copying costs
COPY_BYTES = 2**29  # a larger copy would be felt
BLOCK = 1024  # rows of the matrix widened at a time: they and their product stay in the processor's cache


def head_logits(head: Head, hidden: Float[Tensor, "row hidden"]) -> Float[Tensor, "row vocab"]:
    """The head of a few rows, in the order that suits the processor."""
    weight, bias = head.weight[: head.vocab_size], None if head.bias is None else head.bias[: head.vocab_size]
    if _to_widen(hidden, weight):
        return head.logits(widened_linear(hidden, weight, bias))
    if hidden.device.type != "cpu" or not 1 < len(hidden) <= FEW_ROWS:
        return head(hidden)
    linear = (weight @ hidden.T).T.contiguous()
    return head.logits(linear if bias is None else linear + bias)


class RepeatedHead:
    """A head that is asked for a few rows at a time, token after token, while its weights stay as they are.

    What autocast would narrow at every token is narrowed once. In float32 a transposed copy is made when enough tokens
    have been asked for to pay for it.
    """

    def __init__(self, family: Family):
        self._family = family
        self._asked = 0
        self._narrowed: Head | None = None
        self._transposed: Tensor | None = None

    def __call__(self, hidden: Float[Tensor, "row hidden"]) -> Float[Tensor, "row vocab"]:
        self._asked += 1
        head, dtype = self._family.head, _product_dtype(hidden)
        weight = head.weight[: head.vocab_size]
        if dtype != weight.dtype:
            bias = None if head.bias is None else head.bias.to(dtype)
            self._narrowed = self._narrowed or replace(head, weight=weight.to(dtype), bias=bias)
            return head_logits(self._narrowed, hidden.to(dtype))
        if self._transposed is None and self._asked >= TRANSPOSED_FROM and _to_transpose(weight):
            self._transposed = weight.T.contiguous()
        if self._transposed is None or len(hidden) > FEW_ROWS:
            return head_logits(head, hidden)
        linear = hidden @ self._transposed
        return head.logits(linear if head.bias is None else linear + head.bias[: head.vocab_size])


def widened_linear(
    rows: Float[Tensor, "*pos width"], weight: Float[Tensor, "out width"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*pos out"]:
    """``F.linear`` with products and sums in float32 and one rounding, whatever the processor has for the dtype."""
    wide = rows.flatten(0, -2).float().T
    product = torch.cat([block.float() @ wide for block in weight.split(BLOCK)])
    if bias is not None:
        product += bias.float()[:, None]
    return product.to(rows.dtype).T.contiguous().unflatten(0, rows.shape[:-1])


def suited_products(weight: Tensor) -> AbstractContextManager[Any]:
    """Inside it, a model of these weights multiplies in the way that suits the processor."""
    return _Widened() if _narrow(weight) else nullcontext()


class _Widened(TorchFunctionMode):
    """Replaces ``F.linear`` where widening pays. A mode, so that the model itself is left as it is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _to_widen(args[0], args[1]):
            return widened_linear(*args)
        return func(*args, **(kwargs or {}))


def _to_widen(rows: Tensor, weight: Tensor) -> bool:
    return _narrow(weight) and rows.numel() >= WIDENED_FROM_ROWS * rows.shape[-1]


def _product_dtype(rows: Tensor) -> torch.dtype:
    """What a product of these rows is made in."""
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype


def _to_transpose(weight: Tensor) -> bool:
    small = weight.numel() * weight.element_size() <= COPY_BYTES
    return small and weight.device.type == "cpu" and weight.dtype == torch.float32


def _narrow(weight: Tensor) -> bool:
    """Weights in bfloat16 on the kind of processor that was measured; others are left to their libraries."""
    on_cpu = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2"
