"""The defects of a public MiniLLM for T5 (Klinge's MiniLLM_Seq2Seq) that concern how a model is fed: none is ours."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from potstill import objectives, recipe
from potstill.data.collate import collate
from potstill.data.examples import Tokenised
from potstill.models.families import Family, family_of
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed
from potstill.sampling.writer import LocalWriter
from potstill.sources.credit import LogRatioJudge
from potstill.teachers.local import LocalTeacher
from potstill.types import Batch
from tests import tiny

every_kind = pytest.mark.parametrize("kind", ["t5", "bart"])
# Prompts longer and shorter than their responses: a slice made for one sequence is wrong in all of them.
LENGTHS = [(9, 4), (2, 7), (5, 5)]


def family(kind: str, seed: int = 0, **settings: int) -> Family:
    return family_of((tiny.t5 if kind == "t5" else tiny.bart)(seed, **settings).double())


def own_nats(one: Family, batch: Batch, row: int) -> Tensor:
    """-log p of each response token, by the model's own forward with labels."""
    length = int(batch.response_mask[row].sum())
    labels = batch.response_ids[row, :length]
    source = batch.prompt_ids[row][batch.prompt_mask[row]][None]
    logits = one.model(input_ids=source, labels=labels[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def loss(one: Family, batch: Batch, scale: Tensor) -> Tensor:
    term = BoundTerm("nll", partial(objectives.cross_entropy), "tokens", 1.0, scale)
    return evaluate_terms(one.output(batch), None, batch, [term])[0]


@every_kind
def test_each_response_token_is_scored_at_its_own_position(kind: str) -> None:
    """There one position, what a slice for one sequence leaves of the decoder's, was broadcast to the whole answer."""
    one, batch = family(kind), tiny.batch(LENGTHS, extra_left=1)
    for row in range(len(LENGTHS)):
        expected = own_nats(one, batch, row)
        for at in range(len(expected)):
            scale = torch.zeros(batch.response_ids.shape, dtype=torch.float64)
            scale[row, at] = 1
            assert loss(one, batch, scale).item() == pytest.approx(expected[at].item(), abs=1e-9)
        assert expected.unique().numel() == len(expected)


@every_kind
def test_nothing_is_shifted_twice_and_the_prompts_mask_is_none_of_the_responses(kind: str) -> None:
    """There log-probabilities were masked with the encoder's mask, and responses kept their start token as a label."""
    one = family(kind)
    batch = tiny.batch(LENGTHS, extra_left=2, extra_right=1)
    found = loss(one, batch, batch.response_mask.double())
    expected = torch.stack([own_nats(one, batch, row).sum() for row in range(len(LENGTHS))]).sum()
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    one.zero_grad()
    found.backward()
    ours = [p.grad.clone() for p in one.parameters() if p.grad is not None]
    one.zero_grad()
    expected.backward()
    for mine, theirs in zip(ours, (p.grad for p in one.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # T5's norms compute in float32


@every_kind
def test_what_was_written_is_what_is_trained_on_token_for_token(kind: str) -> None:
    """There start tokens and separators were labels. The probability of writing a token is that of training on it."""
    student = family(kind, 3)
    end = student.model.config.eos_token_id
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
    writer = LocalWriter(Mixed(0.0), [student, family(kind, 4)], Decoding(12, frozenset({end}), temperature=1.0), 2)
    written = writer.write(prompts, seeds=[1, 2, 3])
    rows = [
        Tokenised(str(n), tuple(p), r.ids, "", "", not r.finished)
        for n, (p, r) in enumerate(zip(prompts, written, strict=True))
    ]
    batch = collate(rows, end)
    assert batch.num_response_tokens == sum(len(response.ids) for response in written)
    for row, response in enumerate(written):
        nats = own_nats(student, batch, row)
        assert [-value for value in nats.tolist()] == pytest.approx(response.student_logprobs, abs=1e-9)
    batch = replace(batch, importance_weights=torch.ones(batch.response_ids.shape, dtype=torch.float64))
    judged = LogRatioJudge(student, LocalTeacher(family(kind, 4)), recipe.PolicyGradient())([batch])[0]
    assert judged.credit is not None
    for row, response in enumerate(written):
        behaviour = judged.credit.behaviour_logprobs[row]
        assert behaviour[: len(response.ids)].tolist() == pytest.approx(response.student_logprobs, abs=1e-9)
        assert not behaviour[len(response.ids) :].any()


@every_kind
def test_a_teacher_reads_the_prompt_with_its_own_encoder(kind: str) -> None:
    """There the teacher was given the student's encoder output. Here it has other layers, and its own say."""
    student, teacher = family(kind, 3, layers=1), family(kind, 4, layers=3)
    end = student.model.config.eos_token_id
    prompts = [[5, 6, 7], [8, 9]]
    written = LocalWriter(Mixed(1.0), [student, teacher], Decoding(8, frozenset({end})), 2).write(prompts, seeds=[1, 2])
    rows = [Tokenised("x", tuple(p), r.ids, "", "", False) for p, r in zip(prompts, written, strict=True)]
    batch = collate(rows, end)
    signal = LocalTeacher(teacher).signal(batch)
    scores = signal.head(signal.hidden).log_softmax(-1).gather(-1, batch.response_ids[..., None])[..., 0]
    for row, response in enumerate(written):
        assert response.behaviour_logprobs == pytest.approx(
            [-n for n in own_nats(teacher, batch, row).tolist()], abs=1e-9
        )
        assert scores[row, : len(response.ids)].tolist() == pytest.approx(response.behaviour_logprobs, abs=1e-9)
        assert response.student_logprobs != pytest.approx(response.behaviour_logprobs, abs=1e-2)
