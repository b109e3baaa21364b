"""Do the identities hold on your own models? What every distillation loss must obey, tried on a few of your rows.

Where student and teacher are one model every divergence is 0 with gradient 0; padding, micro-batches and chunks change
nothing; another teacher is another gradient. And how near each sparse form of the teacher comes to the exact gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import assembly, objectives, recipe_io
from potstill import recipe as schema
from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.data.prepare import prepare
from potstill.errors import ConfigError
from potstill.evaluation.evaluator import mass_outside
from potstill.inside import Looking, places_of, terms_of
from potstill.objectives import sparse
from potstill.sources.dataset import DatasetSource
from potstill.sources.rollout import Judge
from potstill.stages import beforehand
from potstill.streams import asked
from potstill.training import runtime as runtimes
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream, anchor, bound, denominators, weighed
from potstill.training.values import evaluate, run_student
from potstill.types import Batch, TeacherLogits

MAX_PROMPT = 24  # tokens: enough to disagree about, few enough for a minute
RESPONSES = (24, 7, 16, 11)  # ragged, so that there is padding to get wrong
# float32, relative; the same sums in another order differ by some 1e-6 of the gradient of a 135 M-parameter model
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}
SMALL = 1e-2


@dataclass(frozen=True)
class Check:
    """One line of the table: a figure, and what it has to stay below; no limit where it is only to be known."""

    what: str
    figure: float
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        wanted = "" if self.limit is None else f"{'>=' if self.at_least else '<='} {self.limit:.1g}"
        verdict = "" if self.limit is None else "ok" if self.passed else "FAILED"
        return f"{self.what:58} {self.figure:>10.3g} {wanted:>9}  {verdict:6} {self.note}".rstrip()


@dataclass(frozen=True)
class Pair:
    """The two models, what is trained on, and a few rows."""

    runtime: Runtime
    teacher: assembly.Teaching
    student: assembly.Student
    streams: Sequence[LiveStream]
    judges: Sequence[Judge | None]  # of the streams, where sampled tokens get credit: the rows stand for samples
    rows: Sequence[Tokenised]
    pad_id: int

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.runtime.dtype]


def selftest(
    target: str,
    overrides: Mapping[str, Any],
    methods: Mapping[str, Callable[..., schema.Recipe]],
    allow_remote_code: bool,
) -> Iterator[Check]:
    """The checks, one by one as they are done.

    Args:
        target: a method or recipe file: its models, its terms and its data.
        overrides: settings by key.
        methods: the built-in methods.
        allow_remote_code: let models run Python that comes with them.
    Raises: ConfigError, DataError, ModelError, TeacherError.
    """
    pair = _pair(recipe_io.load(target, {"dtype": "float32"} | dict(overrides), methods=methods), allow_remote_code)
    batch = collate(pair.rows, pair.pad_id).to(pair.runtime.device)
    student, teacher = _logits(pair, batch)
    yield from _at_the_teacher(teacher, pair.tolerance)
    yield from _with_another_teacher(student, teacher)
    yield from _other_arrangements(pair)
    yield from _approximations(student, teacher)
    yield from _outside(pair, batch)


# --- The pair ---------------------------------------------------------------------------------------------------------


def _pair(recipe: schema.Recipe, allow_remote_code: bool) -> Pair:
    *_, recipe = beforehand(recipe)  # the last stage, which makes the result
    stage, runtime = recipe.stage, runtimes.start(recipe.device, recipe.dtype)
    if stage.teacher is None:
        raise ConfigError(f"recipe {recipe.method} has no teacher to compare with", "name a method that has one, kd")
    tokenizer = assembly.student_tokenizer(stage, allow_remote_code)
    data = prepare(stage.data, tokenizer)
    teaching = assembly.load_teaching(stage, tokenizer, runtime, allow_remote_code)
    assert teaching is not None
    calibration = assembly.calibration_rows(data)
    student = assembly.build_student(
        stage, runtime, teaching.vocab_size, calibration, allow_remote_code, teaching=teaching
    )
    rows = [
        replace(row, prompt_ids=row.prompt_ids[-MAX_PROMPT:], response_ids=row.response_ids[:length])
        for row, length in zip(data.train, RESPONSES, strict=False)
    ]
    streams, judges = [], []
    with TemporaryDirectory() as folder:
        for spec in stage.streams:
            looking = Looking(
                student=student.family,
                teacher=teaching.named(spec.teacher).family,
                teacher_name=assembly.model_of(stage, stage.asked_by(spec))[0],
                rows=rows,
                kept=(student.made.get("kept_widths") or {}).get("hidden"),
                tokenizer=tokenizer,
                runtime=runtime,
                folder=Path(folder),
                seed=recipe.seed,
            )
            terms = terms_of(spec, lambda looking=looking: looking)  # type: ignore[misc]
            teacher, judge = asked(spec, teaching, student.family, recipe.seed, places=places_of(terms))
            source = DatasetSource(rows, seed=recipe.seed, pad_id=tokenizer.eos_token_id)
            streams.append(LiveStream(spec, source, teacher, terms))
            judges.append(judge)
    return Pair(runtime, teaching, student, streams, judges, rows, tokenizer.eos_token_id)


@torch.no_grad()
def _logits(pair: Pair, batch: Batch) -> tuple[Tensor, Tensor]:
    """Both models' logits at every response token, ``[pos, vocab]``."""
    with pair.runtime.autocast():
        output, signal = pair.student.family.output(batch), pair.teacher.teacher.signal(batch)
        mask = batch.response_mask
        return output.head(output.hidden[mask]).float(), signal.head(signal.hidden[mask]).float()


