"""When terms are compiled: where a training is long enough, and it is measured to be faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.objectives.chunked import MIN_CHUNK, TEACHER_CHUNK
from potstill.objectives.compiled import Block, Compiled
from potstill.recipe import Stage
from potstill.training import compiling
from potstill.training.compiling import can_compile, positions_of, verdict
from potstill.training.runtime import Runtime
from potstill.training.terms import LiveTerm
from potstill.types import Sampled, TopK

RUNTIME = Runtime(torch.device("cpu"), torch.float32)


def stream(*terms: Any, **more: Any) -> recipe.Stream:
    given = {"signal": "logits", "terms": [term if isinstance(term, dict) else {"objective": term} for term in terms]}
    return recipe.Stream.model_validate(given | more)


def live(spec: recipe.Stream) -> list[LiveTerm]:
    return [LiveTerm(spec.name, term) for term in spec.terms]


@pytest.mark.parametrize(
    ("terms", "can"),
    [
        (["forward_kl"], True),
        (["forward_kl", "cross_entropy"], True),
        ([{"objective": "forward_kl", "coefficient": {"name": "linear", "start": 1.0, "end": 0.0}}], True),
        ([{"objective": {"name": "skew_forward_kl", "skew": "curriculum"}}], False),
        (["interpolated_forward_kl"], False),
        (["forward_kl", "unlikelihood"], False),
    ],
)
def test_terms_that_are_the_same_at_every_step_can_be_compiled(terms: list[Any], can: bool) -> None:
    assert can_compile(live(stream(*terms))) is can


def test_what_has_credit_of_its_own_and_what_has_no_terms_is_not_compiled() -> None:
    assert not can_compile([LiveTerm("data", recipe.Term.model_validate({"objective": "policy_gradient"}))])
    assert not can_compile([])


class Timed:
    """Trials that take as long as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: float, after: float, left: str = ""):
        self.asked: list[bool] = []

        def seconds(_trial: Any, maker: Compiled | None) -> float:
            self.asked.append(maker is not None)
            if maker and left:
                maker.left.append(left)
            return after if maker else before

        monkeypatch.setattr(compiling._Trial, "seconds", seconds)


def test_a_short_training_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, 1e-3, 1e-4)
    found = verdict([stream("forward_kl")], 49_152, 10_000, 10_000, RUNTIME)
    assert (found.pays, found.why, timed.asked) == (False, "", [])


def test_one_whose_terms_take_little_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, 1e-5, 1e-6)
    found = verdict([stream("forward_kl")], 49_152, 1_000_000, 10_000, RUNTIME)
    assert (found.pays, found.why, timed.asked) == (False, "", [False])


@pytest.mark.parametrize(("after", "pays"), [(1.5e-4, True), (2.9e-4, False), (5e-4, False)])
def test_it_pays_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, after: float, pays: bool) -> None:
    timed = Timed(monkeypatch, 3e-4, after)
    found = verdict([stream("forward_kl")], 49_152, 1_000_000, 10_000, RUNTIME)
    assert found.pays is pays
    assert ("2.0 times as fast" if pays else f"{3e-4 / after:.2f} times") in found.why
    assert timed.asked == [False, True]


def test_streams_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 20 seconds each are more than 30; a third that cannot be compiled is not tried."""
    timed = Timed(monkeypatch, 2e-4, 1e-4)
    three = [stream("forward_kl"), stream("reverse_kl"), stream("forward_kl", "unlikelihood")]
    assert not verdict(three[1:], 49_152, 100_000, 10_000, RUNTIME).pays
    assert verdict(three, 49_152, 100_000, 10_000, RUNTIME).pays
    assert timed.asked == [False, False, False, True, True]


def test_streams_count_together_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, 1e-2, 1e-3)
    enough = 20.0 / (49_152 * compiling.MOST_PER_LOGIT_S)  # positions of two streams, and of no single one
    assert not verdict([stream("forward_kl")], 49_152, enough, 10_000, RUNTIME).pays
    assert timed.asked == []
    assert verdict([stream("forward_kl"), stream("reverse_kl")], 49_152, enough, 10_000, RUNTIME).pays


def test_where_there_is_no_compiler_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Timed(monkeypatch, 3e-4, 1e-4, left="no working C++ compiler found")
    found = verdict([stream("forward_kl")], 49_152, 1_000_000, 10_000, RUNTIME)
    assert not found.pays
    assert found.why == "terms are not compiled: no working C++ compiler found"


@pytest.mark.parametrize("signal", ["logits", {"name": "top_k", "k": 4}, "sampled", "none"])
def test_a_trial_is_timed_for_every_signal(signal: Any) -> None:
    spec = stream("cross_entropy" if signal == "none" else "forward_kl", signal=signal)
    trial = compiling._Trial(spec, live(spec), 50, RUNTIME)
    assert 0 < trial.seconds(None, repeats=1) < 1


@pytest.mark.parametrize(("at_once", "offered"), [(None, 2), (10_000, 2), (200, 1), (100, 0)])
def test_a_trial_is_of_as_many_positions_as_a_micro_batch_has(at_once: int | None, offered: int) -> None:
    """One too small for a block is compiled nowhere, and is as fast as it was."""
    spec, maker = stream("forward_kl"), Offered()
    compiling._Trial(spec, live(spec), 50, RUNTIME, at_once).seconds(maker, repeats=1)
    assert len(maker.blocks) == 2 * offered


def test_what_is_prepared_has_its_functions_and_has_taken_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[Any] = []

    def make(_self: Compiled, terms: Any, block: Block, _tensors: Any) -> Any:
        kinds.append((block.logits.shape, block.teacher and type(block.teacher)))
        return lambda logits, *_: (torch.zeros(len(terms)),)

    monkeypatch.setattr(Compiled, "_make", make)
    spec = stream("forward_kl", "cross_entropy", signal={"name": "sampled", "draws": 30})
    compiled, seconds = compiling.prepared(spec, 50, RUNTIME)
    assert kinds == [((TEACHER_CHUNK, 50), Sampled)]
    assert (compiled.num_taken, compiled.left) == (0, [])
    assert seconds > 0


class Offered(Compiled):
    """Takes no block, and keeps what it was offered."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def __call__(self, terms: Any, block: Block) -> None:
        self.blocks.append(block)


