"""The models of a stage: who teaches, who learns, and what of either an earlier stage has made."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from potstill.recipe.holding import Holding
from potstill.recipe.section import Count, Index, Positive, Section
from potstill.recipe.sources import listed

PREVIOUS = "previous"  # the stage before
BASE = "base"  # the student's own weights under its adapter


class Cache(Section):
    """What a teacher has said of a row, kept on disk and read when the row comes again.

    when: auto, where a run comes to its rows more than once; always, for other runs too.
    form: of streams with all logits. bfloat16_states are exact but for their last digits, states are exact, logits are
    for tests. Streams whose signal is top_k or sampled are kept as that.
    """

    shorthand: ClassVar[str | None] = "when"
    when: Literal["auto", "always", "never"] = "never"
    form: Literal["bfloat16_states", "states", "logits"] = "bfloat16_states"
    folder: str | None = None  # one of its own under caches/ where unset


def cache_of(value: Any) -> Any:
    """``cache: auto`` is short for ``{when: auto}``."""
    return {"when": value} if isinstance(value, str) else value


TeacherCache = Annotated[Cache, BeforeValidator(cache_of)]


class Teacher(Holding):
    """A language model that is never trained."""

    shorthand: ClassVar[str | None] = "model"
    kind: Literal["model"] = Field("model", exclude=True)  # what a teacher is that is no stage's student
    model: str = "smollm2-135m-instruct"  # an embedded name, a folder, a .gguf file or a hub id
    revision: str | None = None
    cache: TeacherCache = Cache()


class StageTeacher(Holding):
    """The student that an earlier stage has made, frozen; ``previous`` is the stage before."""

    shorthand: ClassVar[str | None] = "stage"
    kind: Literal["stage"] = "stage"
    stage: str = PREVIOUS
    cache: TeacherCache = Cache()

    @property
    def model(self) -> str:
        """What it is called until its stage is finished and there is a folder."""
        return f"stage:{self.stage}"

    @property
    def revision(self) -> None:
        """None: a folder has none."""


class BaseTeacher(Section):
    """The student's own model with its adapter left out: the same weights, held once."""

    kind: Literal["base"] = "base"
    cache: TeacherCache = Cache()


AnyTeacher = Annotated[Teacher | StageTeacher | BaseTeacher, Field(discriminator="kind")]


def teacher_of(value: Any) -> Any:
    """``teacher: gpt2`` is short for ``{model: gpt2}``, ``teacher: previous`` for ``{stage: previous}``, and
    ``teacher: base`` for ``{kind: base}``."""
    if value == BASE:
        return {"kind": BASE}
    if isinstance(value, str):
        return {"kind": "stage", "stage": PREVIOUS} if value == PREVIOUS else {"kind": "model", "model": value}
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "stage" if "stage" in value else "model", **value}
    return value


class Adapter(Section):
    """Low-rank matrices beside the student's weights: they are trained, and everything else stays as it is.

    Source: Hu et al. 2021, LoRA, arXiv:2106.09685; all linear layers and nf4: Dettmers et al. 2023, QLoRA,
    arXiv:2305.14314.
    """

    shorthand: ClassVar[str | None] = "kind"
    kind: Literal["lora"] = "lora"
    rank: Count = 16  # MiniLLM's public code has 8
    alpha: Positive = 32.0  # MiniLLM's; what the matrices add is scaled by alpha / rank
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0  # on what they read; MiniLLM has 0.1
    # Names of linear layers, as q_proj; where unset all in the model's layers (QLoRA), and never the output embedding.
    target_modules: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] | None = None
    use_rslora: bool = False  # scaled by alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732
    # Linear layers of the frozen model in 4 or 8 bits while it is trained.
    quantise_base: Literal["none", "nf4", "int8"] = "none"


def adapter_of(value: Any) -> Any:
    """``adapter: lora`` is short for ``{kind: lora}``."""
    return {"kind": value} if isinstance(value, str) else value


OptionalAdapter = Annotated[Adapter | None, BeforeValidator(adapter_of)]


class PrunedStudent(Section):
    """Some of a larger model's layers, embedding and head included, and where widths are given some of its channels.

    Of an encoder-decoder model ``keep_layers`` are the decoder's; the encoder keeps as many, or all its layers where
    they are named one by one, unless ``keep_encoder_layers`` says otherwise.
    """

    kind: Literal["pruned"] = "pruned"
    model: str | None = None  # what is cut; the stage's teacher where unset
    keep_layers: Count | Annotated[tuple[Index, ...], Field(min_length=1)] = 10
    keep_encoder_layers: Count | Annotated[tuple[Index, ...], Field(min_length=1)] | None = None
    choose_by: Literal["block_influence", "even"] = "block_influence"  # Men et al. 2024, ShortGPT
    # Widths, all of them where unset: the most active are kept (Muralidharan et al. 2024, Minitron).
    keep_hidden: Count | None = None  # channels of the residual stream
    keep_heads: Count | None = None  # of queries, in each layer
    keep_mlp: Count | None = None  # inner channels of each layer
    freeze_embeddings: bool = True  # they are the teacher's own already, and 45% of a small student
    adapter: OptionalAdapter = None


class PretrainedStudent(Section):
    """A model as it is."""

    shorthand: ClassVar[str | None] = "model"
    kind: Literal["pretrained"] = "pretrained"
    model: str
    revision: str | None = None
    freeze_embeddings: bool = False
    adapter: OptionalAdapter = None


class FreshStudent(Section):
    """A model's architecture and tokenizer with weights drawn anew, by the recipe's seed."""

    kind: Literal["fresh"] = "fresh"
    model: str  # a folder that has a config and a tokenizer, or any other model; its own weights are not read
    revision: str | None = None
    freeze_embeddings: bool = False


class PreviousStudent(Section):
    """The student that the stage before has made, trained further."""

    kind: Literal["previous"] = "previous"
    freeze_embeddings: bool = False
    adapter: OptionalAdapter = None

    @property
    def model(self) -> str:
        """What it is called until that stage is finished and there is a folder."""
        return f"stage:{PREVIOUS}"


Student = Annotated[PrunedStudent | PretrainedStudent | FreshStudent | PreviousStudent, Field(discriminator="kind")]


def student_of(value: Any) -> Any:
    """``student: gpt2`` is short for ``{kind: pretrained, model: gpt2}``, and ``student: previous`` for
    ``{kind: previous}``; the kind may be left out of a pruned one."""
    if value == PREVIOUS:
        return {"kind": PREVIOUS}
    if isinstance(value, str):
        return {"kind": "pretrained", "model": value}
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "pruned", **value}
    if isinstance(value, dict) and value.get("kind") == "fresh" and value.get("adapter"):
        raise ValueError(
            "is fresh, and an adapter leaves its random weights as they are: nothing would be learnt. "
            "Leave adapter out, or name a trained model with student=MODEL"
        )
    if isinstance(value, dict) and value.get("kind") == "pretrained" and "keep_layers" in value:
        model = value.get("model", "MODEL")
        raise ValueError(
            "is a model as it is, and keep_layers is of one that is cut. "
            f"Set student.model={model} beside student.keep_layers, and not student={model}"
        )
    return value
