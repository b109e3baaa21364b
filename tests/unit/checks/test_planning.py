"""The arithmetic of a plan: from what steps cost to a budget, and from some steps to the others."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from potstill.checks.planning import memory
from potstill.checks.planning.budget import Cost, checkpoints, cost_of, steps_in, validations
from potstill.checks.planning.lengths import fed
from potstill.checks.planning.measured import Measured
from potstill.checks.planning.pace import Pace, Writing, batch_sizes
from potstill.checks.planning.predicted import predicted
from potstill.checks.planning.probe import Probed, Taken, less_writing, line, mixed, parts_of, then, updates_of
from potstill.checks.planning.told import duration
from potstill.data.examples import Tokenised
from potstill.models.families import family_of
from potstill.recipe import Budget, Evaluation
from potstill.recipe_io import load
from potstill.recipes import METHODS
from potstill.training import optim
from potstill.training.trainer import State, spent
from tests import tiny

COSTS = [Cost(1.0, 100.0, 10), Cost(2.0, 200.0, 30), Cost(3.0, 300.0, 20)]  # mean: 2, 200, 20


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 2.0}, 20),
        ({"epochs": 0.75}, 8),  # 30 of 40 examples are 7.5 batches
        ({"tokens": 10}, 1),
        ({"tokens": 11}, 2),
        ({"tokens": 60}, 3),
        ({"tokens": 61}, 4),
        ({"tokens": 100}, 5),
        ({"seconds": 3.0}, 2),
        ({"seconds": 3.5}, 3),
        ({"seconds": 7.0}, 4),
        ({"flops": 1000.0}, 5),
    ],
)
def test_a_budget_is_so_many_steps(budget: dict[str, float], steps: int) -> None:
    assert steps_in(Budget(**budget), COSTS, batch_size=4, examples_per_epoch=40) == steps


@pytest.mark.parametrize("budget", [{"steps": 7}, {"epochs": 1.3}, {"epochs": 0.01}, {"epochs": 2.0}, {"tokens": 95}])
def test_the_trainer_counts_as_many(budget: dict[str, float]) -> None:
    """Against the trainer's own word for a spent budget."""

    class Job:
        stage = load("kd", {"budget": budget, "batch": 4}, methods=METHODS).stage
        examples_per_epoch = 37

    state = State()
    while spent(Job, state) < 1:  # type: ignore[arg-type]
        state.step, state.examples = state.step + 1, state.examples + 4
        state.response_tokens += 20
    even = [Cost(1.0, 1.0, 20)]
    assert steps_in(Job.stage.budget, even, batch_size=4, examples_per_epoch=37) == state.step


def test_what_steps_cost_beyond_those_that_are_known() -> None:
    assert cost_of(2, COSTS) == Cost(3.0, 300.0, 40)
    assert cost_of(3, COSTS) == Cost(6.0, 600.0, 60)
    assert cost_of(5, COSTS) == Cost(10.0, 1000.0, 100)


def test_validations_and_checkpoints_of_a_run() -> None:
    assert (validations(120, 60), checkpoints(120, 60)) == (3, 2)  # at 0, 60 and 120
    assert (validations(169, 60), checkpoints(169, 60)) == (4, 3)  # and at the end
    assert (validations(8, 3), checkpoints(8, 3)) == (4, 3)


def row(prompt: int, response: int) -> Tokenised:
    return Tokenised("row", (1,) * prompt, (2,) * response, "", "", truncated=False)


def test_models_are_fed_the_padding_too() -> None:
    rows = [row(3, 4), row(5, 1), row(2, 9)]
    assert fed(rows, 2, joined=True) == (2 * 7 + 11,)
    assert fed(rows, 2, joined=False) == (2 * 5 + 2, 2 * 4 + 9)


def test_answers_are_written_in_batches() -> None:
    assert batch_sizes(20, 16) == {16: 1, 4: 1}
    assert batch_sizes(32, 16) == {16: 2}
    assert batch_sizes(3, 16) == {3: 1}
    assert batch_sizes(0, 16) == {}
    pace = Pace(0.5, {16: Writing(1.0, 0.2), 4: Writing(0.5, 0.1)})
    assert pace.answering(20, Evaluation(batch_size=16, max_new_tokens=10)) == pytest.approx(1 + 2 + 0.5 + 1)
    assert pace.reading([row(3, 4), row(5, 1)], 2, joined=True) == 7.0


