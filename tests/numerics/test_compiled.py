"""Compiled blocks against autograd's: the same values and gradients, and nothing but rounding between them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import objectives
from potstill.objectives import compiled as compiling
from potstill.objectives import sparse
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.objectives.compiled import Compiled
from potstill.types import Batch, Dense, Head, Live, StudentOutput, TeacherSignal

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")

VOCAB, WIDTH, POSITIONS = 40, 8, 300  # two whole blocks of 128, and a remainder that is left to autograd
Says = Callable[[Live], TeacherSignal | None]


def term(name: str, reads: Any = "teacher", coefficient: float = 1.0, **settings: Any) -> BoundTerm:
    scale = torch.rand(1, POSITIONS, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / POSITIONS + 1e-6
    return BoundTerm(name, partial(getattr(objectives, name), **settings), reads, coefficient, scale)


def evaluated(
    terms: list[BoundTerm],
    compiled: Compiled | None,
    *,
    says: Says = lambda live: live,
    dtype: torch.dtype = torch.float32,
    narrow: bool = False,
    head: Callable[[Head], Head] = lambda head: head,
) -> list[Tensor]:
    """The total, the values, and the gradients of states and head."""
    drawn = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64).to(dtype)

    weight, states = normal(VOCAB, WIDTH).requires_grad_(), normal(1, POSITIONS, WIDTH).requires_grad_()
    live = Live(normal(1, POSITIONS, WIDTH), Head(normal(VOCAB, WIDTH), None, None, VOCAB))
    mask = torch.ones(1, POSITIONS, dtype=torch.bool)
    ids = torch.randint(VOCAB, (1, POSITIONS), generator=drawn)
    batch = Batch(ids[:, :1], mask[:, :1], ids, mask, ("drawn",))
    terms = [replace(one, scale=one.scale.to(dtype)) for one in terms]
    output = StudentOutput(states, head(Head(weight, None, None, VOCAB)))
    with torch.autocast("cpu", torch.bfloat16) if narrow else nullcontext():
        total, values = evaluate_terms(output, says(live), batch, terms, compiled=compiled)
        total.backward()
    assert states.grad is not None
    assert weight.grad is not None
    return [total.detach(), values, states.grad, weight.grad]


def top_k(live: Live) -> TeacherSignal:
    return sparse.top_k(live.head(live.hidden), 6)


def draws(live: Live) -> TeacherSignal:
    return sparse.draw(live.head(live.hidden), 20, generator=torch.Generator().manual_seed(1))


def logits(live: Live) -> TeacherSignal:
    return Dense(live.head(live.hidden))


CASES: dict[str, tuple[list[BoundTerm], Says]] = {
    "forward_kl": ([term("forward_kl", temperature=2.0)], lambda live: live),
    "jensen_shannon": ([term("jensen_shannon", teacher_weight=0.3)], logits),
    "with_gold": ([term("reverse_kl", coefficient=0.25), term("cross_entropy", "tokens", 0.75)], lambda live: live),
    "top_k": ([term("forward_kl")], top_k),
    "draws": ([term("forward_kl")], draws),
    "no_teacher": ([term("cross_entropy", "tokens", label_smoothing=0.1)], lambda _: None),
}
SLOW: dict[str, tuple[list[BoundTerm], Says]] = {
    "skew": ([term("skew_forward_kl"), term("skew_reverse_kl")], lambda live: live),
    "jeffreys": ([term("jeffreys")], top_k),
    "total_variation": ([term("total_variation")], lambda live: live),
    "entropy": ([term("entropy", "student")], lambda _: None),
}


def same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


FLOAT32 = (torch.float32, False, 2e-6)
OTHERS = (torch.float64, False, 1e-14), (torch.float32, True, 1e-2)


def check(terms: list[BoundTerm], says: Says, dtype: torch.dtype, narrow: bool, tolerance: float) -> None:
    made = Compiled()
    asked: dict[str, Any] = {"says": says, "dtype": dtype, "narrow": narrow}
    same(evaluated(terms, made, **asked), evaluated(terms, None, **asked), tolerance)
    assert made.left == []
    assert len(made._made) == 1


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_block_is_autograds(name: str) -> None:
    check(*CASES[name], *FLOAT32)


@pytest.mark.parametrize("precision", OTHERS)
def test_a_compiled_block_is_autograds_in_any_precision(precision: Any) -> None:
    check(*CASES["with_gold"], *precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES | SLOW)
def test_every_compiled_block_is_autograds(name: str) -> None:
    for precision in (FLOAT32, *OTHERS):
        check(*(CASES | SLOW)[name], *precision)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each call of a compiled function had, made of the function that would be compiled."""
    calls: list[int] = []

    def make(_self: Compiled, terms: Any, block: Any, _tensors: Any) -> Any:
        def in_one(*tensors: Tensor) -> tuple[Tensor]:
            calls.append(len(tensors[0]))
            return compiling._in_one(terms, block, *tensors)

        return in_one

    monkeypatch.setattr(Compiled, "_make", make)
    return calls


