"""Operations as we count them are those that torch counts in matrix products; attention scores are left out by both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from potstill.models import adapters
from potstill.models.families import family_of
from potstill.recipe import Adapter
from potstill.training.compute import Meter
from tests import tiny

MODELS = {
    "llama": lambda: tiny.llama(1),
    "gpt2": lambda: tiny.gpt2(1),
    "t5": lambda: tiny.t5(1, layers=3, encoder_layers=2),
    "t5_gated_untied": lambda: tiny.t5(1, gated=True, tied=False),
    "bart": lambda: tiny.bart(1, layers=2, encoder_layers=3),
}
PRODUCTS = ("mm", "addmm")  # bmm and the attention kernels are of scores


def counted_by_torch(run: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    by_name = {
        operator.__name__.split(".")[0]: count for operator, count in counter.get_flop_counts()["Global"].items()
    }
    return float(sum(by_name.get(name, 0) for name in PRODUCTS))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("trained", [False, True])
def test_products_are_counted_as_torch_counts_them(kind: str, trained: bool) -> None:
    model = MODELS[kind]()
    model.set_attn_implementation("sdpa" if kind not in ("t5", "t5_gated_untied") else "eager")
    family = family_of(model)
    batch = tiny.batch([(5, 5), (5, 5)])  # source and target of one length: each key of a source is a position's

    def run() -> None:
        with torch.set_grad_enabled(trained):
            states = family(batch)
            if trained:
                family.head.linear(states).sum().backward()

    meter = Meter()
    with meter.reading([family, family]):
        run()
    rows, hidden = family.head.weight.shape
    head = 2.0 * rows * hidden  # at every position of what is written
    positions = 20 if kind in ("llama", "gpt2") else 10  # of the decoder, whose head we count at all of them
    expected = counted_by_torch(run)
    if trained:  # torch sees the head at responses alone
        assert meter.flops - 3 * head * positions == pytest.approx(expected - 3 * head * 10, rel=0.02)
    else:
        assert meter.flops - head * positions == pytest.approx(expected, rel=1e-9)


def test_what_is_frozen_takes_no_gradient_and_what_is_closed_counts_nothing() -> None:
    family = family_of(tiny.llama(1))
    batch = tiny.batch([(3, 4)])
    meter = Meter()
    with meter.reading([family]):
        family(batch)
    with_gradient = meter.flops
    family.requires_grad_(False)
    meter = Meter()
    with meter.reading([family]):
        family(batch)
    assert with_gradient == 3 * meter.flops > 0
    family(batch)
    assert with_gradient == 3 * meter.flops


def test_what_is_under_an_adapter_takes_no_gradient_of_its_own() -> None:
    pytest.importorskip("peft", reason="needs the extra adapters")
    model = adapters.attach(tiny.llama(1), Adapter(rank=4), adapters.Base("any", "", {}), seed=1)
    family, batch = family_of(model), tiny.batch([(5, 5), (5, 5)])

    def run() -> None:
        family.head.linear(family(batch)).sum().backward()

    meter = Meter()
    with meter.reading([family]):
        run()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)) - trained
    assert meter.flops == 2 * 20 * (2 * weights + 3 * trained)
    # torch sees the head at responses alone, and no way back below the first layer's first matrices.
    head = 2.0 * model.lm_head.weight.numel()
    assert meter.flops - 2 * head * 20 == pytest.approx(counted_by_torch(run) - 2 * head * 10, rel=0.05)
