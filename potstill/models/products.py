"""Products of a few rows with a large matrix on a processor: the shapes of decoding, which libraries treat badly.

Measured on one thread of a processor with AVX2, 49,152 by 576. float32: with the large matrix on the left, 4 rows take
half the time of the usual order, 8 rows five sixths. bfloat16, which such a processor has no instructions for: 8 rows
take half the time when blocks of the matrix are widened to float32 first, 512 rows a ninth; one row gains nothing.

Matrices in the order in which oneDNN reads them, as it is told to make them once: on one thread of a processor with
AVX512 and AMX, 15 layers of SmolLM2 and 8 rows take 25 ms in place of 36 in float32, and 13 in place of 20 in bfloat16;
the head 11 in place of 30, and 5 in place of 8. With AVX2 alone 35 in place of 40, and 16 in place of 27. One row gains
nothing in float32. Copying takes as long as 10 to 15 tokens save. Under autocast a head's product takes 42 ms, of which
all but 3 go to narrowing the matrix (2026-11-22).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from potstill.models.families import Family
from potstill.types import Head

FEW_ROWS = 8
WIDENED_FROM_ROWS = 4
PACKED_FROM = 12  # tokens: as many as it takes to save what copying costs
PACKED_FOR = 32  # rows that oneDNN is told of: what suits them suits fewer
PACKED_UP_TO = 64  # rows; beyond them there is little to gain
_FEWEST = {torch.float32: 2, torch.bfloat16: 1}  # rows: one of float32 is slower so
COPY_BYTES = 2**30  # of the model, and of its head, at most: more would be felt, and is multiplied as usual
BLOCK = 1024  # rows of the matrix widened at a time: they and their product stay in the processor's cache


def head_logits(head: Head, hidden: Float[Tensor, "row hidden"]) -> Float[Tensor, "row vocab"]:
    """The head of a few rows, in the order that suits the processor."""
    weight, bias = head.weight[: head.vocab_size], None if head.bias is None else head.bias[: head.vocab_size]
    if _to_widen(hidden, weight):
        return head.logits(widened_linear(hidden, weight, bias))
    if hidden.device.type != "cpu" or not 1 < len(hidden) <= FEW_ROWS:
        return head(hidden)
    linear = (weight @ hidden.T).T.contiguous()
    return head.logits(linear if bias is None else linear + bias.to(linear.dtype))


class Repeated:
    """The products of a model that reads a few rows at a time, token after token, while its weights stay as they are.

    On a processor each matrix is copied once enough tokens have been asked for to pay for it: in the order in which
    oneDNN reads it, and as narrow as autocast would make it at every token.
    """

    def __init__(self, family: Family):
        self._family = family
        self._asked = 0
        self._packed: _Packed | None = None
        self._heads = _Copies()

    def body(self) -> AbstractContextManager[Any]:
        """Inside it the model itself reads the next token of each row."""
        self._asked += 1
        model = self._family.model
        weight = model.get_input_embeddings().weight
        if not self._pays(weight):
            return suited_products(weight)
        self._packed = self._packed or _Packed(model.base_model, _Copies())
        return self._packed

    def head(self, hidden: Float[Tensor, "row hidden"]) -> Float[Tensor, "row vocab"]:
        """The logits of these rows."""
        head = self._family.head
        if self._pays(head.weight) and (packed := self._heads.of(head.weight, hidden, rows=head.vocab_size)):
            return head.logits(packed(hidden, None if head.bias is None else head.bias[: head.vocab_size]))
        return head_logits(head, hidden)

    def _pays(self, weight: Tensor) -> bool:
        narrowed = torch.is_autocast_enabled(weight.device.type)  # at every token, if not once
        return (narrowed or self._asked >= PACKED_FROM) and weight.device.type == "cpu" and not _narrow(weight)


@dataclass(frozen=True)
class _Copy:
    """A matrix for products in a dtype; ``packed``: as oneDNN reads it."""

    matrix: Tensor
    dtype: torch.dtype
    packed: bool

    def __call__(
        self, rows: Float[Tensor, "*pos width"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "*pos out"]:
        rows, bias = rows.to(self.dtype), None if bias is None else bias.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(rows, self.matrix, bias, "none", [], "")
        return (widened_linear if _to_widen(rows, self.matrix) else F.linear)(rows, self.matrix, bias)


class _Copies:
    """Copies of matrices, made when they are first asked for."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, _Copy]] = {}  # each with what it is of, whose id is then no other's
        self._bytes = 0

    def of(self, weight: Tensor, read: Tensor, *, rows: int | None = None, turned: bool = False) -> _Copy | None:
        """The copy of a matrix, ``out x width``, of which these are read; None where the usual product is to be taken.

        Args:
            weight: the matrix. read: what it is multiplied with. rows: of the matrix that are wanted, all where None.
            turned: the matrix is ``width x out``.
        """
        dtype, count = _product_dtype(read), read.numel() // read.shape[-1]
        few = _FEWEST.get(dtype, PACKED_UP_TO + 1) <= count <= PACKED_UP_TO
        if not (few and _packs(dtype)) and dtype == weight.dtype:
            return None
        if type(weight) is not nn.Parameter or weight.device.type != "cpu":  # made anew at every token, or elsewhere
            return None
        if id(weight) not in self._made:
            size = weight.numel() * dtype.itemsize
            if self._bytes + size > COPY_BYTES:
                return None
            self._made[id(weight)] = weight, _copied((weight.T if turned else weight)[:rows], dtype)
            self._bytes += size
        found = self._made[id(weight)][1]
        return found if found.dtype == dtype else None


def _copied(weight: Tensor, dtype: torch.dtype) -> _Copy:
    matrix, packed = weight.detach().to(dtype).contiguous(), _packs(dtype)
    return _Copy(torch.ops.mkldnn._reorder_linear_weight(matrix, PACKED_FOR) if packed else matrix, dtype, packed)


class _Packed(AbstractContextManager[None]):
    """Inside it a model's layers multiply with copies of their matrices; outside of it the model is as it was.

    What has a forward of its own already, as what is kept on the disk has, is left alone.
    """

    def __init__(self, model: nn.Module, copies: _Copies):
        self._forwards = {
            module: partial(_forward, copies, module, turned=type(module) is Conv1D)
            for module in model.modules()
            if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module)
        }

    def __enter__(self) -> None:
        for module, forward in self._forwards.items():
            vars(module)["forward"] = forward

    def __exit__(self, *_: object) -> None:
        for module in self._forwards:
            del vars(module)["forward"]


def _forward(copies: _Copies, module: Any, rows: Tensor, *, turned: bool) -> Tensor:
    copy = copies.of(module.weight, rows, turned=turned)
    return type(module).forward(module, rows) if copy is None else copy(rows, module.bias)


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


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, and takes matrices of this kind on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), PACKED_FOR)
    except RuntimeError:
        return False
    return True


def _narrow(weight: Tensor) -> bool:
    """Weights in bfloat16 on the kind of processor that was measured; others are left to their libraries."""
    on_cpu = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2"
