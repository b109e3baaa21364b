"""Distilling step-by-step: one student learns to answer and, asked with other words, to explain.

    loss = alpha * label loss on "predict: " + prompt  +  (1 - alpha) * rationale loss on "explain: " + prompt

Both are cross-entropy, or with ``kd_weight`` partly a divergence from a teacher's distribution on the same text.
A trained student is asked for the label alone, so inference costs nothing more. Rationales and labels come with the
rows (``data.fields.rationale``), from ``potstill annotate`` (``data.annotations=FILE``), or from the outputs of PaLM
beside the paper's data sets (``data=svamp:train data.annotations=palm``); ``data.labels=llm`` trains on the LLM's
labels, and validation and test stay gold. ``data.subsample=0.25`` takes a quarter of the train rows.

``variant`` is the method or what it has to beat:

    step_by_step             the method
    standard                 the label alone (alpha 1); bit for bit the fine-tuning that ``sft`` does with this prefix
    single_task              rationale and label as one target, rationale first; needs a parser of answers
    shuffled_rationales      each rationale another row's: what is left is not due to explaining this row
    input_reconstruction     the row's own words in place of the rationale
    standard_twice           two batches of labels in each step: as many forwards as the method has

Paper: Hsieh et al. 2023, arXiv:2305.02301, section 3.2, and code (google-research/distilling-step-by-step). Theirs:
alpha 0.5, learning rate 5e-5, batches of 64, up to 10,000 steps, linear decay without warm-up, inputs of 1,024 and
targets of 256 tokens; they evaluate on the test set while training, where we choose the checkpoint by accuracy on
validation rows. The controls are ours: without them the gain over ``standard`` is no evidence that a rationale was
understood. Learning rate, batch and steps here are those of ``sft``, for minutes of two cores.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import (
    Batching,
    Budget,
    Checkpoint,
    Data,
    DatasetSource,
    Divergence,
    Evaluation,
    ForwardKL,
    Fraction,
    LogitsSignal,
    NoSignal,
    Optimizer,
    Prefix,
    PrefixSection,
    PrunedStudent,
    Recipe,
    Stage,
    Stream,
    Teacher,
    Term,
)

LABEL = PrefixSection(text="predict: ", chat="Give only the answer.\n\n")
RATIONALE = PrefixSection(text="explain: ", chat="Explain how to find the answer.\n\n")

Variant = Literal[
    "step_by_step", "standard", "single_task", "shuffled_rationales", "input_reconstruction", "standard_twice"
]


def step_by_step(
    *,
    variant: Variant = "step_by_step",
    alpha: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.5,
    kd_weight: Fraction = 0.0,
    divergence: Divergence = ForwardKL(),
    label_prefix: Prefix = LABEL,
    rationale_prefix: Prefix = RATIONALE,
) -> Recipe:
    """Train on labels and rationales.

    Args:
        variant: the method, or one of its controls.
        alpha: share of the loss that is the label's; the rest is the rationale's.
        kd_weight: share of each loss that is a divergence from the teacher; 0: no teacher is loaded.
        divergence: which.
        label_prefix: words before a prompt that is to be answered; ``.chat``: behind a chat template.
        rationale_prefix: words before a prompt whose answer is to be explained.
    """
    _check(variant, alpha=alpha, kd_weight=kd_weight, divergence=divergence)
    terms = _terms(kd_weight, divergence)
    second = _second(variant, rationale_prefix) if alpha < 1 else None
    streams = [_stream("label", DatasetSource(), terms, alpha if second else 1.0)]
    if second:
        streams.append(_stream(*second, terms, 1 - alpha))
    return Recipe(
        method="step_by_step",
        stages=(
            Stage(
                teacher=Teacher() if kd_weight else None,
                student=PrunedStudent(model=Teacher().model),
                data=Data(
                    prefix=label_prefix, target="rationale_then_label" if variant == "single_task" else "response"
                ),
                streams=tuple(streams),
                optimizer=Optimizer(learning_rate=1e-3),
                batch=Batching(size=2),
                budget=Budget(steps=120),
                checkpoint=Checkpoint(every=60, best_by="accuracy"),
                evaluation=Evaluation(max_examples=40, generate_examples=40, max_new_tokens=64, accuracy="exact"),
            ),
        ),
    )


def _check(variant: Variant, *, alpha: float, kd_weight: float, divergence: Divergence) -> None:
    """Refuse settings that would be passed over. Raises: ValueError."""
    if kd_weight == 0 and divergence != ForwardKL():
        raise ValueError("divergence is of the share kd_weight of the loss, and kd_weight is 0. Set kd_weight")
    if variant in ("standard", "single_task") and alpha != 0.5:
        raise ValueError(f"alpha divides the loss between two streams, and variant {variant} has one. Leave alpha out")


def _second(variant: Variant, prefix: PrefixSection) -> tuple[str, DatasetSource] | None:
    """The stream beside the label's, its name and its source; at alpha 1 it would only take time."""
    if variant in ("standard", "single_task"):
        return None
    if variant == "standard_twice":
        return "label_again", DatasetSource(order=1)
    if variant == "input_reconstruction":
        return "input", DatasetSource(view="input", prefix=prefix)
    return "rationale", DatasetSource(view="rationale", prefix=prefix, shuffled=variant == "shuffled_rationales")


def _terms(kd_weight: float, divergence: Divergence) -> tuple[Term, ...]:
    imitate = Term.model_validate({"objective": "cross_entropy", "coefficient": 1 - kd_weight})
    compare = Term(objective=divergence, coefficient=kd_weight)
    return (imitate,) if kd_weight == 0 else (compare,) if kd_weight == 1 else (imitate, compare)


def _stream(name: str, source: DatasetSource, terms: tuple[Term, ...], share: float) -> Stream:
    """A stream whose terms together count ``share``."""
    scaled = tuple(term.model_copy(update={"coefficient": share * float(term.coefficient)}) for term in terms)  # type: ignore[arg-type]
    taught = any(term.needs_teacher for term in terms)
    return Stream(name=name, source=source, signal=LogitsSignal() if taught else NoSignal(), terms=scaled)
