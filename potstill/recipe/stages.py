"""Recipe = ordered Stages; Stage = student, teacher, data, optimizer, budget, and a sum of Streams."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from potstill.recipe.data import Data
from potstill.recipe.models import (
    PREVIOUS,
    Adapter,
    AnyTeacher,
    BaseTeacher,
    PreviousStudent,
    PrunedStudent,
    StageTeacher,
    Student,
    student_of,
    teacher_of,
)
from potstill.recipe.section import Count, Fraction, Index, NonNegative, Positive, Section
from potstill.recipe.sources import ReplaySource, listed, rollout_of
from potstill.recipe.streams import Stream
from potstill.recipe.teachers import check_teachers

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


class Optimizer(Section):
    """AdamW or Adafactor on everything that is not frozen; no weight decay on vectors (biases and norms).

    Adafactor keeps a row and a column of second moments for each matrix and no first ones; its learning rate is the one
    given, of no parameter's own size (relative_step and scale_parameter off, as in Klinge's MiniLLM_Seq2Seq).
    """

    shorthand: ClassVar[str | None] = "name"
    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: Positive = 1e-4
    weight_decay: NonNegative = 0.01  # MiniLLM's SFT and KD runs
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)  # MiniLLM
    epsilon: Positive = 1e-8
    max_grad_norm: Positive = 1.0  # MiniLLM
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.05  # of the budget

    @model_validator(mode="after")
    def _has_its_own_settings(self) -> Self:
        for name in ("betas", "epsilon") if self.name == "adafactor" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of adamw, and name is adafactor. Leave it out")
        return self


class Budget(Section):
    """How long to train: one of steps, epochs, tokens (response tokens), seconds (of training steps), flops or
    compute_of.

    ``flops`` are those of ``potstill.training.compute``: of all models, in training steps. ``compute_of`` names earlier
    stages: as many as they took together.
    """

    one_of: ClassVar[tuple[str, ...]] = ("steps", "epochs", "tokens", "seconds", "flops", "compute_of")
    steps: Count | None = None
    epochs: Positive | None = None
    tokens: Count | None = None
    seconds: Positive | None = None
    flops: Positive | None = None
    compute_of: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        chosen = [key for key in self.one_of if getattr(self, key) is not None]
        if len(chosen) != 1:
            said = " and ".join(chosen) or "none of them"
            raise ValueError(f"a budget is exactly one of {', '.join(self.one_of)}, not {said}. Keep one")
        return self


class Batching(Section):
    """The global batch is the setting; how it is split over processes and micro-batches changes nothing but memory."""

    shorthand: ClassVar[str | None] = "size"
    size: Count = 8  # sequences per optimiser step, over all processes
    micro_size: Count | Literal["auto"] = "auto"  # sequences per forward on one process; auto: at most 8


METRICS_TO_MINIMISE = ("forward_kl_nats", "reverse_kl_nats", "perplexity")
METRICS_TO_MAXIMISE = ("top1_agreement", "acceptance_rate", "rouge_l", "accuracy")
METRICS_OF_ANSWERS = ("rouge_l", "accuracy")  # for which the validation prompts are answered
METRICS_WITHOUT_TEACHER = ("perplexity", *METRICS_OF_ANSWERS)


class Checkpoint(Section):
    """When to save, what to keep, and which validation metric names the best student."""

    shorthand: ClassVar[str | None] = "every"
    every: Count = 50  # steps
    keep_last: Count = 2
    best_by: Literal[
        "forward_kl_nats", "reverse_kl_nats", "top1_agreement", "acceptance_rate", "perplexity", "rouge_l", "accuracy"
    ] = "perplexity"


class Evaluation(Section):
    """What is measured on held-out rows, before and after training.

    ``accuracy``: the share of greedy answers that are right, in the part of the text that ``data.target`` makes the
    answer. exact: the same words, whatever their case; equation: arithmetic of the same value, or a text that ends in
    it. With beams what is called greedy is the best of the beam search; sampled answers know no beams.
    ``leave_out`` is what a grid of many runs can do without: untouched, the student before training; samples, its
    sampled answers and the panel of figures on its own samples.
    """

    max_examples: Count = 128
    generate_examples: Count = 32
    max_new_tokens: Count = 96
    sampling_temperature: Positive = 1.0  # MiniLLM samples at 1; greedy is always reported beside it
    sampling_top_p: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    num_beams: Count = 1  # 1: greedy
    repetition_penalty: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] = 1.0  # 1: none; Keskar 2019
    accuracy: Literal["none", "exact", "equation"] = "none"
    leave_out: Annotated[tuple[Literal["untouched", "samples"], ...], BeforeValidator(listed)] = ()
    batch_size: Count = 16


class Stage(Section):
    """One student, trained once."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "student"
    method: str | None = None  # a label; the recipe's where unset
    teacher: Annotated[AnyTeacher, BeforeValidator(teacher_of)] | None = None
    # Further ones by name, for streams that ask them; held-out figures and the gate compare with ``teacher``.
    teachers: dict[str, Annotated[AnyTeacher, BeforeValidator(teacher_of)]] = Field(default_factory=dict)
    student: Annotated[Student, BeforeValidator(student_of)] = PrunedStudent()
    data: Data = Data()
    streams: Annotated[tuple[Stream, ...], Field(min_length=1)]
    optimizer: Optimizer = Optimizer()
    batch: Batching = Batching()
    budget: Budget
    dropout: bool = True  # false: the student's dropout layers are off while it is trained, as in MiniLLM
    # Keep what enters each layer of the student and compute the rest again for the gradient (Chen et al. 2016).
    gradient_checkpointing: bool = False
    # Lay rows of unlike lengths end to end, so that a causal model computes nothing for padding (Krell 2021): the
    # same up to rounding. auto: on a CPU, where that saves time; always: on any device, wherever there is padding.
    packing: Literal["auto", "always", "never"] = "auto"
    # Stop before training where the teacher is no better than the untouched student, by best_by or else perplexity.
    gate: bool = False
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()

    @property
    def adapter(self) -> Adapter | None:
        """What of the student alone is trained; None where it is trained itself."""
        return getattr(self.student, "adapter", None)

    @property
    def all_teachers(self) -> dict[str | None, AnyTeacher]:
        """Every teacher by the name that streams ask for it by: None for ``teacher``, which is the first."""
        return ({None: self.teacher} if self.teacher else {}) | dict(self.teachers)

    def asked_by(self, stream: Stream) -> AnyTeacher:
        """The teacher that a stream asks, in a stage that has one."""
        return self.all_teachers[stream.teacher]

    @model_validator(mode="after")
    def _adapter_is_there(self) -> Self:
        rollouts = {stream.name: rollout_of(stream.source) for stream in self.streams}
        for name, rollout in rollouts.items() if self.adapter else ():
            if rollout and rollout.engine == "vllm" and rollout.policy.name != "teacher":
                raise ValueError(
                    f"stream {name} has engine vllm, which is not given an adapter's weights. Set engine to local, "
                    "or leave student.adapter out"
                )
        if not isinstance(self.teacher, BaseTeacher):
            return self
        if self.adapter is None:
            raise ValueError(
                "teacher is base, the student with its adapter left out, and the student has none. "
                "Set student.adapter=lora, or name the model with teacher=MODEL"
            )
        if isinstance(self.student, PrunedStudent):
            raise ValueError(
                "teacher is base, and the student is cut: a model with layers missing would teach. "
                "Name a whole one with student=MODEL beside student.adapter, or another teacher"
            )
        return self

    @model_validator(mode="after")
    def _teachers_are_asked(self) -> Self:
        check_teachers(self.teachers, self.teacher, self.streams)
        return self

    @model_validator(mode="after")
    def _gate_has_figures(self) -> Self:
        if self.gate and "untouched" in self.evaluation.leave_out:
            raise ValueError(
                f"stage {self.name} has a gate, which compares with the untouched student, and evaluation.leave_out "
                "leaves that out. Take one of them away"
            )
        return self

    @model_validator(mode="after")
    def _teacher_is_there(self) -> Self:
        if self.checkpoint.best_by == "accuracy" and self.evaluation.accuracy == "none":
            raise ValueError(
                "checkpoint.best_by is accuracy, and evaluation.accuracy none. "
                "Set evaluation.accuracy to exact or equation"
            )
        names = [stream.name for stream in self.streams]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two streams are called {twice}. Give each a name of its own")
        for stream in self.streams:
            if isinstance(stream.source, ReplaySource) and stream.source.capacity < self.batch.size:
                raise ValueError(
                    f"stream {stream.name} replays from {stream.source.capacity} sequences, and a batch has "
                    f"{self.batch.size}. Set capacity to at least the batch"
                )
        if self.teacher:
            return self
        if taught := next((stream for stream in self.streams if stream.signal.name != "none"), None):
            raise ValueError(f"stream {taught.name} asks for a teacher's {taught.signal.name}. Set teacher")
        for stream in self.streams:
            if (rollout := rollout_of(stream.source)) and rollout.policy.asks_teacher:
                raise ValueError(f"stream {stream.name} has policy {rollout.policy.name}. Set teacher")
        if isinstance(self.student, PrunedStudent) and self.student.model is None:
            raise ValueError("a pruned student needs a model to be cut from. Set student.model, or teacher")
        if self.checkpoint.best_by not in METRICS_WITHOUT_TEACHER:
            raise ValueError(
                f"checkpoint.best_by is {self.checkpoint.best_by}, which compares with a teacher. "
                f"Set it to {' or '.join(METRICS_WITHOUT_TEACHER)}"
            )
        return self


