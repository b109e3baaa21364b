"""DistiLLM: a skew divergence, on the data and, as far as validation says it is needed, on the student's own text.

    loss = D(teacher, student), the skew reverse KL at 0.1; on the student's text with probability phi, or the data's

phi starts at 0 and rises by 0.1 whenever the validation loss is 0.1 nats above what it was at the last rise. Of the
student's text, the share phi * (1 - progress) is written anew and the rest replayed from a buffer of 1000 responses,
so that writing costs little. Plain text adds a language-modelling loss, as theirs does with OpenWebText.

Paper: Ko et al. 2024, arXiv:2402.03898, sections 3.1 and 3.2; skew 0.1, capacity 1000, and the schedule are theirs
(the schedule's comparison with the loss at the last rise is the public code's). Their best is the skew reverse KL
("adaptive-srkl"); divergence=skew_forward_kl is the other.
"""

from __future__ import annotations

from potstill.recipe import (
    CrossEntropy,
    DatasetSource,
    Divergence,
    LogitsSignal,
    NonNegative,
    Recipe,
    ReplaySource,
    SkewReverseKL,
    Stream,
    Term,
)
from potstill.recipes.common import check_plain_text, distillation


def distillm(
    *,
    divergence: Divergence = SkewReverseKL(),
    replay: ReplaySource = ReplaySource(),
    plain_text: str | None = None,
    plain_text_coefficient: NonNegative = 1.0,
) -> Recipe:
    """Distil with a skew divergence on the data and replayed text of the student.

    Args:
        divergence: what is minimised.
        replay: the buffer, and how the share of the student's text adapts.
        plain_text: documents in a file (.txt, .jsonl), a folder of blocks, or "datasets:NAME"; none: no such term.
        plain_text_coefficient: of the cross-entropy on it.
    """
    check_plain_text(plain_text, plain_text_coefficient=plain_text_coefficient != 1)
    streams = [Stream(source=replay, signal=LogitsSignal(), terms=(Term(objective=divergence),))]
    if plain_text:
        term = Term(objective=CrossEntropy(), coefficient=plain_text_coefficient)
        source = DatasetSource(view="plain_text", path=plain_text)
        streams.append(Stream(name="plain_text", source=source, terms=(term,)))
    return distillation("distillm", *streams)
