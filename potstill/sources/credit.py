"""Which sampled tokens get credit: both models read a whole rollout, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from potstill import recipe
from potstill.models.families import Family, evaluating
from potstill.objectives.chunked import select
from potstill.objectives.credit import minillm_advantages
from potstill.objectives.distributions import log_probs
from potstill.teachers.local import LiveTeacher
from potstill.types import Batch, Credit, StudentOutput

Total = Callable[[Sequence[float]], list[float]]  # each number summed over all processes


class LogRatioJudge:
    """Advantages from the rewards log p - log q of the sampled tokens, teacher over student.

    Both models are read as in training, not as while sampling, so the ratio of the first update is 1 (without dropout).

    Args:
        student: who took part in sampling. teacher: who is asked.
        spec: temperature, and how rewards become advantages.
        total: sums numbers over processes, for whitening.
    """

    def __init__(self, student: Family, teacher: LiveTeacher, spec: recipe.PolicyGradient, total: Total = list):
        self._student, self._teacher, self._spec, self._total = student, teacher, spec, total
        self.figures: dict[str, float] = {}

    def __call__(self, rollout: Sequence[Batch]) -> list[Batch]:
        rollout = [batch.to(self._student.model.device) for batch in rollout]
        credits = [self._credit(batch) for batch in rollout]
        if self._spec.advantages.whiten:
            masks = [batch.response_mask for batch in rollout]
            advantages = whitened([credit.advantages for credit in credits], masks, self._total)
            credits = [replace(credit, advantages=own) for credit, own in zip(credits, advantages, strict=True)]
        real = torch.cat([c.advantages[batch.response_mask] for batch, c in zip(rollout, credits, strict=True)])
        self.figures = {"advantage_mean": float(real.mean()), "advantage_rms": float(real.square().mean().sqrt())}
        return [replace(batch, credit=credit) for batch, credit in zip(rollout, credits, strict=True)]

    @torch.no_grad()
    def _credit(self, batch: Batch) -> Credit:
        with evaluating(self._student):
            student = token_logprobs(self._student.output(batch), batch, self._spec.temperature)
        said = self._teacher.signal(batch)
        teacher = token_logprobs(StudentOutput(said.hidden, said.head), batch, self._spec.temperature)
        how = self._spec.advantages.model_dump() | {"whiten": False}
        return Credit(student, minillm_advantages(student, teacher, batch.response_mask, **how))


@torch.no_grad()
def token_logprobs(output: StudentOutput, batch: Batch, temperature: float) -> Float[Tensor, "batch response"]:
    """The log-probability of each of the batch's own tokens, 0 at padding; in at least float32. Constant."""
    positions = select(output, None, batch, batch.response_mask)
    precise = torch.float64 if output.hidden.dtype == torch.float64 else torch.float32
    found = torch.zeros(batch.response_mask.shape, dtype=precise, device=output.hidden.device)
    for _, chunk in positions.chunks():
        log_q = log_probs(chunk.student_logits, temperature)
        found[chunk.places] = log_q.gather(-1, chunk.target_ids[:, None])[:, 0].to(precise)
    return found


def whitened(values: Sequence[Tensor], masks: Sequence[Tensor], total: Total, epsilon: float = 1e-8) -> list[Tensor]:
    """Mean 0 and variance 1 over the real tokens of all parts and processes together; 0 at padding."""
    real = [value[mask].double() for value, mask in zip(values, masks, strict=True)]
    count, summed = total([float(sum(part.numel() for part in real)), float(sum(part.sum() for part in real))])
    mean = summed / max(count, 1.0)
    (squares,) = total([float(sum((part - mean).square().sum() for part in real))])
    scale = (squares / max(count, 1.0) + epsilon) ** -0.5
    return [((value - mean) * scale).masked_fill(~mask, 0.0) for value, mask in zip(values, masks, strict=True)]
