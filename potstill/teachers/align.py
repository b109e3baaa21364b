"""Do teacher and student mean the same tokens? Decided by the tokenizers, not by the size of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.data.tokenise import encodes_pairs, frames_texts_alike
from potstill.errors import TeacherError

TEXT_GOES_ACROSS = (
    "let text go across instead: `potstill annotate` with the teacher, then train `sft` or `step_by_step` on what it "
    "wrote"
)


@dataclass(frozen=True)
class SharedVocabulary:
    """The vocabulary both models are compared on.

    ``size`` is the number of logits compared; ``note`` says what was left out, and is empty where nothing was.
    """

    size: int
    note: str


def shared_vocabulary(
    teacher_tokenizer: Any, teacher_rows: int, student_tokenizer: Any, student_rows: int
) -> SharedVocabulary:
    """The vocabulary two models share, or a refusal that says why there is none.

    Embedding rows beyond the tokenizer's last id are padding, often added for speed: they may differ and are left out.

    Args:
        teacher_tokenizer, student_tokenizer: as loaded with each model.
        teacher_rows, student_rows: rows of each output embedding.
    Raises: TeacherError where the tokenizers differ, or an embedding has fewer rows than its tokenizer has ids; and
        where one model is causal, the other encoder-decoder, and prompts tokenised for one are none for the other.
    """
    if difference := tokenizer_difference(teacher_tokenizer, student_tokenizer):
        raise TeacherError(
            f"teacher and student have different tokenizers: {difference}",
            "choose a student of the teacher's family, or cut one from the teacher (student.kind=pruned); "
            f"logits of different tokenizers do not compare. Or {TEXT_GOES_ACROSS}",
        )
    if encodes_pairs(teacher_tokenizer) != encodes_pairs(student_tokenizer) and not frames_texts_alike(
        student_tokenizer
    ):
        kinds = ("encoder-decoder", "causal") if encodes_pairs(teacher_tokenizer) else ("causal", "encoder-decoder")
        raise TeacherError(
            f"the teacher is {kinds[0]} and the student {kinds[1]}, and their tokenizer frames sources and targets "
            "otherwise than a text that goes on: what is tokenised for one, the other has never seen the like of",
            TEXT_GOES_ACROSS,
        )
    needed = max(student_tokenizer.get_vocab().values()) + 1
    for whose, rows in (("teacher", teacher_rows), ("student", student_rows)):
        if rows < needed:
            raise TeacherError(
                f"the {whose}'s output embedding has {rows} rows and its tokenizer {needed} ids",
                "resize the embedding, or use the tokenizer that came with the model",
            )
    size = min(teacher_rows, student_rows)
    note = "" if teacher_rows == student_rows else f"rows from {size} on are padding of the larger and are left out"
    return SharedVocabulary(size, note)


def tokenizer_difference(first: Any, second: Any) -> str:
    """What tells two tokenizers apart, or an empty string where nothing does."""
    ours, theirs = first.get_vocab(), second.get_vocab()
    if ours != theirs:
        differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
        example = min(differing)
        return (
            f"{len(differing)} tokens differ, for instance {example!r} is "
            f"{ours.get(example, 'absent')} in one and {theirs.get(example, 'absent')} in the other"
        )
    if first.eos_token_id != second.eos_token_id:
        return f"the end-of-sequence id is {first.eos_token_id} in one and {second.eos_token_id} in the other"
    probe = "The naïve fox, 12.5% faster!\n\n\tEnd — of 東京 🦊 text."
    if first.encode(probe, add_special_tokens=False) != second.encode(probe, add_special_tokens=False):
        return "they have the same tokens and cut text differently"
    return ""