# --- Identities -------------------------------------------------------------------------------------------------------


def divergences() -> dict[str, Callable[[Tensor, TeacherLogits], Tensor]]:
    """Every divergence at its recipe's settings; TAID's target half-way."""
    found: dict[str, Callable[[Tensor, TeacherLogits], Tensor]] = {}
    for section in get_args(schema.AnyDivergence):
        settings = section().model_dump(exclude={"name"})
        if "t" in settings:
            settings["t"] = 0.5
        found[section().name] = partial(getattr(objectives, section().name), **settings)
    return found


def _at_the_teacher(teacher: Tensor, tolerance: float) -> Iterator[Check]:
    for name, divergence in divergences().items():
        value, gradient = _value_and_gradient(divergence, teacher, teacher)
        yield Check(f"student = teacher: largest {name}", value.abs().max().item(), tolerance)
        yield Check(f"student = teacher: largest gradient of {name}", gradient.abs().max().item(), tolerance)


def _with_another_teacher(student: Tensor, teacher: Tensor) -> Iterator[Check]:
    """The teacher of the next position is another teacher."""
    for name, divergence in divergences().items():
        _, gradient = _value_and_gradient(divergence, student, teacher)
        _, other = _value_and_gradient(divergence, student, teacher.roll(1, 0))
        change = ((gradient - other).norm() / gradient.norm()).item()
        yield Check(f"another teacher: change of the gradient of {name}", change, 1e-2, at_least=True)


def _value_and_gradient(
    divergence: Callable[[Tensor, TeacherLogits], Tensor], student: Tensor, teacher: TeacherLogits
) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    value = divergence(leaf, teacher)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


# --- Arrangements -----------------------------------------------------------------------------------------------------


def _other_arrangements(pair: Pair) -> Iterator[Check]:
    """The recipe's own loss and the student's whole gradient, however the rows are laid out."""
    whole = collate(pair.rows, pair.pad_id)
    half = len(pair.rows) // 2 or 1
    alone = [collate([row], pair.pad_id) for row in pair.rows]
    whole_only = any(isinstance(t.spec.objective, schema.HiddenCorrelation) for s in pair.streams for t in s.terms)
    halves = [collate(part, pair.pad_id) for part in (pair.rows[:half], pair.rows[half:]) if part]
    loss, gradient = _loss_and_gradient(pair, [whole])
    arrangements: dict[str, tuple[list[Batch], int | None]] = {
        "5 more pads on the left and 3 on the right": ([_padded(whole, pair.pad_id)], None),
        "other tokens in the padding": ([_padded(whole, 1)], None),
        "one row in a micro-batch": (alone, None),
        "two micro-batches, the later first": (halves[::-1], None),
        "7 positions in a chunk": ([whole], 7),
    }
    for what, (batches, chunk_size) in arrangements.items():
        if whole_only and len(batches) > 1:
            continue  # by its definition a correlation is of the micro-batch
        other_loss, other = _loss_and_gradient(pair, batches, chunk_size)
        off = sum((other[name] - gradient[name]).square().sum().item() for name in gradient) ** 0.5
        size = sum(part.square().sum().item() for part in gradient.values()) ** 0.5
        # Where the loss or its gradient all but vanishes, as at agreement, a difference is measured and not a share.
        yield Check(f"{what}: change of the loss", abs(other_loss - loss) / max(abs(loss), SMALL), pair.tolerance)
        yield Check(f"{what}: change of the gradient", off / max(size, SMALL), pair.tolerance)


