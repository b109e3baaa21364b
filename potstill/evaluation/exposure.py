"""What a student is like on text it wrote itself: a panel of figures, because each objective wins the one it optimises.

Responses are drawn at temperature 1 from the whole vocabulary. The expectations below are over the model's own
distribution, and under greedy or truncated decoding they would be of something else. Log-probabilities are taken at
every response token, the first and the end token included, over the whole shared vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.evaluation.metrics.diversity import diversity
from potstill.evaluation.metrics.statistics import mean_and_error
from potstill.models.families import Family, evaluating
from potstill.objectives import cross_entropy
from potstill.objectives.chunked import Chunk, select
from potstill.objectives.distributions import kl_between, log_probs
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.writer import LocalWriter
from potstill.teachers.local import LocalTeacher
from potstill.types import StudentOutput

SCORES = ("student_nll", "teacher_nll", "forward_kl", "reverse_kl", "entropy")
# Figures over the student's own samples, and the score each is the mean of.
OWN = {
    "teacher_nll_own_nats": "teacher_nll",
    "reverse_kl_own_nats": "reverse_kl",
    "forward_kl_own_nats": "forward_kl",
    "entropy_own_nats": "entropy",
}


@dataclass(frozen=True)
class Samples:
    """Responses of one model, one to each prompt, as token ids; the end token is there where it was written.

    Raises: ValueError where there is not one response to each prompt.
    """

    prompts: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses to {len(self.prompts)} prompts: give one to each")

    def cut(self, length: int) -> Samples:
        """The first ``length`` tokens of each response."""
        return Samples(self.prompts, tuple(response[:length] for response in self.responses))


def draw_samples(
    writer: Family, prompts: Sequence[Sequence[int]], decoding: Decoding, *, seed: int, slots: int = 8
) -> Samples:
    """One response to each prompt.

    Args:
        writer: put into evaluation mode for the time.
        prompts: token ids, at least one each.
        decoding: for ``exposure``, plain sampling: temperature 1 and nothing cut.
        seed: of the draws. Two models with one seed get the same random numbers at the same prompt and position, so
            their figures are paired.
        slots: responses at a time; changes nothing but time and memory.
    Raises: ModelError where a prompt and its response do not fit the model.
    """
    seeds = torch.randint(2**62, (len(prompts),), generator=torch.Generator().manual_seed(seed)).tolist()
    written = LocalWriter(Single(), [writer], decoding, slots).write(prompts, seeds=seeds)
    return Samples(tuple(map(tuple, prompts)), tuple(response.ids for response in written))


def exposure(
    student: Family,
    teacher: LocalTeacher,
    own: Samples,
    teachers: Samples,
    *,
    batch_size: int = 16,
    pad_id: int = 0,
) -> dict[str, float]:
    """How student and teacher see each other's writing: means over response tokens, in nats.

    ``excess_error_percent`` is (R - l eps) / (l eps) in per cent, where R sums KL(teacher || student) over the
    student's prefixes and l eps over the teacher's. Where the two responses to a prompt differ in length, both sums go
    as far as the shorter one, so that they count the same positions of the same prompts; where all are of length l,
    they are R(l) and l eps(l) of the paper. At the first position both are equal, so responses of one token give 0.

    Args:
        student: put into evaluation mode for the time.
        teacher: what it is compared with; may be the student itself.
        own: the student's responses. teachers: the teacher's, to the same prompts in the same order.
        batch_size: responses at a time. pad_id: any token; changes nothing.
    Returns: ``teacher_nll_own_nats`` (R_llh), ``student_nll_teachers_nats`` (R_cvg), ``reverse_kl_own_nats``,
        ``forward_kl_own_nats`` and ``entropy_own_nats``, each with its standard error over responses as
        ``<name>_stderr``; ``excess_error_percent``, nan where the student is the teacher. Means of no tokens are nan.
    Raises: ValueError where the prompts differ.
    Source: Arora et al. 2022, arXiv:2204.01171 (ExAccErr).
    """
    if own.prompts != teachers.prompts:
        raise ValueError("the student and the teacher answered different prompts: their errors cannot be compared")
    on_own = _scores(student, teacher, own, batch_size, pad_id)
    on_teachers = _scores(student, teacher, teachers, batch_size, pad_id)
    figures: dict[str, float] = {}
    means = [(name, on_own[score], own) for name, score in OWN.items()]
    for name, scores, samples in [*means, ("student_nll_teachers_nats", on_teachers["student_nll"], teachers)]:
        figures[name], figures[f"{name}_stderr"] = _token_mean(scores, samples)
    common = torch.minimum(_lengths(own), _lengths(teachers))
    errors = [_sum_until(scores["forward_kl"], common) for scores in (on_own, on_teachers)]
    return figures | {"excess_error_percent": excess_error(*errors)}


def accumulated_error(
    student: Family,
    teacher: LocalTeacher,
    samples: Samples,
    *,
    length: int,
    batch_size: int = 16,
    pad_id: int = 0,
) -> float:
    """R(length): KL(teacher || student) summed over the first positions of each response, mean over responses, in nats.

    A response that ended before adds nothing after its end, as there is nothing left to say.

    Args:
        student: put into evaluation mode for the time.
        teacher: what it is compared with.
        samples: the student's for R, the teacher's for l eps.
        length: positions, 1 or more.
        batch_size: responses at a time. pad_id: any token; changes nothing.
    Returns: non-negative; nan for no samples.
    Raises: ValueError if length < 1.
    """
    if length < 1:
        raise ValueError(f"an error accumulated over {length} tokens: give a length of 1 or more")
    if not samples.responses:
        return math.nan
    scores = _scores(student, teacher, samples.cut(length), batch_size, pad_id)
    return float(scores["forward_kl"].sum()) / len(samples.responses)


def excess_error(on_own: float, on_teachers: float) -> float:
    """(R - l eps) / (l eps) in per cent: how much the error grows from the teacher's prefixes to the student's own.

    Args:
        on_own: R. on_teachers: l eps, over as many positions.
    Returns: negative where the error is smaller on own prefixes; nan at 0/0, infinite where only ``on_teachers`` is 0.
    """
    if on_teachers == 0:
        return math.nan if on_own == 0 else math.inf
    return 100 * (on_own - on_teachers) / on_teachers


def panel(
    student: Family,
    teacher: LocalTeacher | None,
    teachers: Samples | None,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_id: int,
    seed: int,
    batch_size: int = 16,
    slots: int = 8,
) -> dict[str, float]:
    """All figures of one model on its own samples.

    Args:
        student: what is measured; may be the teacher itself, whose samples are then not drawn again.
        teacher: None where there is none: then only what the responses themselves tell is measured.
        teachers: the teacher's responses to ``prompts``, drawn with ``plain(...)`` and the same seed.
        prompts: token ids of held-out prompts.
        max_new_tokens: where a response is cut. stop_id: what ends one.
        seed: of the draws.
        batch_size: responses measured at a time. slots: responses drawn at a time.
    Returns: the figures of ``exposure`` where there is a teacher, those of ``diversity``, and ``num_responses``.
    Raises: ModelError where a prompt and its response do not fit the model; ValueError where only one of teacher and
        teachers is given, or the teacher answered other prompts.
    """
    if (teacher is None) != (teachers is None):
        raise ValueError("give a teacher together with its samples, or neither")
    if teacher and teachers and teacher.runs(student):
        own = teachers
    else:
        own = draw_samples(student, prompts, plain(max_new_tokens, stop_id), seed=seed, slots=slots)
    figures: dict[str, float] = {}
    if teacher and teachers:
        figures = exposure(student, teacher, own, teachers, batch_size=batch_size, pad_id=stop_id)
    return figures | diversity(own.responses, stop_id) | {"num_responses": len(own.responses)}


def plain(max_new_tokens: int, stop_id: int) -> Decoding:
    """Sampling from the model's own distribution: temperature 1, nothing left out."""
    return Decoding(max_new_tokens, frozenset({stop_id}))


