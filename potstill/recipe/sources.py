"""Where the sequences of a stream come from: the data, a model that writes now, or both."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from potstill.recipe.schedules import Schedule, Scheduled, bounds
from potstill.recipe.section import Between, Count, Fraction, Index, NonNegative, Section, named
from potstill.recipe.views import Prefix


def listed(value: Any) -> Any:
    """A bare name is a list of one."""
    return (value,) if isinstance(value, str) else value


class Where(Section):
    """Rows of some groups alone. ``data.fields.group`` says which field of a row names its group."""

    group: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(listed)]


class DatasetSource(Section):
    """Prompts and responses from the stage's data in a seeded order, or plain text of its own.

    ``view``: the responses are what ``data.target`` says; rationale: the row's rationale, without those that have none;
    input: the row's own words once more, for a control; plain_text: text of its own, without prompts. ``path`` of plain
    text: a .txt file with a document on each line; a .jsonl, .csv or .parquet file, or a folder of
    such files; a folder of blocks, made by ``potstill data prepare`` or by MiniLLM; or ``datasets:NAME[:SPLIT]``, which
    the ``datasets`` library streams.
    """

    name: Literal["dataset"] = "dataset"
    view: Literal["response", "rationale", "input", "plain_text"] = "response"
    prefix: Prefix | None = None  # of the prompts; that of the data where unset
    shuffled: bool = False  # rationales of other rows: a control
    order: Index = 0  # another number, another order of the rows
    where: Where | None = None  # of the train rows those of some groups; all of them where unset
    path: str | None = None
    field: str = "text"  # of the text in a row
    block_tokens: Annotated[int, Field(strict=True, ge=2)] = 512  # of plain text; MiniLLM's length in all
    streamed: bool = False  # files are read while training goes on, not before; datasets:NAME always is
    buffer_rows: Count = 1000  # rows that are held and shuffled at a time, where streamed
    subset: str | None = None  # of datasets:NAME, where it has several
    revision: str | None = None  # of datasets:NAME: a branch, tag or commit

    @property
    def is_another_view(self) -> bool:
        """Whether rows are shown otherwise than the stage's data has them."""
        return self.view != "response" or self.prefix is not None

    @property
    def is_streamed(self) -> bool:
        """Whether its text is read while training goes on."""
        return self.streamed or (self.path or "").startswith("datasets:")

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if (self.view == "plain_text") != (self.path is not None):
            raise ValueError(
                f"view is {self.view} and path is {self.path}. Plain text needs a path, and only it has one"
            )
        return self

    @model_validator(mode="after")
    def _shuffles_rationales(self) -> Self:
        if self.shuffled and self.view != "rationale":
            raise ValueError(f"shuffled gives rows the rationales of others, and view is {self.view}. Leave it out")
        return self

    @model_validator(mode="after")
    def _fits_path(self) -> Self:
        of_library = (self.path or "").startswith("datasets:")
        wrong = {
            "plain text": () if self.path else ("field", "block_tokens", "streamed"),
            "what is streamed": () if self.streamed or of_library else ("buffer_rows",),
            "path datasets:NAME": () if of_library else ("subset", "revision"),
            "rows": ("prefix", "shuffled", "order", "where") if self.path else (),
        }
        for what, names in wrong.items():
            for name in names:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is only for {what}, and path is {self.path}. Leave it out")
        return self


# --- Who writes -------------------------------------------------------------------------------------------------------


class StudentPolicy(Section):
    """The student as it is now: on-policy."""

    asks_teacher: ClassVar[bool] = False
    name: Literal["student"] = "student"


class TeacherPolicy(Section):
    """The teacher. It never changes, so it writes once, before training, and its text is kept in the run folder."""

    asks_teacher: ClassVar[bool] = True
    name: Literal["teacher"] = "teacher"


class TokenMixedPolicy(Section):
    """Each token from both models' distributions mixed."""

    asks_teacher: ClassVar[bool] = True
    name: Literal["token_mixed"] = "token_mixed"
    teacher_share: Fraction = 0.2  # Gu et al. 2024, MiniLLM: alpha
    mix: Literal["probabilities", "logits"] = "probabilities"


class SpeculativePolicy(Section):
    """The student proposes, and the teacher writes instead where the proposal is not among its ``top_k`` tokens."""

    asks_teacher: ClassVar[bool] = True
    name: Literal["speculative"] = "speculative"
    top_k: Count = 25  # Xu et al. 2025, SKD


AnyPolicy: TypeAlias = StudentPolicy | TeacherPolicy | TokenMixedPolicy | SpeculativePolicy
Policy = Annotated[Annotated[AnyPolicy, Field(discriminator="name")], BeforeValidator(named)]
Filter: TypeAlias = Literal["empty", "unfinished", "repetitive"]
Filters = Annotated[tuple[Filter, ...], BeforeValidator(listed)]


