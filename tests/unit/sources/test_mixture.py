"""Which of two sources a step uses, and what DistiLLM's buffer holds."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import pytest
import torch

from potstill import recipe, schedules
from potstill.schedules import DistillmSchedule
from potstill.sources.mixture import MixtureSource, ReplaySource
from potstill.sources.source import Share
from tests import rollouts
from tests.rollouts import flat, same, spec

STUDENT, TEACHER = rollouts.gpt2(1), rollouts.gpt2(2)
SHARE = Share(2, 2)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def mixture(share: float | recipe.Schedule, *, seed: int = 0, **settings: Any) -> MixtureSource:
    rollout = rollouts.rollouts(STUDENT, TEACHER, spec(max_new_tokens=4, **settings), credit=None)
    return MixtureSource(rollouts.data(), rollout, schedules.build(share), seed=seed)


def kinds(
    source: MixtureSource | ReplaySource, count: int, share: Share = SHARE, budget: int | None = None
) -> list[bool]:
    """Whether each step's batch was written by the student: its rows' names have a place."""
    found = []
    for number in range(count):
        names = {name for batch in source.next(share, (number + 0.5) / (budget or count)) for name in batch.example_ids}
        (kind,) = {"#" in name for name in names}
        assert source.figures()["is_rollout"] == float(kind)
        found.append(kind)
    return found


def untimed(source: MixtureSource) -> dict[str, float]:
    return {name: value for name, value in source.figures().items() if name != "writing_s"}


# --- A share ----------------------------------------------------------------------------------------------------------


def test_a_share_of_0_is_the_data_and_1_the_rollouts() -> None:
    data = rollouts.data()
    nothing = mixture(0.0)
    for _ in range(8):
        assert same(nothing.next(SHARE, 0.5), data.next(SHARE))
    assert kinds(mixture(1.0), 8) == [True] * 8


def test_a_share_between_is_that_share_of_the_steps() -> None:
    count = 150
    for share in (0.2, 0.5):
        found = sum(kinds(mixture(share), count))
        assert abs(found - share * count) < 3.3 * math.sqrt(count * share * (1 - share))
    assert kinds(mixture(0.5, seed=0), 20) != kinds(mixture(0.5, seed=1), 20)


def test_a_share_may_rise() -> None:
    """ImitKD's: 1 - left**progress, and a step's draw settles it."""
    found = kinds(mixture(recipe.ExponentialSchedule(start=0, end=1, left=0.01)), 150)
    tenth, last = sum(found[:10]), sum(found[100:])
    assert tenth < 5
    assert last > 42
    assert kinds(mixture(recipe.StepSchedule(values=(0.0, 1.0), at=(0.5,))), 20) == [False] * 10 + [True] * 10


def test_every_process_takes_the_same_side_at_each_step() -> None:
    whole = kinds(mixture(0.5), 12)
    assert [kinds(mixture(0.5), 12, Share(2, 1, rank, 2)) for rank in (0, 1)] == [whole, whole]
    assert True in whole
    assert False in whole


@pytest.mark.parametrize("taken", [0, 3, 5, 8])
def test_a_mixture_that_is_saved_in_the_middle_of_a_rollout_goes_on(taken: int) -> None:
    whole, first, second = (mixture(0.6, batches_per_rollout=3, num_updates_per_batch=2) for _ in range(3))
    for source in (whole, first):
        kinds(source, taken)
    second.load_state_dict(through_a_file(first.state_dict()))
    for _ in range(9):
        assert same(second.next(SHARE, 0.5), whole.next(SHARE, 0.5))
        assert untimed(second) == untimed(whole)


# --- Replay -----------------------------------------------------------------------------------------------------------


def replay(capacity: int = 6, *, start: float = 1.0, tolerance: float = math.inf, seed: int = 0) -> ReplaySource:
    rollout = rollouts.rollouts(STUDENT, TEACHER, spec(max_new_tokens=4), credit=None)
    schedule = DistillmSchedule(start=start, step=0.25, tolerance=tolerance)
    return ReplaySource(rollouts.data(), rollout, schedule, capacity, seed=seed)


def test_the_buffer_keeps_the_newest_in_order() -> None:
    """At progress 0 everything of the student is written anew."""
    source = replay(capacity=5)
    seen: list[str] = []
    for _ in range(6):
        seen += [name for batch in source.next(SHARE, 0.0) for name in batch.example_ids]
        assert source.figures()["is_new"] == 1
        assert [row["example_id"] for row in source.state_dict()["buffer"]] == seen[-5:]
        assert source.figures()["replay_sequences"] == min(5, len(seen))


def test_until_the_buffer_is_full_nothing_is_replayed_and_at_the_end_nothing_written() -> None:
    source = replay(capacity=6)
    new = []
    for _ in range(9):
        source.next(SHARE, 1.0)
        new.append(source.figures()["is_new"])
    assert new == [1.0] * 3 + [0.0] * 6


def test_what_is_replayed_stood_in_the_buffer_and_not_twice_in_a_batch() -> None:
    source = replay(capacity=6)
    kept = {row for _ in range(3) for row in map(str, flat(source.next(SHARE, 1.0)))}
    drawn = [flat(source.next(SHARE, 1.0)) for _ in range(10)]
    assert {row for batch in drawn for row in map(str, batch)} == kept
    assert all(len({name for name, _ in batch}) == 2 for batch in drawn)
    assert len({str(batch) for batch in drawn}) > 3


@pytest.mark.parametrize(("share", "progress"), [(1.0, 0.75), (0.5, 0.5)])
def test_of_the_students_text_the_share_that_is_left_is_written_anew(share: float, progress: float) -> None:
    source, count = replay(capacity=2, start=share), 400
    own = new = 0.0
    while source.figures()["replay_sequences"] < 2:  # fill it first
        source.next(SHARE, 0.0)
    for _ in range(count):
        source.next(SHARE, progress)
        own, new = own + source.figures()["is_rollout"], new + source.figures()["is_new"]
    for found, expected in ((own, share), (new, share * (1 - progress))):
        assert abs(found - expected * count) <= 3.3 * math.sqrt(count * expected * (1 - expected))


def test_the_share_rises_only_when_the_validation_loss_does() -> None:
    source = replay(start=0.0, tolerance=0.1)
    shares = []
    for loss in (2.0, 1.5, 2.05, 2.11, 2.15, 2.22):
        source.observe({"perplexity": math.exp(loss)})
        shares.append(source.figures()["student_share"])
    assert shares == [0, 0, 0, 0.25, 0.25, 0.5]
    fixed = replay(start=0.5)
    for loss in (2.0, 9.0):
        fixed.observe({"perplexity": math.exp(loss)})
    assert fixed.figures()["student_share"] == 0.5
    assert kinds(replay(start=0.0, tolerance=0.1), 5) == [False] * 5


@pytest.mark.parametrize("taken", [1, 4, 7])
def test_a_buffer_is_saved_with_all_that_belongs_to_it(taken: int) -> None:
    def after(count: int) -> ReplaySource:
        source = replay(start=0.5, tolerance=0.1)
        source.observe({"perplexity": math.exp(1.0)})
        for number in range(count):
            source.next(SHARE, 0.6)
            source.observe({"perplexity": math.exp(1.0 + 0.15 * (number == 2))})
        return source

    whole, second = after(taken), replay(start=0.5, tolerance=0.1)
    second.load_state_dict(through_a_file(after(taken).state_dict()))
    for _ in range(12):
        assert same(second.next(SHARE, 0.6), whole.next(SHARE, 0.6))
        assert second.figures() == pytest.approx(whole.figures())
    for source in (whole, second):
        source.observe({"perplexity": math.exp(1.2)})
    assert second.figures() == whole.figures()


def test_two_processes_replay_as_much_as_one() -> None:
    """Each holds its own half; together they take the same side and write the same."""
    whole = replay(capacity=6)
    parts = [replay(capacity=3) for _ in range(2)]
    for _ in range(3):
        expected = flat(whole.next(SHARE, 1.0))
        found = [row for rank, part in enumerate(parts) for row in flat(part.next(Share(2, 1, rank, 2), 1.0))]
        assert sorted(found) == sorted(expected)
    for _ in range(6):
        whole.next(SHARE, 1.0)
        for rank, part in enumerate(parts):
            assert len(flat(part.next(Share(2, 1, rank, 2), 1.0))) == 1
            assert part.figures()["is_new"] == whole.figures()["is_new"]