@torch.no_grad()
def _scores(
    student: Family, teacher: LocalTeacher, samples: Samples, batch_size: int, pad_id: int
) -> dict[str, Float[Tensor, "response position"]]:
    """Every score at every response token, 0 after a response's end; float64, on the processor."""
    longest = int(_lengths(samples).max()) if samples.responses else 0
    table = torch.zeros(len(samples.responses), longest, len(SCORES), dtype=torch.float64)
    rows = zip(samples.prompts, samples.responses, strict=True)
    examples = [Tokenised(str(at), *pair, "", "", truncated=False) for at, pair in enumerate(rows)]
    with evaluating(student):
        for start in range(0, len(examples), batch_size):
            batch = collate(examples[start : start + batch_size], pad_id).to(student.model.device)
            signal = teacher.signal(batch)
            # The teacher measured against itself: its states are there already.
            own = teacher.runs(student)
            output = StudentOutput(signal.hidden, signal.head) if own else student.output(batch)
            for _, chunk in select(output, signal, batch, batch.response_mask).chunks():
                places = chunk.places[0].cpu() + start, chunk.places[1].cpu()
                table[places] = _at_tokens(chunk).cpu().double()
    return dict(zip(SCORES, table.unbind(-1), strict=True))


def _at_tokens(chunk: Chunk) -> Float[Tensor, "chunk score"]:
    """SCORES of a few positions, in nats."""
    assert isinstance(chunk.teacher, Tensor)
    log_q, log_p = log_probs(chunk.student_logits), log_probs(chunk.teacher)
    scores = (
        cross_entropy(chunk.student_logits, chunk.target_ids),
        cross_entropy(chunk.teacher, chunk.target_ids),
        kl_between(log_p, log_q),
        kl_between(log_q, log_p),
        torch.special.entr(log_q.exp()).sum(-1),
    )
    return torch.stack(scores, -1)


def _lengths(samples: Samples) -> Int[Tensor, " response"]:
    return torch.tensor([len(response) for response in samples.responses], dtype=torch.long)


def _token_mean(scores: Float[Tensor, "response position"], samples: Samples) -> tuple[float, float]:
    """The mean over tokens and its standard error over responses."""
    counts = _lengths(samples)
    return mean_and_error(scores.sum(1), counts) if counts.any() else (math.nan, math.nan)


def _sum_until(scores: Float[Tensor, "response position"], lengths: Int[Tensor, " response"]) -> float:
    """The sum over each response's first positions, as many as ``lengths`` says."""
    kept = torch.arange(scores.shape[1]) < lengths[:, None]
    return float(scores[kept].sum())