def test_a_line_through_points_of_which_one_was_disturbed() -> None:
    assert line([1, 2, 3, 4, 5], [3, 5, 7, 9, 40]) == pytest.approx((1.0, 2.0))
    assert line([2, 2, 2], [3.0, 4.0, 8.0]) == (4.0, 0.0)
    assert line([1, 2, 3], [3.0, 2.0, 1.0]) == (2.0, 0.0)  # less for more work: noise
    assert line([2, 4, 6], [1.0, 3.0, 5.0]) == pytest.approx((0.0, 0.75))  # never less than nothing


def taken(seconds: float, writing: float) -> Taken:
    return Taken(Cost(seconds, 100.0, 10), Cost(writing, 40.0), None)


def test_what_is_written_once_and_trained_on_twice_costs_half() -> None:
    probed = Probed((Cost(5.0, 100.0, 10),), (taken(5.0, 3.0), taken(5.0, 3.0)), (), 0, 0, 0, 0, 0)
    assert less_writing(probed, 2).costs == (Cost(3.5, 80.0, 10),)
    assert less_writing(probed, 1) is probed


def test_steps_of_two_kinds_cost_what_their_shares_say() -> None:
    cheap = Probed((Cost(1.0, 10.0, 4), Cost(3.0, 30.0, 8)), (taken(1.0, 0),), (), 5, 1, 2, 3, 0)
    dear = Probed((Cost(10.0, 100.0, 20),), (taken(10.0, 6.0),), (), 7, 1, 2, 3, 0)
    both = mixed([(0.75, cheap), (0.25, dear)])
    assert both.costs == (Cost(4.0, 40.0, 9.5),)
    assert both.kept == 7
    assert mixed([(1.0, cheap)]) is cheap


def test_steps_after_the_first_epoch_cost_what_reading_costs() -> None:
    asking = Probed((Cost(3.0),) * 5, (), (), 5, 1, 2, 3, 0)
    reading = Probed((Cost(1.0),) * 5, (), (), 4, 1, 2, 3, 0)
    both = then(asking, reading, 2)
    assert [cost.seconds for cost in both.costs] == [3, 3, 1, 1, 1]
    assert both.kept == 5
    assert then(asking, reading, 5) is asking  # no step after the epoch is looked at


def test_a_peak_that_grows_with_the_logarithm_goes_on_so() -> None:
    peaks = tuple(round(1e9 + 1e8 * math.log(step)) for step in range(1, 9))
    probed = Probed((Cost(1.0),), (), peaks, 0, 0, 0, 0, 0)
    assert probed.growth(120) == pytest.approx(1e8 * math.log(120 / 8), rel=1e-6)
    assert probed.growth(8) == 0
    level = Probed((Cost(1.0),), (), (5, 5, 5), 0, 0, 0, 0, 0)
    assert level.growth(10**6) == 0


def test_a_mixture_is_looked_at_part_by_part() -> None:
    stage = load(
        "gkd", {"student": "models/small", "teacher": "models/big", "student_share": 0.25}, methods=METHODS
    ).stage
    (data_share, data), (share, rollouts) = parts_of(stage)
    assert (data_share, share) == (0.75, 0.25)
    assert [stream.source.name for stream in data.streams] == ["dataset"]
    assert [stream.source.name for stream in rollouts.streams] == ["rollout"]


def test_a_rollout_is_looked_at_one_batch_at_a_time() -> None:
    asked = {"student": "models/small", "teacher": "models/big"}
    stage = load("minillm", asked, methods=METHODS).stage
    ((share, looked_at),) = parts_of(stage)
    sources = [stream.source for stream in looked_at.streams if stream.source.name == "rollout"]
    assert share == 1
    assert all((one.batches_per_rollout, one.num_updates_per_batch) == (1, 1) for one in sources)
    assert updates_of(stage) == max(s.source.num_updates_per_batch for s in stage.streams if s.source.name == "rollout")


