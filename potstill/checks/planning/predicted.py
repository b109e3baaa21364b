"""What a stage will take, from what was measured of it: how often a run does what, times what it costs once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from potstill import recipe as schema
from potstill.caching import Caches, estimate, is_kept
from potstill.checks.planning.budget import Cost, checkpoints, cost_of, steps_in, validations
from potstill.checks.planning.lengths import fed
from potstill.checks.planning.measured import PROMPTS, Measured
from potstill.checks.planning.pace import SLOTS, Pace
from potstill.checks.planning.results import StagePlan
from potstill.data.examples import Tokenised

REMEMBERED = 2**30  # bytes of a teacher's states, at the most: ``teachers.local.Remembering``
ALWAYS_UNKNOWN = (
    "how busy the machine will be: seconds are those of now",
    "how soon a trained student ends its answers: each is taken to have as many tokens as it may have",
    "starting Python, and writing the report: some seconds that are not counted",
)


def predicted(found: Measured, probe_seconds: float, *, is_first: bool = True) -> StagePlan:
    """The plan of a stage; ``is_first`` where none comes before it."""
    bench, stage = found.bench, found.bench.recipe.stage
    steps, cost = _spent(found, stage.budget, found.training.costs)
    text = _teacher_text(found)
    baseline_steps, baseline = 0, Cost()
    if found.baseline:
        # It gets the student's time, so of its own steps only their number is asked.
        equal = schema.Budget(seconds=cost.seconds + text)
        baseline_steps, baseline = _spent(found, equal, found.baseline.costs)
    return StagePlan(
        stage=stage.name,
        method=bench.recipe.method,
        device=str(bench.runtime.device),
        dtype=bench.recipe.dtype,
        parameters=dict(found.parameters),
        steps=steps,
        examples=steps * stage.batch.size,
        response_tokens=round(cost.response_tokens),
        flops=cost.flops,
        baseline_steps=baseline_steps,
        seconds={name: value for name, value in _seconds(found, steps, cost, text, baseline_steps, baseline) if value},
        memory=_memory(found, steps),
        peaks=dict(_peaks(found, steps)),
        disk=_disk(found, steps, baseline_steps),
        step_seconds=tuple(one.cost.seconds for one in found.training.taken),
        probe_seconds=probe_seconds,
        unknown=tuple(_unknown(found, is_first)),
    )


def _spent(found: Measured, budget: schema.Budget, costs: Sequence[Cost]) -> tuple[int, Cost]:
    stage = found.bench.recipe.stage
    rows = len(found.bench.data.train)
    steps = steps_in(budget, costs, batch_size=stage.batch.size, examples_per_epoch=rows)
    return steps, cost_of(steps, costs)


# --- Seconds ----------------------------------------------------------------------------------------------------------


def _seconds(
    found: Measured, steps: int, cost: Cost, text: float, baseline_steps: int, baseline: Cost
) -> Iterator[tuple[str, float]]:
    """By what takes them, in the order of a run."""
    every = found.bench.recipe.stage.checkpoint.every
    finishing = found.seconds["export"] + _evaluation(found, found.student)
    yield "set_up", found.seconds["set_up"]
    if found.teacher:
        yield "measuring_teacher", _evaluation(found, found.teacher)
    if "untouched" not in found.bench.recipe.stage.evaluation.leave_out:
        yield "measuring_untouched", _evaluation(found, found.student)
    yield "teacher_text", text
    if compiling := found.seconds.get("compiling"):
        yield "compiling", compiling
    yield "training", cost.seconds
    yield "validations", validations(steps, every) * _validation(found) + _first_validation(found)
    yield "checkpoints", checkpoints(steps, every) * found.seconds["checkpoint"]
    yield "measuring_student", finishing
    if found.baseline:
        yield "baseline_training", baseline.seconds
        beside = validations(baseline_steps, every) * _validation(found)
        beside += checkpoints(baseline_steps, every) * found.seconds["checkpoint"]
        yield "baseline_beside", found.seconds["student"] + beside + finishing


def _evaluation(found: Measured, pace: Pace) -> float:
    """One row of the table: text measured, prompts answered, and a panel of the model's own samples."""
    settings = found.bench.recipe.stage.evaluation
    rows = found.bench.data.heldout[: settings.max_examples]
    answered = rows[: settings.generate_examples]
    seconds = pace.reading(rows, settings.batch_size, joined=found.joined)
    seconds += pace.answering(len(answered), settings) * (1 if pace.samples is None else 2)
    if pace.samples:
        seconds += ceil(len(answered) / SLOTS) * pace.samples.seconds(settings.max_new_tokens)
        seconds += _scoring(found, pace, answered)
    return seconds


def _scoring(found: Measured, pace: Pace, answered: Sequence[Tokenised]) -> float:
    """A model's samples and its teacher's are read by both models."""
    if found.teacher is None:
        return 0.0
    written = found.bench.recipe.stage.evaluation.max_new_tokens
    positions = sum(len(row.prompt_ids) + written for row in answered)
    own = 0.0 if pace is found.teacher else pace.position
    return 2 * positions * (found.teacher.position + own)


def _validation(found: Measured) -> float:
    """Each but the first: the teacher's states are remembered."""
    stage, rows = found.bench.recipe.stage, found.bench.data.validation
    seconds = found.student.reading(rows, stage.evaluation.batch_size, joined=found.joined)
    if stage.checkpoint.best_by in schema.METRICS_OF_ANSWERS:
        seconds += found.student.answering(len(rows), stage.evaluation)
    return seconds