class RolloutSource(Section):
    """Responses that a model writes to the prompts of the stage's data."""

    shorthand: ClassVar[str | None] = "policy"
    name: Literal["rollout"] = "rollout"
    policy: Policy = StudentPolicy()
    max_new_tokens: Count = 128  # TRL's GKD
    temperature: NonNegative = 1.0  # 0: greedy. Gu et al. 2024 and Agarwal et al. 2024 sample at 1
    top_k: Index = 0  # 0: every token
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    no_repeat_ngram: Index = 0  # 0: repeats are allowed
    slots: Count = 8  # sequences written at a time; memory and speed only
    engine: Literal["local", "vllm"] = "local"  # vllm: on the GPU that trains, in one process; not run by us
    batches_per_rollout: Count = 1  # written at once, before any is trained on
    num_updates_per_batch: Count = 1  # times each batch of a rollout is trained on (PPO's epochs)
    samples_per_prompt: Count = 1  # of the teacher's stored text
    filters: Filters = ("empty",)  # of the teacher's stored text, in order

    @model_validator(mode="after")
    def _fits_policy(self) -> Self:
        stored = self.policy.name == "teacher"
        wrong = ("batches_per_rollout", "num_updates_per_batch") if stored else ("samples_per_prompt", "filters")
        for name in wrong:
            if getattr(self, name) != type(self).model_fields[name].default:
                whose = "the teacher writes once, before training" if stored else "it is for the teacher's stored text"
                raise ValueError(f"{name} does not apply to policy {self.policy.name}: {whose}. Leave it out")
        if self.samples_per_prompt > 1 and self.temperature == 0:
            raise ValueError(
                f"temperature is 0, so all {self.samples_per_prompt} responses to a prompt would be the same. "
                "Set samples_per_prompt to 1, or temperature above 0"
            )
        if self.engine == "vllm" and self.policy.name in ("token_mixed", "speculative"):
            raise ValueError(
                f"policy {self.policy.name} needs both models' logits at every token, which vllm keeps to itself. "
                "Set engine to local"
            )
        return self


# --- Both -------------------------------------------------------------------------------------------------------------


class MixtureSource(Section):
    """A rollout with probability ``rollout_share`` at each step, otherwise a batch of the data."""

    name: Literal["mixture"] = "mixture"
    rollout_share: Fraction | Scheduled = 0.5  # Agarwal et al. 2024, GKD: lambda; 0.5 is TRL's default
    rollout: RolloutSource = RolloutSource()

    @field_validator("rollout_share")
    @classmethod
    def _is_a_share(cls, value: float | Schedule) -> float | Schedule:
        low, high = bounds(value)
        if low < 0 or high > 1:
            raise ValueError(f"goes from {low:g} to {high:g}. It is a share: keep it from 0 to 1")
        return value


class ReplaySource(Section):
    """The student's own responses, new or replayed from a buffer, and the data otherwise (DistiLLM).

    At each step the student's text is used with probability phi, and written anew with probability
    phi * (1 - progress) of these, or always until the buffer is full. ``adaptive``: phi starts at ``student_share`` and
    rises by ``step`` whenever the validation loss is ``tolerance`` above what it was at the last rise.
    """

    name: Literal["replay"] = "replay"
    capacity: Count = 1000  # sequences, over all processes; Ko et al. 2024, DistiLLM
    adaptive: bool = True
    student_share: Fraction = 0.0  # phi, at the start
    step: Between = 0.1
    tolerance: NonNegative = 0.1  # nats; their code
    rollout: RolloutSource = RolloutSource()

    @field_validator("rollout")
    @classmethod
    def _student_writes(cls, value: RolloutSource) -> RolloutSource:
        if value.policy.name == "teacher":
            raise ValueError("is the teacher's, whose text never changes. Use source rollout with policy teacher")
        return value

    @model_validator(mode="after")
    def _is_of_some_use(self) -> Self:
        if not self.adaptive and self.student_share == 0:
            raise ValueError("adaptive is false and student_share 0, so nothing would ever be written. Set one of them")
        return self


AnySource: TypeAlias = DatasetSource | RolloutSource | MixtureSource | ReplaySource
Source = Annotated[Annotated[AnySource, Field(discriminator="name")], BeforeValidator(named)]


def rollout_of(source: AnySource) -> RolloutSource | None:
    """The part of a source in which a model writes."""
    match source:
        case RolloutSource():
            return source
        case MixtureSource() | ReplaySource():
            return source.rollout
    return None
