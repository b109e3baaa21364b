"""Products for decoding are those of the libraries, and a model that uses them writes what it would write anyway."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.models import products
from potstill.models.decoding import CausalDecoder
from potstill.models.families import Causal
from potstill.models.products import head_logits, suited_products, widened_linear
from potstill.types import Head
from tests import tiny

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR).to(dtype)


def exactly(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(rows.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [7, products.BLOCK, 2 * products.BLOCK + 3])
def test_widened_products_are_rounded_once(shape: tuple[int, ...], biased: bool, size: int) -> None:
    """Half a unit in the last of bfloat16's 8 places, and what float32 adds."""
    rows, weight = drawn(*shape, 64, dtype=torch.bfloat16), drawn(size, 64, dtype=torch.bfloat16)
    bias = drawn(size, dtype=torch.bfloat16) if biased else None
    found = widened_linear(rows, weight, bias)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exactly(rows, weight, bias), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 9, 20])
@pytest.mark.parametrize("biased", [False, True])
def test_the_heads_logits_do_not_depend_on_the_order_of_the_product(
    dtype: torch.dtype, count: int, biased: bool
) -> None:
    weight, hidden = drawn(50, 64, dtype=dtype), drawn(count, 64, dtype=dtype)
    bias = drawn(50, dtype=dtype) if biased else None
    found = head_logits(Head(weight, bias, torch.tanh, 40), hidden)
    expected = exactly(hidden, weight[:40], None if bias is None else bias[:40]).tanh()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.04}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_only_narrow_weights_of_several_rows_on_the_measured_processor_are_widened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    whole = widened_linear

    def counted(rows: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        calls.append(rows.numel() // rows.shape[-1])
        return whole(rows, *rest)

    monkeypatch.setattr(products, "widened_linear", counted)
    for capability, expected in (("AVX2", [4, 12]), ("AVX512", [])):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        calls.clear()
        for dtype in (torch.bfloat16, torch.float32):
            weight = drawn(16, 64, dtype=dtype)
            with suited_products(weight):
                for shape in ((3,), (4,), (3, 4)):
                    F.linear(drawn(*shape, 64, dtype=dtype), weight)
        assert calls == expected


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_a_model_in_bfloat16_decodes_as_its_own_forward_does(make: type) -> None:
    """As near to it in float64 as twice what the libraries' own bfloat16 is."""
    model = make(3).bfloat16()
    ids = torch.randint(1, tiny.VOCAB, (6, 12), generator=GENERATOR)
    decoder = CausalDecoder(Causal(model), 6, 12)
    rows = [decoder.admit(ids[:, :5].tolist())]
    rows += [decoder.step(ids[:, at]) for at in range(5, 12)]
    with torch.no_grad():
        own = model(ids).logits[:, 4:].double()
        exact = model.double()(ids).logits[:, 4:]
    found = torch.stack(rows, 1).double()
    assert (found - exact).abs().mean() < 2 * (own - exact).abs().mean()


class Headed:
    """A family of which only the head is asked for."""

    def __init__(self, head: Head):
        self.head = head
        self.model = SimpleNamespace(base_model=nn.Module(), get_input_embeddings=lambda: head)


def counted_packing(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The matrices that are copied from now on, as they go to oneDNN."""
    seen: list[torch.Tensor] = []
    packed = torch.ops.mkldnn._reorder_linear_weight

    def noted(matrix: torch.Tensor, rows: int) -> torch.Tensor:
        seen.append(matrix)
        return packed(matrix, rows)

    products._packs.cache_clear()
    for dtype in (torch.float32, torch.bfloat16):
        products._packs(dtype)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", noted)
    return seen


def packs(dtype: torch.dtype) -> bool:
    """Whether this processor is one on which matrices of this kind are copied."""
    return products._packs(dtype) and not products._narrow(torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("count", [1, 4, 9, products.PACKED_UP_TO + 1])
def test_a_repeated_heads_logits_stay_as_they_are(
    dtype: torch.dtype, biased: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hidden = nn.Parameter(drawn(50, 64, dtype=dtype)), drawn(count, 64, dtype=dtype)
    head = Head(weight, drawn(50, dtype=dtype) if biased else None, torch.tanh, 40)
    repeated, copied = products.Repeated(Headed(head)), counted_packing(monkeypatch)  # type: ignore[arg-type]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    with torch.no_grad():
        for _ in range(products.PACKED_FROM + 1):
            with repeated.body():
                pass
            torch.testing.assert_close(repeated.head(hidden), head_logits(head, hidden), rtol=tolerance, atol=tolerance)
    few = products._FEWEST.get(dtype, count + 1) <= count <= products.PACKED_UP_TO
    assert [len(matrix) for matrix in copied] == ([40] if few and packs(dtype) else [])


def test_under_autocast_a_repeated_head_says_the_same_and_narrows_its_matrix_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, hidden = nn.Parameter(drawn(50, 64, dtype=torch.float32)), drawn(4, 64, dtype=torch.float32)
    head = Head(weight, drawn(50, dtype=torch.float32), None, 40)
    repeated, copied = products.Repeated(Headed(head)), counted_packing(monkeypatch)  # type: ignore[arg-type]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(products.PACKED_FROM + 3):
            with repeated.body():
                pass
            found = repeated.head(hidden)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found, head(hidden), rtol=0.02, atol=0.02)
    assert [matrix.dtype for matrix in copied] == ([torch.bfloat16] if products._packs(torch.bfloat16) else [])
    (made,) = repeated._heads._made.values()
    assert made[1].dtype == torch.bfloat16


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_model_whose_matrices_are_copied_writes_what_it_would_write_anyway(
    make: Callable[[int], Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every matrix of its layers and its head is copied, once, but for a single row in float32."""
    model, copied = make(3), counted_packing(monkeypatch)
    monkeypatch.setattr(products, "PACKED_FROM", 3)
    ids = torch.randint(1, tiny.VOCAB, (rows, 16), generator=GENERATOR)
    decoder = CausalDecoder(Causal(model), rows, 16)
    said = [decoder.admit(ids[:, :5].tolist())]
    said += [decoder.step(ids[:, at]) for at in range(5, 16)]
    with torch.no_grad():
        own = model(ids).logits[:, 4:]
    torch.testing.assert_close(torch.stack(said, 1), own, rtol=1e-4, atol=1e-5)
    inside = [p for p in model.base_model.parameters() if p.ndim == 2 and p.numel() > 0]
    tables = [m.weight for m in model.base_model.modules() if isinstance(m, nn.Embedding)]
    expected = len(inside) - len(tables) + 1  # the head
    assert len(copied) == (expected if rows > 1 and packs(torch.float32) else 0)


def test_no_more_is_copied_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, copied = tiny.llama(3), counted_packing(monkeypatch)
    monkeypatch.setattr(products, "PACKED_FROM", 1)
    monkeypatch.setattr(products, "COPY_BYTES", 0)
    decoder = CausalDecoder(Causal(model), 2, 8)
    decoder.admit([[1, 2], [3, 4]])
    decoder.step(torch.tensor([5, 6]))
    assert copied == []


def decoded(model: Any, steps: int = 3) -> torch.Tensor:
    """What a decoder of its own says after some tokens, [2, vocab]."""
    decoder = CausalDecoder(Causal(model), 2, 2 + steps)
    decoder.admit([[1, 2], [3, 4]])
    return [decoder.step(torch.tensor([5, 6])) for _ in range(steps)][-1]


def replaced(model: nn.Module) -> list[str]:
    """The modules that have a forward of their own."""
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_a_model_that_has_learned_since_is_read_anew(
    make: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next decoder: copies are of one decoder alone, and a model in training has others at every rollout."""
    model = make(3)
    monkeypatch.setattr(products, "PACKED_FROM", 1)
    before = decoded(model)
    assert replaced(model) == []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = decoded(model)
    monkeypatch.setattr(products, "PACKED_FROM", 100)
    torch.testing.assert_close(after, decoded(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, rtol=1e-2)


def test_a_model_whose_reading_fails_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama(3)
    monkeypatch.setattr(products, "PACKED_FROM", 1)
    model.model.layers[1].register_forward_hook(lambda _, args, __: 1 / 0 if args[0].shape[1] == 1 else None)
    with pytest.raises(ZeroDivisionError):
        decoded(model)
    assert replaced(model) == []


def test_what_has_a_forward_of_its_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate gives to what is kept on the disk."""
    model, calls = tiny.llama(3), []
    monkeypatch.setattr(products, "PACKED_FROM", 1)
    module = model.model.layers[0].mlp.up_proj

    def own(rows: torch.Tensor) -> torch.Tensor:
        calls.append(rows.shape[1])
        return F.linear(rows, module.weight)

    module.forward = own
    decoded(model, 3)
    assert calls == [2, 1, 1, 1]
    assert module.forward is own


def test_a_copied_matrix_is_kept_as_long_as_its_copy() -> None:
    """Copies go by where their matrices are, and another one may come to the same place."""
    copies, weight = products._Copies(), nn.Parameter(drawn(16, 64, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert copies.of(weight, drawn(4, 64, dtype=torch.float32))
    seen = weakref.ref(weight)
    del weight
    assert seen() is not None


def test_copies_take_as_many_bytes_as_they_may_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 16 x 64 in two bytes; what there was room for stays."""
    monkeypatch.setattr(products, "COPY_BYTES", 3 * 16 * 64 * 2)
    copies, rows = products._Copies(), drawn(4, 64, dtype=torch.float32)
    weights = [nn.Parameter(drawn(16, 64, dtype=torch.float32)) for _ in range(5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            assert [copies.of(weight, rows) is not None for weight in weights] == [True] * 3 + [False] * 2


def test_a_copy_is_of_one_dtype_and_of_a_parameter() -> None:
    """What is made anew at every token would be kept for nothing, and a narrow copy is not for wide rows."""
    copies, rows = products._Copies(), drawn(4, 64, dtype=torch.float32)
    weight = nn.Parameter(drawn(16, 64, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert copies.of(weight, rows)
        assert copies.of(weight * 1, rows) is None
    assert copies.of(weight, rows) is None


def test_nothing_is_copied_for_a_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, copied = tiny.llama(3), counted_packing(monkeypatch)
    decoded(model, products.PACKED_FROM - 1)
    assert copied == []


def test_a_layer_that_does_more_than_multiply_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an adapter's does."""

    class Doubled(nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(rows)

    model = tiny.llama(3)
    plain = decoded(model)
    for layer in model.model.layers:
        layer.mlp.up_proj.__class__ = Doubled
    usual = decoded(model)
    monkeypatch.setattr(products, "PACKED_FROM", 1)
    torch.testing.assert_close(decoded(model), usual, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(usual, plain, rtol=1e-2)