def _first_validation(found: Measured) -> float:
    """What the teacher adds to the first."""
    size = found.bench.recipe.stage.evaluation.batch_size
    return found.teacher.reading(found.bench.data.validation, size, joined=found.joined) if found.teacher else 0.0


def _teacher_text(found: Measured) -> float:
    """Seconds in which the teacher writes what is trained on, from what it took to write a little of it."""
    stage, count = found.bench.recipe.stage, len(found.bench.data.train)
    few = ceil(PROMPTS / stage.batch.size)
    most = stage.budget.steps or ceil(count / stage.batch.size)
    asked = [schema.rollout_of(stream.source) for stream in stage.streams]
    stored = [rollout for rollout in asked if rollout and rollout.policy.name == "teacher"]
    if not stored:
        return 0.0
    each = max(rollout.samples_per_prompt for rollout in stored)
    prompts, tried = (min(count, ceil(steps * stage.batch.size / each)) for steps in (most, few))
    return found.seconds["teacher_text"] * prompts / tried


# --- Bytes ------------------------------------------------------------------------------------------------------------


def _memory(found: Measured, steps: int) -> dict[str, int]:
    """A training step, by what takes it. ``other``: what is left of the measured peak, temporaries and freed memory
    that the process still has; ``growth``: more of the latter, over all steps."""
    counted = {
        "interpreter": found.interpreter,
        **found.weights,
        "gradients": found.training.gradients,
        "optimizer": found.training.optimizer,
        "activations": found.training.kept,
        "loss_head": found.loss_head,
    }
    tried, whole = _remembered(found, tried=True), _remembered(found)
    other = found.peaks.bytes["training"] - sum(counted.values()) - tried
    rest = {"remembered_states": whole, "other": max(0, other), "growth": round(found.training.growth(steps))}
    return counted | rest


def _peaks(found: Measured, steps: int) -> Iterator[tuple[str, int]]:
    """As they were, with all that will be remembered; and of what comes after training, which is not tried in full."""
    seen, student = found.peaks.bytes, found.weights["student"]
    more = _remembered(found) - _remembered(found, tried=True)
    training = seen["training"] + more + round(found.training.growth(steps))
    # The exported student is loaded while the trained one and its gradients are there, but not the optimizer.
    after = training - found.training.given_back + student
    yield "setting_up", seen["setting_up"]
    yield "measuring", seen["measuring"] + more
    yield "training", training
    yield "saving", seen["saving"] + more
    yield "measuring_student", after
    if found.baseline:  # which is built while the student is there
        yield "baseline", max(training, after) + student


def _remembered(found: Measured, *, tried: bool = False) -> int:
    """The teacher's states of validation and held-out rows; ``tried``: of those that were measured for the plan."""
    bench = found.bench
    if bench.teaching is None:
        return 0
    settings, head = bench.recipe.stage.evaluation, bench.teaching.teacher.family.head.weight
    heldout = bench.data.heldout[: settings.max_examples]
    splits = [heldout[:1], heldout[: settings.batch_size]] if tried else [bench.data.validation, heldout]
    positions = sum(fed(rows, settings.batch_size, joined=False)[1] for rows in splits)
    return min(REMEMBERED, int(positions) * head.shape[1] * head.element_size())


def _disk(found: Measured, steps: int, baseline_steps: int) -> dict[str, int]:
    """What a run leaves; one more checkpoint is there while it is written."""
    settings = found.bench.recipe.stage.checkpoint

    def kept(taken: int) -> int:  # the newest, and the best where that is older
        return min(checkpoints(taken, settings.every), settings.keep_last + 1) * found.checkpoint_bytes

    disk = {"checkpoints": kept(steps), "student": found.student_bytes}
    if found.baseline:
        disk["baseline"] = kept(baseline_steps) + found.student_bytes
    if cache := _teacher_cache(found):
        disk["teacher_cache"] = cache
    return disk


def _teacher_cache(found: Measured) -> int:
    """Bytes of what teachers say of the train rows, where that is kept on disk."""
    bench = found.bench
    stage, total = bench.recipe.stage, 0.0
    for stream in stage.streams:
        if is_kept(stage, stream) and bench.teaching:
            caches = Caches(stage, bench.teaching, bench.runtime, bench.run.path, bench.recipe.seed)
            rows = bench.data.views.get(stream.name, bench.data.train)
            total += estimate(caches.form_of(stream), rows)
    return round(total)


# --- What is not known ------------------------------------------------------------------------------------------------


def _unknown(found: Measured, is_first: bool) -> Iterator[str]:
    stage = found.bench.recipe.stage
    yield from ALWAYS_UNKNOWN
    sources = [stream.source for stream in stage.streams]
    if any(rollout and rollout.policy.name != "teacher" for rollout in map(schema.rollout_of, sources)):
        yield "how long responses become as the student learns: those that were timed are the untouched student's"
    if any(isinstance(source, schema.ReplaySource) for source in sources):
        yield "how the share of a replay adapts: it is taken to stay as it begins, and all of it to be written anew"
    if any(is_kept(stage, stream) for stream in stage.streams):
        yield "what is in a teacher's cache already: none of its words are taken to be kept before the first step"
    if not is_first:
        yield "how the stages before leave their students: untrained ones stand for them"
    if not found.peaks.exact:
        yield "the peak of memory: this system does not tell it, and what was in use after each phase stands for it"