def test_bytes_of_a_model_and_its_training_are_exact() -> None:
    family = family_of(tiny.llama(0))
    size = 4 * sum(p.numel() for p in family.model.parameters())
    assert memory.gradients(family.parameters()) == size
    optimizer = optim.build(family, load("sft", {"student": "x"}, methods=METHODS).stage.optimizer)
    for parameter in family.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    steps = 4 * len(list(family.parameters()))  # AdamW counts the steps of each parameter
    assert memory.optimizer_state(optimizer) == 2 * size + steps
    sizes = memory.weights(family, [family_of(tiny.llama(1))])
    assert sizes["teacher"] == sizes["student"] >= size
    assert memory.weights(family, [family])["teacher"] == 0  # a teacher on the student's own weights


def test_what_a_forward_keeps_is_counted_once_until_it_is_let_go() -> None:
    weight = torch.randn(100, 100, requires_grad=True)
    kept = memory.Kept([weight])
    entering = torch.randn(50, 100)
    with kept.counting():
        middle = (entering @ weight).exp()  # keeps entering for the weight's gradient, and exp its own result
        total = (middle @ weight).sum()  # keeps middle again: the same storage
    assert kept.most == entering.nbytes + middle.nbytes
    total.backward()
    del total
    with kept.counting():
        (entering @ weight).sum().backward()
    assert kept.most == entering.nbytes + middle.nbytes  # what was let go does not add up


def test_what_a_forward_keeps_gives_the_same_gradient() -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
    entering = torch.randn(4, 8)
    layers(entering).sum().backward()
    expected = [p.grad.clone() for p in layers.parameters() if p.grad is not None]
    layers.zero_grad()
    with memory.Kept(layers.parameters()).counting():
        layers(entering).sum().backward()
    assert all(torch.equal(p.grad, old) for p, old in zip(layers.parameters(), expected, strict=True))  # type: ignore[arg-type]