class Recipe(Section):
    """Everything a run depends on. The resolved recipe in a run folder re-runs as it is.

    Of several stages one makes the result. The baseline is that one's: it starts from the student that the stage
    starts from, so that the two differ in that stage alone. What came before, both have had. Stages after it are
    beside it: what it is compared with.
    """

    method: str = "custom"  # a label, where stages are given; the built-in method to start from, where they are not
    run: RunName | None = None  # the folder under runs/; <method>-<n> where unset
    seed: Index = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"  # auto: the faster of the first two, measured
    # What lies between the products of terms on logits; auto: where that is measured to be faster, and saves more than
    # it takes.
    compile: Literal["auto", "always", "never"] = "auto"
    baseline: Literal["none", "equal_time_sft"] = "none"
    result: str | None = None  # the stage whose student is the run's; the last one where unset
    reuse_stages: bool = True  # of several: one that another run has made, with the same models and rows, is taken over
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @property
    def result_at(self) -> int:
        """The place of the stage whose student is the result."""
        return next((at for at, stage in enumerate(self.stages) if stage.name == self.result), len(self.stages) - 1)

    @property
    def stage(self) -> Stage:
        """The stage whose student is the result: the only one, the last one, or the one that ``result`` names."""
        return self.stages[self.result_at]

    @field_validator("stages")
    @classmethod
    def _stages_follow(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two stages are called {twice}. Give each a name of its own")
        for word, what in {PREVIOUS: "the one before", "all": "all of them"}.items():
            if word in names:
                raise ValueError(f"a stage is called {word}, which is the word for {what}. Call it otherwise")
        for at, stage in enumerate(stages):
            _check_models(stage, names[:at])
        return stages

    @model_validator(mode="after")
    def _result_is_there(self) -> Self:
        names = [stage.name for stage in self.stages]
        if self.result is not None and self.result not in names:
            raise ValueError(f"result is {self.result}, which is no stage. Name one of {', '.join(names)}")
        return self


def _check_models(stage: Stage, before: list[str]) -> None:
    """Refuse a stage that asks for a student that will not be there."""
    asked = [teacher.stage for teacher in stage.all_teachers.values() if isinstance(teacher, StageTeacher)]
    if not before and (PREVIOUS in asked or isinstance(stage.student, PreviousStudent)):
        raise ValueError(f"stage {stage.name} is the first, and there is no previous one. Name a model")
    if unknown := next((name for name in asked if name not in (PREVIOUS, *before)), None):
        fix = f"Name one of {', '.join(before)}" if before else "Name a model"
        raise ValueError(f"stage {stage.name} has stage {unknown} for a teacher, which is not before it. {fix}")
    if late := next((name for name in stage.budget.compute_of or () if name not in before), None):
        earlier = f"some of {', '.join(before)}" if before else "a number of steps, for it is the first"
        raise ValueError(f"stage {stage.name} has the budget of stage {late}, which is not before it. Name {earlier}")
    if stage.gate and stage.teacher is None:
        raise ValueError(f"stage {stage.name} has a gate for its teacher, and no teacher. Leave gate out")
