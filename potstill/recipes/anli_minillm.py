"""MiniLLM for an encoder-decoder student on ANLI: fine-tuning on rounds 1, 2 and 3 in turn, then the teacher.

    stages r1, r2, r3   share * cross-entropy of the first token  +  (1 - share) * cross-entropy of the rest
    stage minillm       policy gradient of the sequence-level reverse KL, on text of both models

A response is "label: reason"; its first token all but decides the label. Each of the two means is over its own tokens.
Each stage goes on from the student of the one before, and keeps the checkpoint with the highest accuracy on validation
rows, or a newer one within its standard error. Rows without a reason are left out of training; ``potstill annotate``
fills them (``r1.data.annotations=FILE``). A setting of one stage is reached by its name: ``r2.budget.epochs=1``.

System: Klinge, MiniLLM_Seq2Seq (code without a paper), on Gu et al. 2024, arXiv:2306.08543. From the settings that its
runs recorded: share 0.9, 0.9, 0.8 and learning rate 1e-4, 9e-5, 7e-5 by round, 5 epochs, Adafactor at a constant rate,
batches of 12 x 6, gradient clipped at 0.9, weight decay 0.01, responses of up to 350 tokens, prompts of up to 320, seed
42, sampling at temperature 0.7 and top-p 0.9 with repetition penalty 1.15. From its MiniLLM script: learning rate 7e-5,
100 steps, 2 updates of each batch, prompts and responses of up to 180 tokens, teacher_share 0.2, reward scaling 0.5
(times 2), rewards clipped at 100, no single step, no plain text; the rest is the ``lmops`` preset of ``minillm``. Its
beams of 3 are those with which it wrote reasons.

What is done differently, since the code does otherwise than it says or than it should:

    every position counts            its policy gradient keeps one decoder position and copies it over the response
    the rest is a mean over itself   its mean is over padding up to 350 too: of a reason of 35 tokens a tenth is left
    one prompt in train and test     its test prompts have the options spelled letter by letter
    accuracy is of the best answer   its is of a sampled one, as a mean of batch means, without batches that have an
    of a beam search, over all rows  empty answer; accuracy here is on dev, and a test split is for the end
    a rollout is of a whole batch    its rollouts are of 32 responses and its batches of 12 x 6
    long premises lose their middle  its prompts lose what comes last, which is the hypothesis

Its teacher is a folder whose training is not recorded. A teacher that was not fine-tuned on this form of answer has
little to say about it (theirs: accuracy 0), so name one that was: ``teacher=runs/NAME/student``. Of the student its
own figures say that distillation lowered the accuracy, near chance before and after: they are no target.
"""

from __future__ import annotations

from potstill.recipe import (
    Batching,
    Budget,
    Checkpoint,
    CrossEntropy,
    Data,
    Evaluation,
    Fraction,
    Optimizer,
    PretrainedStudent,
    PreviousStudent,
    Recipe,
    SpanWeighting,
    Stage,
    Stream,
    Student,
    Teacher,
    Term,
)
from potstill.recipes.minillm import minillm

RATES = (1e-4, 9e-5, 7e-5)  # by round
BATCH = Batching(size=72, micro_size=12)


def anli_minillm(
    *,
    student: str = "google/flan-t5-large",
    teacher: str = "google/flan-t5-large",
    train: tuple[str, str, str] = ("anli:r1_train", "anli:r2_train", "anli:r3_train"),
    heldout: tuple[str | None, str | None, str | None] = ("anli:r1_dev", "anli:r2_dev", "anli:r3_dev"),
    label_share: tuple[Fraction, Fraction, Fraction] = (0.9, 0.9, 0.8),
    teacher_share: Fraction = 0.2,
    single_step: bool = False,
) -> Recipe:
    """Fine-tune on three rounds of ANLI, then distil.

    Args:
        student: the model that learns.
        teacher: the one it is distilled from, when it is fine-tuned.
        train: rows of each round; the last stage takes the third's.
        heldout: what each round is measured on; null: a tenth of the round's own rows.
        label_share: of the first token in the loss, by round.
        teacher_share: of the distribution that tokens are drawn from.
        single_step: whether MiniLLM's current step is taken exactly, as the paper has it and this system has not.
    """
    rounds = tuple(
        _round(at, PretrainedStudent(model=student) if at == 0 else PreviousStudent(), train, heldout, label_share[at])
        for at in range(3)
    )
    return Recipe(
        method="anli_minillm",
        seed=42,
        stages=(*rounds, _minillm(teacher, train[2], heldout[2], teacher_share, single_step)),
    )


def _round(
    at: int, student: Student, train: tuple[str, ...], heldout: tuple[str | None, ...], label_share: float
) -> Stage:
    label = Term(objective=CrossEntropy(), name="label", weighting=SpanWeighting(stop=1), coefficient=label_share)
    reason = Term(
        objective=CrossEntropy(),
        name="reason",
        weighting=SpanWeighting(start=1),
        coefficient=round(1 - label_share, 12),
    )
    return Stage(
        name=f"r{at + 1}",
        method="sft",
        student=student,
        data=_data(train[at], heldout[at], max_prompt_tokens=320, max_response_tokens=350),
        streams=(Stream(terms=tuple(term for term in (label, reason) if term.coefficient)),),
        optimizer=_adafactor(RATES[at], max_grad_norm=0.9),
        batch=BATCH,
        budget=Budget(epochs=5),
        checkpoint=Checkpoint(every=100, best_by="accuracy"),
        evaluation=_evaluation(),
    )


def _minillm(teacher: str, train: str, heldout: str | None, teacher_share: float, single_step: bool) -> Stage:
    rollouts = minillm(
        preset="lmops",
        single_step=single_step,
        teacher_share=teacher_share,
        num_updates_per_batch=2,
        batches_per_rollout=1,
        max_new_tokens=180,
    )
    return Stage(
        name="minillm",
        method="minillm",
        teacher=Teacher(model=teacher),
        student=PreviousStudent(),
        data=_data(train, heldout, max_prompt_tokens=180, max_response_tokens=180),
        streams=rollouts.stage.streams,
        optimizer=_adafactor(7e-5, max_grad_norm=1.0),
        batch=BATCH,
        budget=Budget(steps=100),
        dropout=False,
        checkpoint=Checkpoint(every=20, best_by="accuracy"),
        evaluation=_evaluation(),
    )


def _data(train: str, heldout: str | None, *, max_prompt_tokens: int, max_response_tokens: int) -> Data:
    return Data(
        path=train,
        heldout=heldout,
        target="label_then_rationale",
        max_heldout=1200,  # all of a round's dev rows
        max_validation=200,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        long_prompts="shorten",
    )


def _adafactor(learning_rate: float, *, max_grad_norm: float) -> Optimizer:
    return Optimizer(
        name="adafactor",
        learning_rate=learning_rate,
        weight_decay=0.01,
        max_grad_norm=max_grad_norm,
        schedule="constant",
        warmup_fraction=0.0,
    )


def _evaluation() -> Evaluation:
    return Evaluation(
        max_examples=1200,
        generate_examples=1200,
        max_new_tokens=180,
        sampling_temperature=0.7,
        sampling_top_p=0.9,
        num_beams=3,
        repetition_penalty=1.15,
        accuracy="exact",
    )