def test_logits_of_a_chunk() -> None:
    family = family_of(tiny.llama(0))
    head = family.head.weight.nbytes
    one = 100 * family.vocab_size * 4
    assert memory.loss_head(family, with_teacher=True, positions=100, computed_in=torch.float32) == head + 2 * one
    family.requires_grad_(False)
    assert memory.loss_head(family, with_teacher=False, positions=100, computed_in=torch.float32) == one
    most = [memory.loss_head(family, with_teacher=two, positions=10**6, computed_in=torch.float32) for two in (0, 1)]
    assert most == [256 * family.vocab_size * 4, (256 + 128) * family.vocab_size * 4]  # never more than a chunk


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.14, "3.1 s"), (75, "1 min 15 s"), (7_500, "2 h 5 min"), (86_400, "24 h 0 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_budget_of_more_steps_than_were_looked_at_is_their_mean() -> None:
    steps = steps_in(Budget(seconds=1e6), COSTS, batch_size=1, examples_per_epoch=1)
    assert math.isclose(cost_of(steps, COSTS).seconds, 1e6, rel_tol=1e-5)


# --- A whole plan -----------------------------------------------------------------------------------------------------

READING, EVERY = 0.5, 3  # seconds of a position; steps between checkpoints
SECONDS = {"set_up": 11.0, "student": 3.0, "export": 5.0, "checkpoint": 7.0, "teacher_text": 6.0}
WEIGHTS = {"student": 1000, "teacher": 4000}


def measured(method: str = "kd", **settings: Any) -> Measured:
    """What might have been seen of a stage: a teacher that takes four times as long as its student at everything."""
    own = {
        "checkpoint": {"every": EVERY, "best_by": "rouge_l"},
        "budget": {"steps": 7},
        "batch": 2,
        "student": "small",
        "baseline": "equal_time_sft",
    }
    evaluation = {"batch_size": 2, "max_examples": 3, "generate_examples": 3, "max_new_tokens": 10}
    made = load(method, own | {"evaluation": evaluation} | settings, methods=METHODS)
    head = SimpleNamespace(weight=torch.zeros(50, 8))
    teaching = SimpleNamespace(teacher=SimpleNamespace(family=SimpleNamespace(head=head)))
    rows = {
        "train": [row(2, 2)] * 40,
        "validation": [row(1, 3), row(2, 4)],
        "heldout": [row(3, 4), row(5, 1), row(2, 9)],
    }
    bench = SimpleNamespace(
        recipe=made,
        data=SimpleNamespace(**rows, views={}),
        teaching=teaching,
        runtime=SimpleNamespace(device=torch.device("cpu")),
    )
    paces = [
        Pace(times * READING, {2: Writing(times, times), 1: Writing(0.0, times)}, Writing(2 * times, times))
        for times in (1.0, 4.0)
    ]
    steps = Probed((Cost(2.0, 100.0, 10),), (taken(2.0, 0),), (70, 70), 300, 10, 400, 800, 800)
    alone = Probed((Cost(1.0, 50.0, 10),), (taken(1.0, 0),), (), 1, 1, 1, 1, 1)
    peaks = SimpleNamespace(exact=True, bytes=dict.fromkeys(("setting_up", "measuring", "training", "saving"), 20_000))
    return Measured(
        bench=bench,  # type: ignore[arg-type]
        joined=True,
        parameters={},
        training=steps,
        baseline=alone,
        teacher=paces[1],
        student=paces[0],
        seconds=SECONDS,
        weights=WEIGHTS,
        loss_head=600,
        interpreter=9000,
        peaks=peaks,  # type: ignore[arg-type]
        checkpoint_bytes=100,
        student_bytes=60,
    )


def test_the_seconds_of_a_run_are_what_it_does_times_what_each_takes() -> None:
    """Summed by hand: 7 steps with checkpoints at 3, 6 and 7, and the same time for the baseline, in 14 steps."""
    plan = predicted(measured(), 1.0)
    # Two batches are read, of 2 x 7 and 11 positions; answered greedily and by sampling; sampled for the panel, and
    # those samples and the teacher's read by both models.
    positions, read_twice = 2 * 7 + 11, 2 * (3 + 5 + 2 + 3 * 10)
    answering = (1 + 10) + 10
    panel = 2 + 10
    student = READING * positions + 2 * answering + panel + read_twice * (READING + 4 * READING)
    teacher = 4 * (READING * positions + 2 * answering + panel) + read_twice * 4 * READING
    validation = READING * 2 * 6 + (1 + 10)  # and answered, for the best student is chosen by its answers
    assert plan.seconds == pytest.approx(
        {
            "set_up": 11.0,
            "measuring_teacher": teacher,
            "measuring_untouched": student,
            "training": 7 * 2.0,
            "validations": 4 * validation + 4 * READING * 2 * 6,  # the teacher reads them once
            "checkpoints": 3 * 7.0,
            "measuring_student": 5.0 + student,
            "baseline_training": 14 * 1.0,
            "baseline_beside": 3.0 + 6 * validation + 5 * 7.0 + 5.0 + student,
        }
    )
    assert (plan.steps, plan.baseline_steps, plan.flops) == (7, 14, 700.0)


def test_the_baseline_has_the_time_that_writing_took_as_well() -> None:
    """40 prompts; of those 16 were written to, as many as the steps of a plan can use."""
    plan = predicted(measured("seqkd", budget={"epochs": 2.0}), 1.0)
    assert plan.steps == 40
    assert plan.seconds["teacher_text"] == pytest.approx(6.0 * 40 / 16)
    assert plan.baseline_steps == 40 * 2 + 15


def test_the_bytes_of_a_run() -> None:
    plan = predicted(measured(), 1.0)
    states = (2 * 4 + 2 * 4 + 9) * 8 * 4  # of validation and held-out responses, padded; float32
    tried = (4 + 2 * 4) * 8 * 4  # of the first held-out row, and of the first batch of them
    counted = 9000 + 1000 + 4000 + 400 + 800 + 300 + 600
    assert plan.memory == {
        "interpreter": 9000,
        **WEIGHTS,
        "gradients": 400,
        "optimizer": 800,
        "activations": 300,
        "loss_head": 600,
        "remembered_states": states,
        "other": 20_000 - counted - tried,
        "growth": 0,
    }
    more = 20_000 + states - tried
    after = more - 800 + 1000  # the optimizer is gone, and the exported student there
    assert plan.peaks == {
        "setting_up": 20_000,
        "measuring": more,
        "training": more,
        "saving": more,
        "measuring_student": after,
        "baseline": after + 1000,
    }
    assert plan.disk == {"checkpoints": 3 * 100, "student": 60, "baseline": 3 * 100 + 60}