@pytest.mark.parametrize(
    ("signal", "teacher"),
    [
        ("logits", torch.Tensor),
        ({"name": "top_k", "k": 4, "temperature": 2.0}, TopK),
        ({"name": "sampled", "draws": 30, "temperature": 2.0}, Sampled),
    ],
)
def test_a_trial_is_of_whole_blocks_of_what_a_stream_is_told(signal: Any, teacher: type) -> None:
    """A maker that is offered nothing would be timed as fast as none."""
    spec = stream({"objective": {"name": "forward_kl", "temperature": 2.0}}, signal=signal)
    maker = Offered()
    compiling._Trial(spec, live(spec), 50, RUNTIME).seconds(maker, repeats=1)
    assert len(maker.blocks) == 2 * 2  # once to warm up, of two blocks each
    for block in maker.blocks:
        assert isinstance(block.teacher, teacher)
        assert block.logits.shape == (TEACHER_CHUNK, 50)
        if isinstance(block.teacher, TopK):
            assert block.teacher.ids.shape[-1] == 4
        if isinstance(block.teacher, Sampled):
            torch.testing.assert_close(block.teacher.weights.sum(-1), torch.ones(TEACHER_CHUNK))
            assert block.teacher.weights[block.teacher.weights > 0].min() == pytest.approx(1 / 30)


def test_a_trial_takes_the_best_time_and_not_the_one_in_which_it_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, takes = [0.0], iter([90.0, 5.0, 3.0, 4.0])

    def evaluate(*_: Any, **__: Any) -> Any:
        clock[0] += next(takes)
        return None, torch.zeros(1)

    monkeypatch.setattr(compiling, "evaluate_terms", evaluate)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    spec = stream("forward_kl")
    assert compiling._Trial(spec, live(spec), 50, RUNTIME).seconds(None) == pytest.approx(3.0 / MIN_CHUNK)


def test_positions_of_many_rows_are_told_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "LOOKED_AT", 3)
    rows = [Tokenised(str(at), (1,), (2,) * (at + 1), "", "", truncated=False) for at in range(30)]
    spec = {"student": "m", "streams": [{"signal": "none", "terms": [{"objective": "cross_entropy"}]}]}
    assert positions_of(Stage.model_validate(spec | {"budget": {"epochs": 3}}), rows, 1)[0] == pytest.approx(3 * 30 * 2)


def test_positions_are_those_of_the_budget() -> None:
    rows = [Tokenised(str(at), (1,), (2,) * (at % 3 + 1), "", "", truncated=False) for at in range(30)]

    def positions(world_size: int = 1, /, **budget: float) -> tuple[float, int]:
        spec = {"objective": "cross_entropy"}
        given = {
            "student": "m",
            "streams": [{"signal": "none", "terms": [spec]}],
            "budget": budget,
            "batch": {"size": 8},
        }
        return positions_of(Stage.model_validate(given), rows, world_size)

    assert positions(steps=10) == (pytest.approx(10 * 8 * 2), 8 * 2)
    assert positions(epochs=2) == (pytest.approx(2 * 30 * 2), 8 * 2)
    assert positions(tokens=500) == (500, 8 * 2)
    assert positions(seconds=1000) == (0, 8 * 2)
    assert positions(2, steps=10) == (pytest.approx(10 * 4 * 2), 4 * 2)
    assert positions(2, tokens=500) == (250, 4 * 2)
