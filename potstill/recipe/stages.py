"""Recipe = ordered Stages; Stage = student, teacher, data, optimizer, budget, and a sum of Streams."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.section import Count, Fraction, Index, NonNegative, Positive, Section
from potstill.recipe.sources import ReplaySource, rollout_of
from potstill.recipe.streams import Stream

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


class Data(Section):
    """Rows of prompts and responses, and how they become tokens."""

    shorthand: ClassVar[str | None] = "path"
    path: str = "starter"  # a .jsonl, .csv or .parquet file, a named split as "cqa:train", a folder of prepared rows or
    # of MiniLLM's .bin/.idx, or "starter": potstill's own
    heldout: str | None = None  # likewise, of its own; where unset, heldout_fraction of the rows is set aside
    format: Literal["prompt_response", "dolly", "chat"] = "prompt_response"
    fields: dict[Literal["prompt", "response", "id"], str] = Field(default_factory=dict)  # our name: the file's name
    template: Literal["auto", "chat", "none"] = "auto"  # auto: the tokenizer's chat template where it has one
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # for choosing the best checkpoint
    max_heldout: Count = 500  # MiniLLM's Dolly test split has 500
    max_validation: Count = 64
    max_prompt_tokens: Count = 256  # MiniLLM
    max_response_tokens: Count = 256  # MiniLLM: 512 in all
    long_prompts: Literal["skip", "shorten"] = "skip"  # over max_prompt_tokens; skip: MiniLLM. shorten: input's middle
    max_bad_rows: Fraction = 0.01  # above this share of quarantined rows the run stops


class Teacher(Section):
    """A causal language model that is never trained."""

    shorthand: ClassVar[str | None] = "model"
    model: str = "smollm2-135m-instruct"  # an embedded name, a folder, a .gguf file or a hub id
    revision: str | None = None


class PrunedStudent(Section):
    """Some of a larger model's layers, embedding and head included."""

    kind: Literal["pruned"] = "pruned"
    model: str | None = None  # what is cut; the stage's teacher where unset
    keep_layers: Count | Annotated[tuple[Index, ...], Field(min_length=1)] = 10
    choose_by: Literal["block_influence", "even"] = "block_influence"  # Men et al. 2024, ShortGPT
    freeze_embeddings: bool = True  # they are the teacher's own already, and 45% of a small student


class PretrainedStudent(Section):
    """A model as it is."""

    shorthand: ClassVar[str | None] = "model"
    kind: Literal["pretrained"] = "pretrained"
    model: str
    revision: str | None = None
    freeze_embeddings: bool = False


Student = Annotated[PrunedStudent | PretrainedStudent, Field(discriminator="kind")]


def student_of(value: Any) -> Any:
    """``student: gpt2`` is short for ``{kind: pretrained, model: gpt2}``; the kind may be left out of a pruned one."""
    if isinstance(value, str):
        return {"kind": "pretrained", "model": value}
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "pruned", **value}
    if isinstance(value, dict) and value.get("kind") == "pretrained" and "keep_layers" in value:
        model = value.get("model", "MODEL")
        raise ValueError(
            "is a model as it is, and keep_layers is of one that is cut. "
            f"Set student.model={model} beside student.keep_layers, and not student={model}"
        )
    return value


class Optimizer(Section):
    """AdamW on everything that is not frozen; no weight decay on vectors (biases and norms)."""

    shorthand: ClassVar[str | None] = "name"
    name: Literal["adamw"] = "adamw"
    learning_rate: Positive = 1e-4
    weight_decay: NonNegative = 0.01  # MiniLLM's SFT and KD runs
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)  # MiniLLM
    epsilon: Positive = 1e-8
    max_grad_norm: Positive = 1.0  # MiniLLM
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.05  # of the budget


class Budget(Section):
    """How long to train: one of steps, epochs, tokens (response tokens) or seconds (of training steps)."""

    one_of: ClassVar[tuple[str, ...]] = ("steps", "epochs", "tokens", "seconds")
    steps: Count | None = None
    epochs: Positive | None = None
    tokens: Count | None = None
    seconds: Positive | None = None

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
METRICS_TO_MAXIMISE = ("top1_agreement", "acceptance_rate", "rouge_l")
METRICS_WITHOUT_TEACHER = ("perplexity", "rouge_l")


class Checkpoint(Section):
    """When to save, what to keep, and which validation metric names the best student."""

    shorthand: ClassVar[str | None] = "every"
    every: Count = 50  # steps
    keep_last: Count = 2
    best_by: Literal[
        "forward_kl_nats", "reverse_kl_nats", "top1_agreement", "acceptance_rate", "perplexity", "rouge_l"
    ] = "perplexity"


class Evaluation(Section):
    """What is measured on held-out rows, before and after training."""

    max_examples: Count = 128
    generate_examples: Count = 32
    max_new_tokens: Count = 96
    sampling_temperature: Positive = 1.0  # MiniLLM samples at 1; greedy is always reported beside it
    batch_size: Count = 16


class Stage(Section):
    """One student, trained once."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "student"
    teacher: Teacher | None = None
    student: Annotated[Student, BeforeValidator(student_of)] = PrunedStudent()
    data: Data = Data()
    streams: Annotated[tuple[Stream, ...], Field(min_length=1)]
    optimizer: Optimizer = Optimizer()
    batch: Batching = Batching()
    budget: Budget
    dropout: bool = True  # false: the student's dropout layers are off while it is trained, as in MiniLLM
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _teacher_is_there(self) -> Self:
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
    """Everything a run depends on. The resolved recipe in a run folder re-runs as it is."""

    method: str = "custom"  # a label, where stages are given; the built-in method to start from, where they are not
    run: RunName | None = None  # the folder under runs/; <method>-<n> where unset
    seed: Index = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"  # auto: the faster of the first two, measured
    baseline: Literal["none", "equal_time_sft"] = "none"
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=1)]  # several: with the stage runner to come

    @property
    def stage(self) -> Stage:
        """The only stage."""
        return self.stages[0]