def _loss_and_gradient(
    pair: Pair, batches: Sequence[Batch], chunk_size: int | None = None
) -> tuple[float, dict[str, Tensor]]:
    family = pair.student.family
    family.zero_grad(set_to_none=True)
    placed = [_as_sampled(batch.to(pair.runtime.device)) for batch in batches]
    micro_batches = []
    for stream, judge in zip(pair.streams, pair.judges, strict=True):
        read = judge(placed) if judge else placed
        micro_batches += [weighed(stream, batch, family, pair.runtime) for batch in read]
    anchor(micro_batches, pair.runtime)
    divide_by = denominators(micro_batches, pair.runtime)
    loss = 0.0
    for micro in micro_batches:
        with pair.runtime.autocast():
            terms = bound(micro, divide_by, pair.runtime, progress=0.5)
            output, inside = run_student(family, family, micro.batch, micro.stream.places)
            matches = [term.match for term in micro.stream.terms]
            total, _ = evaluate(output, inside, micro.ask(), micro.batch, terms, matches, chunk_size)
            total.backward()
        loss += total.item()
    return loss, {name: p.grad.clone() for name, p in family.named_parameters() if p.grad is not None}


def _as_sampled(batch: Batch) -> Batch:
    """The rows as if the student had written them."""
    return replace(batch, importance_weights=torch.ones(batch.response_mask.shape, device=batch.response_mask.device))


def _padded(batch: Batch, fill: int) -> Batch:
    """The same rows with more padding, and ``fill`` wherever there is padding."""

    def wider(ids: Tensor, mask: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
        real = F.pad(mask, (left, right))
        return F.pad(ids, (left, right)).masked_fill(~real, fill), real

    prompt_ids, prompt_mask = wider(batch.prompt_ids, batch.prompt_mask, 5, 0)
    response_ids, response_mask = wider(batch.response_ids, batch.response_mask, 0, 3)
    return Batch(prompt_ids, prompt_mask, response_ids, response_mask, batch.example_ids)


# --- Approximations ---------------------------------------------------------------------------------------------------


def _approximations(student: Tensor, teacher: Tensor) -> Iterator[Check]:
    """The cosine of each approximation's gradient with the exact one, over all positions together."""
    generator = torch.Generator(student.device).manual_seed(0)
    exact = {name: _value_and_gradient(getattr(objectives, name), student, teacher)[1] for name in KLS}
    for k in (8, 64):
        yield _cosine("forward_kl", f"top {k} + tail", exact, student, sparse.top_k(teacher, k))
    yield Check(
        "cosine to forward_kl: top 64 renormalised (as others do)",
        _between(_renormalised_gradient(student, teacher, 64), exact["forward_kl"]),
        note="never done here",
    )
    for draws in (12, 50):
        said = sparse.draw(teacher, draws, generator=generator)
        yield _cosine("forward_kl", f"RS-KD, {draws} draws", exact, student, said)
    yield _cosine("reverse_kl", "teacher's top 64 + tail", exact, student, sparse.top_k(teacher, 64))
    yield _cosine("reverse_kl", "student's top 64 + tail", exact, student, sparse.student_top_k(student, teacher, 64))


KLS = ("forward_kl", "reverse_kl")


def _cosine(name: str, what: str, exact: dict[str, Tensor], student: Tensor, said: TeacherLogits) -> Check:
    _, gradient = _value_and_gradient(getattr(objectives, name), student, said)
    return Check(f"cosine to {name}: {what}", _between(gradient, exact[name]))


def _renormalised_gradient(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """KL between both models' distributions over the teacher's k tokens alone."""
    ids = teacher.topk(k, -1).indices
    gradient = torch.zeros_like(student)
    return gradient.scatter_(-1, ids, student.gather(-1, ids).softmax(-1) - teacher.gather(-1, ids).softmax(-1))


def _between(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def _outside(pair: Pair, batch: Batch) -> Iterator[Check]:
    """Probability on rows that only one of the models has."""
    for whose, family in (("teacher", pair.teacher.teacher.family), ("student", pair.student.family)):
        with torch.no_grad(), pair.runtime.autocast():
            output = family.output(batch)
            mass = mass_outside(output.hidden[batch.response_mask], output.head).mean().item()
        yield Check(f"{whose}'s probability outside the shared vocabulary", mass, 0.01)