def test_whole_blocks_are_compiled_and_remainders_are_not(counted: list[int]) -> None:
    terms = [term("forward_kl")]
    found = evaluated(terms, Compiled())
    assert counted == [128, 128]
    same(found, evaluated(terms, None), 2e-6)


def test_a_coefficient_may_change_and_a_setting_makes_another_function(counted: list[int]) -> None:
    made = Compiled()
    for coefficient in (1.0, 0.5):
        terms = [term("forward_kl", coefficient=coefficient)]
        same(evaluated(terms, made), evaluated(terms, None), 2e-6)
    assert len(made._made) == 1
    terms = [term("forward_kl", temperature=3.0)]
    same(evaluated(terms, made), evaluated(terms, None), 2e-6)
    assert len(made._made) == 2


def test_draws_of_any_number_up_to_a_multiple_are_one_kind(counted: list[int]) -> None:
    made, terms = Compiled(), [term("forward_kl")]
    for few in (17, 20, 31):

        def says(live: Live, few: int = few) -> TeacherSignal:
            return sparse.draw(live.head(live.hidden), few, generator=torch.Generator().manual_seed(1))

        same(evaluated(terms, made, says=says), evaluated(terms, None, says=says), 2e-6)
    widths = {kind[-1][-1][0][-1] for kind in made._made}  # type: ignore[index]
    assert len(widths) == len(made._made) <= 2
    assert all(width % compiling.DRAWS == 0 for width in widths)


def test_more_kinds_than_there_may_be_are_autograds(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "KINDS", 1)
    made = Compiled()
    evaluated([term("forward_kl")], made)
    del counted[:]
    terms = [term("reverse_kl")]
    same(evaluated(terms, made), evaluated(terms, None), 0)
    assert counted == []


def test_what_one_position_does_not_say_is_autograds(counted: list[int]) -> None:
    """Terms that count some positions only, a head that changes its logits, and what looks at more than a position."""
    part = term("cross_entropy", "tokens")
    part = replace(part, scale=part.scale * (torch.arange(POSITIONS) % 2))
    capped = partial(replace, transform=torch.tanh)
    for terms, head in (
        ([term("forward_kl"), part], lambda head: head),
        ([term("forward_kl")], capped),
        ([term("unlikelihood", "earlier_tokens")], lambda head: head),
    ):
        same(evaluated(terms, Compiled(), head=head), evaluated(terms, None, head=head), 0)
    assert counted == []


def test_an_infinite_logit_is_as_autograds() -> None:
    """A token that a teacher rules out: the compiled function cannot look whether there is one."""

    def says(live: Live) -> TeacherSignal:
        found = live.head(live.hidden).clone()
        found[..., 3] = -torch.inf
        return Dense(found)

    terms, made = [term("forward_kl")], Compiled()
    found = evaluated(terms, made, says=says)
    assert made.left == []
    assert all(part.isfinite().all() for part in found)
    same(found, evaluated(terms, None, says=says), 2e-6)


def test_what_cannot_be_compiled_stays_as_it_is_and_says_why() -> None:
    def looks(student: Tensor, teacher: Tensor) -> Tensor:
        loss = objectives.forward_kl(student, teacher)
        return loss if float(loss.max()) > 0 else loss * 2

    one = replace(term("forward_kl"), objective=looks)
    made = Compiled()
    same(evaluated([one], made), evaluated([one], None), 0)
    (why,) = made.left
    assert why
    assert "\n" not in why
