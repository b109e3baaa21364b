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
from potstill.errors import ConfigError
from potstill.objectives import chunked, sparse
from potstill.objectives import compiled as compiling
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.objectives.compiled import Block, Compiled
from potstill.types import Batch, Dense, Head, Live, Sampled, StudentOutput, TeacherLogits, TeacherSignal, TopK

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
    chunk_size: int | None = None,
    beyond: bool = False,
) -> list[Tensor]:
    """The total, the values, and the gradients of states and head."""
    drawn = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64).to(dtype)

    weight, states = normal(VOCAB, WIDTH).requires_grad_(), normal(1, POSITIONS, WIDTH).requires_grad_()
    live = Live(normal(1, POSITIONS, WIDTH), Head(normal(VOCAB, WIDTH), None, None, VOCAB))
    mask = torch.ones(1, POSITIONS, dtype=torch.bool)
    ids = torch.randint(VOCAB, (1, POSITIONS), generator=drawn)
    if beyond:
        ids[0, 150] = VOCAB
    batch = Batch(ids[:, :1], mask[:, :1], ids, mask, ("drawn",))
    terms = [replace(one, scale=one.scale.to(dtype)) for one in terms]
    output = StudentOutput(states, head(Head(weight, None, None, VOCAB)))
    with torch.autocast("cpu", torch.bfloat16) if narrow else nullcontext():
        total, values = evaluate_terms(output, says(live), batch, terms, chunk_size, compiled)
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
    for few in (17, 20, 61):

        def says(live: Live, few: int = few) -> TeacherSignal:
            return sparse.draw(live.head(live.hidden), few, generator=torch.Generator().manual_seed(1))

        same(evaluated(terms, made, says=says), evaluated(terms, None, says=says), 2e-6)
    widths = {kind[-1][-1][0][-1] for kind in made._made}  # type: ignore[index]
    assert widths == {compiling.DRAWS}
    assert len(made._made) == 1


def test_a_coefficient_is_as_precise_as_the_logits(counted: list[int]) -> None:
    terms = [term("reverse_kl", coefficient=0.1), term("cross_entropy", "tokens", coefficient=1 / 3)]
    same(evaluated(terms, Compiled(), dtype=torch.float64), evaluated(terms, None, dtype=torch.float64), 1e-14)
    same(evaluated(terms, Compiled(), narrow=True), evaluated(terms, None, narrow=True), 1e-2)
    assert counted == [128] * 4


