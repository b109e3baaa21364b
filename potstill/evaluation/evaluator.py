"""What a student kept of its teacher, on text neither was trained on here. Logits exist a chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.evaluation.metrics.statistics import mean_and_error
from potstill.models.families import Family, evaluating
from potstill.objectives import cross_entropy
from potstill.objectives.chunked import Chunk, select
from potstill.objectives.distributions import kl_between, log_probs
from potstill.teachers.local import LocalTeacher, Remembering
from potstill.types import Batch, Head, StudentOutput

COMPARED = ("forward_kl_nats", "reverse_kl_nats", "top1_agreement", "acceptance_rate")


@dataclass(frozen=True)
class Measured:
    """Sums over the response tokens of each example: of its negative log-likelihood, then of COMPARED where there was a
    teacher. ``outside``: of each position, where the model has such rows."""

    sums: Float[Tensor, "example figure"]
    counts: Int[Tensor, " example"]
    outside: Float[Tensor, " pos"] | None

    def figures(self) -> dict[str, float]:
        """What ``measure`` returns."""
        found = _summary(self.sums, self.counts, compared=self.sums.shape[1] > 1)
        return found | ({} if self.outside is None else {"mass_outside": float(self.outside.double().mean())})

    def of_each(self) -> list[dict[str, float]]:
        """Of each example: ``tokens``, and the sums over them, in nats or tokens."""
        names = ("nats", *COMPARED)[: self.sums.shape[1]]
        rows = zip(self.counts.tolist(), self.sums.tolist(), strict=True)
        return [{"tokens": count, **dict(zip(names, sums, strict=True))} for count, sums in rows]


def measure(student: Family, teacher: LocalTeacher | Remembering | None, batches: Iterable[Batch]) -> dict[str, float]:
    """Figures over all response tokens, each the mean over tokens.

    Args:
        student: what is measured; put into evaluation mode for the time.
        teacher: what it is compared with; without one only the perplexity is measured.
        batches: held-out text.
    Returns: ``forward_kl_nats``, ``reverse_kl_nats``, ``top1_agreement`` (share of positions where both models' most
        likely token is the same), ``acceptance_rate`` (expected share of teacher-verified draws kept,
        sum_v min(p_v, q_v)), ``perplexity`` of the text; standard errors over examples as ``<name>_stderr``; counts;
        and ``mass_outside``, the student's probability on rows beyond the compared vocabulary, where it has such rows.
    """
    return examine(student, teacher, batches).figures()


@torch.no_grad()
def examine(student: Family, teacher: LocalTeacher | Remembering | None, batches: Iterable[Batch]) -> Measured:
    """The same of each example. Args: as for ``measure``."""
    device = student.model.device
    sums: list[Tensor] = []  # of each example: [figures]
    counts: list[Tensor] = []
    outside: list[Tensor] = []
    with evaluating(student):
        for batch in batches:
            mask = batch.response_mask.to(device)
            placed = batch.to(device)
            signal = teacher.signal(placed) if teacher else None
            # The teacher's own row of a table: its states are there already.
            own = signal and teacher and teacher.runs(student)
            output = StudentOutput(signal.hidden, signal.head) if own and signal else student.output(placed)
            positions = select(output, signal, placed, mask)
            example_sums = torch.zeros(len(batch), 1 + len(COMPARED) * (teacher is not None), dtype=torch.float64)
            for _, chunk in positions.chunks():
                example_sums.index_add_(0, chunk.places[0].cpu(), _figures(chunk).cpu().double())
            if output.head.weight.shape[0] > output.head.vocab_size:
                outside.append(mass_outside(positions.hidden, output.head).cpu())
            sums.append(example_sums)
            counts.append(batch.response_mask.sum(1))
    return Measured(torch.cat(sums), torch.cat(counts), torch.cat(outside) if outside else None)


def _figures(chunk: Chunk) -> Tensor:
    """[chunk, figures]: the negative log-likelihood, then COMPARED where there is a teacher."""
    figures = [cross_entropy(chunk.student_logits, chunk.target_ids)]
    if isinstance(chunk.teacher, Tensor):
        log_q, log_p = log_probs(chunk.student_logits), log_probs(chunk.teacher)
        figures.append(kl_between(log_p, log_q))
        figures.append(kl_between(log_q, log_p))
        figures.append((log_p.argmax(-1) == log_q.argmax(-1)).float())
        # sum_v min(p, q) = 1 - TV; written so, it is exactly 1 where the two agree.
        figures.append(1 - (log_p.exp() - log_q.exp()).abs().sum(-1) / 2)
    return torch.stack(figures, -1)


def _summary(sums: Tensor, counts: Tensor, *, compared: bool) -> dict[str, float]:
    """Means over tokens with their standard errors over examples: tokens of one example are not independent."""
    means = {}
    for index, name in enumerate(COMPARED if compared else (), start=1):
        means[name], means[f"{name}_stderr"] = mean_and_error(sums[:, index], counts)
    nll, error = mean_and_error(sums[:, 0], counts)
    means["perplexity"] = math.exp(min(nll, 700.0))
    means["perplexity_stderr"] = means["perplexity"] * error  # delta method: d exp(x) = exp(x) dx
    return means | {"num_examples": len(counts), "num_tokens": int(counts.sum())}


@torch.no_grad()
def mass_outside(hidden: Float[Tensor, "pos hidden"], head: Head) -> Float[Tensor, " pos"]:
    """The probability a model gives to rows of its head beyond the vocabulary that is compared; 0 where it has none."""
    if head.weight.shape[0] == head.vocab_size:
        return torch.zeros(len(hidden), device=hidden.device)
    whole = replace(head, vocab_size=head.weight.shape[0])
    parts = [whole(part).float() for part in hidden.split(64)]
    return torch.cat([part.softmax(-1)[:, head.vocab_size :].sum(-1) for part in parts])