def test_a_block_of_a_larger_vocabulary_is_smaller(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 128 positions that a teacher speaks of at once, 50 fit into a cache twice; 28 remain, and the last 44."""
    monkeypatch.setattr(chunked, "CPU_BLOCK", 50 * VOCAB)
    evaluated([term("forward_kl")], Compiled())
    assert counted == [50] * 4


def test_settings_and_scales_are_each_terms_own(counted: list[int]) -> None:
    """Terms with settings at each position, by two names, and one with none between them; in two chunks."""

    def of_both(student: Tensor, teacher: Tensor, lean: Tensor) -> Tensor:
        return objectives.forward_kl(student, teacher) * lean

    def of_tokens(student: Tensor, tokens: Tensor, lift: Tensor) -> Tensor:
        return objectives.cross_entropy(student, tokens) * lift

    at = torch.arange(POSITIONS, dtype=torch.float32)[None]
    one, two, three = term("forward_kl"), term("reverse_kl", coefficient=0.5), term("cross_entropy", "tokens", 0.25)
    terms = [
        replace(one, objective=of_both, settings={"lean": at.cos()}),
        replace(two, scale=two.scale.flip(1)),
        replace(three, objective=of_tokens, scale=three.scale.square(), settings={"lift": at.sin()}),
        replace(one, objective=of_both, settings={"lean": at.sin()}),
    ]
    made = Compiled()
    same(evaluated(terms, made, chunk_size=128), evaluated(terms, None), 2e-6)
    assert counted == [128, 128]
    assert len(made._made) == 1


def pieces(teacher: TeacherLogits | None, dtype: torch.dtype = torch.float32) -> Block:
    drawn = torch.Generator().manual_seed(0)
    logits = torch.randn(4, VOCAB, generator=drawn).to(dtype)
    return Block(logits, teacher, torch.arange(4), [torch.ones(4, dtype=dtype)], [{}])


def test_blocks_that_a_function_does_not_fit_are_of_another_kind(counted: list[int]) -> None:
    """One function reads memory in one order, numbers of one precision, and one form of a teacher."""
    logits = torch.randn(VOCAB, 4, generator=torch.Generator().manual_seed(1))
    ids, three = torch.arange(3).expand(4, 3).contiguous(), torch.full((4, 3), -2.0)
    blocks = [
        pieces(logits.T.contiguous()),
        pieces(logits.T),
        pieces(logits.T.contiguous().bfloat16()),
        pieces(logits.T.contiguous(), torch.bfloat16),
        pieces(TopK(ids, three, three[:, 0])),
        pieces(TopK(ids, three, three[:, 0], 2.0)),
        pieces(TopK(ids.int(), three, three[:, 0])),
    ]
    made, one = Compiled(), [term("entropy", "student")]  # it takes whatever a teacher says
    for count, block in enumerate(blocks, start=1):
        made(one, block)
        assert len(made._made) == count


def test_settings_by_other_names_are_of_another_kind(counted: list[int]) -> None:
    def scaled(student: Tensor, one: Tensor | float = 1.0, other: Tensor | float = 1.0) -> Tensor:
        return objectives.entropy(student) * one + other

    made, mine = Compiled(), [replace(term("entropy", "student"), objective=scaled)]
    values = []
    for name in ("one", "other"):
        found = made(mine, replace(pieces(None), settings=[{name: torch.full((4,), 2.0)}]))
        assert found is not None
        values.append(found.item())
    expected = objectives.entropy(pieces(None).logits).sum().item()
    assert values == pytest.approx([2 * expected + 4, expected + 8])


def test_a_teacher_at_another_temperature_is_refused_behind_one_that_is_not(counted: list[int]) -> None:
    made, terms = Compiled(), [term("forward_kl", temperature=2.0)]

    def says(live: Live, temperature: float = 2.0) -> TeacherSignal:
        return sparse.top_k(live.head(live.hidden), 6, temperature=temperature)

    same(evaluated(terms, made, says=says), evaluated(terms, None, says=says), 2e-6)
    with pytest.raises(ConfigError, match=r"taken at temperature 1\.0"):
        evaluated(terms, made, says=partial(says, temperature=1.0))


def test_what_is_drawn_is_filled_up_where_it_is_no_multiple_and_only_there() -> None:
    for draws, filled in ((1, 64), (63, 64), (64, 64), (65, 128), (128, 128)):
        said = Sampled(torch.ones(4, draws, dtype=torch.long), torch.full((4, draws), 0.5), 1.5)
        found = compiling._filled_up(pieces(said)).teacher
        assert isinstance(found, Sampled)
        assert found.ids.shape == found.weights.shape == (4, filled)
        assert found.weights[:, draws:].count_nonzero() == 0
        assert found.temperature == 1.5


def test_without_a_gradient_nothing_is_compiled(counted: list[int]) -> None:
    """The compiled function writes one over the logits, wanted or not."""
    with torch.no_grad():
        states = torch.randn(1, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, POSITIONS, dtype=torch.bool)
    ids = torch.zeros(1, POSITIONS, dtype=torch.long)
    batch = Batch(ids[:, :1], mask[:, :1], ids, mask, ("drawn",))
    output = StudentOutput(states, Head(torch.eye(VOCAB, WIDTH), None, None, VOCAB))
    evaluate_terms(output, None, batch, [term("entropy", "student")], compiled=Compiled())
    assert counted == []


def test_settings_that_are_no_numbers_are_autograds(counted: list[int]) -> None:
    def listed(student: Tensor, weights: list[float]) -> Tensor:
        return objectives.entropy(student) * sum(weights)

    terms, made = [replace(term("entropy", "student"), objective=partial(listed, weights=[1.0, 2.0]))], Compiled()
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


@pytest.mark.parametrize("of", ["teacher", "text"])
def test_an_id_beyond_the_vocabulary_is_autograds_to_refuse(counted: list[int], of: str) -> None:
    """A compiled function would end the process."""

    def says(live: Live) -> TeacherSignal:
        found = sparse.top_k(live.head(live.hidden), 6)
        if of == "teacher":
            found.ids[0, 150, 2] = VOCAB + 3
        return found

    terms = [term("forward_kl"), term("cross_entropy", "tokens")]
    error = ValueError if of == "teacher" else (IndexError, RuntimeError)
    with pytest.raises(error):
        evaluated(terms, Compiled(), says=says, beyond=of == "text")
    assert len(counted) == 1  # the block before it


def test_what_cannot_be_compiled_stays_as_it_is_and_says_why() -> None:
    def looks(student: Tensor, teacher: Tensor) -> Tensor:
        loss = objectives.forward_kl(student, teacher)
        return loss if float(loss.max()) > 0 else loss * 2

    one = replace(term("forward_kl"), objective=looks)
    made = Compiled()
    same(evaluated([one], made), evaluated([one], None), 0)
    (why,) = made.left  # of two blocks, as below of two steps: it is tried once
    same(evaluated([one], made), evaluated([one], None), 0)
    assert made.left == [why]
    assert why
    assert "\n" not in why
