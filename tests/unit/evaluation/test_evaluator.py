"""What is measured, against sums over whole logits in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from potstill.evaluation.evaluator import COMPARED, examine, measure
from potstill.evaluation.metrics.statistics import mean_and_error
from potstill.models.families import Causal
from potstill.teachers.local import LocalTeacher, Remembering
from tests import tiny

LENGTHS = [(3, 9), (7, 1), (1, 14), (5, 6)]


def pair() -> tuple[Causal, LocalTeacher]:
    return Causal(tiny.llama(0, layers=2).double()), LocalTeacher(Causal(tiny.llama(1).double()))


def test_figures_are_token_means_over_all_batches() -> None:
    student, teacher = pair()
    batches = [tiny.batch(LENGTHS[:2], extra_right=2), tiny.batch(LENGTHS[2:], seed=1, extra_left=3)]
    found = measure(student, teacher, batches)
    sums = dict.fromkeys(("forward", "reverse", "agree", "accept", "nll"), 0.0)
    for batch in batches:
        mask = batch.response_mask
        q = student.head(student(batch))[mask].softmax(-1)
        p = teacher.family.head(teacher.family(batch))[mask].softmax(-1)
        sums["forward"] += (p * (p / q).log()).sum().item()
        sums["reverse"] += (q * (q / p).log()).sum().item()
        sums["agree"] += (p.argmax(-1) == q.argmax(-1)).sum().item()
        sums["accept"] += torch.minimum(p, q).sum().item()
        sums["nll"] -= q.gather(-1, batch.response_ids[mask][:, None]).log().sum().item()
    count = sum(r for _, r in LENGTHS)
    assert found["forward_kl_nats"] == pytest.approx(sums["forward"] / count, abs=1e-12)
    assert found["reverse_kl_nats"] == pytest.approx(sums["reverse"] / count, abs=1e-12)
    assert found["top1_agreement"] == pytest.approx(sums["agree"] / count, abs=1e-12)
    assert found["acceptance_rate"] == pytest.approx(sums["accept"] / count, abs=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(sums["nll"] / count), rel=1e-12)
    assert (found["num_examples"], found["num_tokens"]) == (4, count)


def test_a_teacher_measured_against_itself() -> None:
    _, teacher = pair()
    found = measure(teacher.family, Remembering(teacher), [tiny.batch(LENGTHS)])
    assert found["forward_kl_nats"] == found["reverse_kl_nats"] == 0
    assert found["top1_agreement"] == found["acceptance_rate"] == 1


def test_without_a_teacher_only_the_text_is_measured() -> None:
    student, _ = pair()
    found = measure(student, None, [tiny.batch(LENGTHS)])
    assert set(found) == {"perplexity", "perplexity_stderr", "num_examples", "num_tokens"}


def test_the_error_of_the_perplexity_is_that_of_the_mean_times_it() -> None:
    student, _ = pair()
    measured = examine(student, None, [tiny.batch(LENGTHS)])
    mean, error = mean_and_error(measured.sums[:, 0], measured.counts)
    assert measured.figures()["perplexity_stderr"] == pytest.approx(math.exp(mean) * error)


def test_measuring_leaves_dropout_as_it_was() -> None:
    student = Causal(tiny.gpt2(dropout=0.5)).train()
    first, second = (measure(student, None, [tiny.batch(LENGTHS)])["perplexity"] for _ in range(2))
    assert first == second
    assert student.training


def test_a_remembered_answer_is_the_teachers_own_and_memory_is_bounded() -> None:
    _, teacher = pair()
    calls = []
    own = teacher.signal
    teacher.signal = lambda batch: (calls.append(1), own(batch))[1]  # type: ignore[method-assign]
    batch = tiny.batch(LENGTHS)
    remembering = Remembering(teacher)
    first, second = remembering.signal(batch), remembering.signal(batch)
    assert len(calls) == 1
    assert torch.equal(first.hidden, second.hidden)
    forgetful = Remembering(teacher, max_bytes=10)
    forgetful.signal(batch), forgetful.signal(batch)
    assert len(calls) == 3


def test_standard_error_is_over_examples() -> None:
    """Equal counts: the classic standard error of the mean of example means."""
    means = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    counts = torch.full((4,), 5)
    mean, error = mean_and_error(means * counts, counts)
    assert mean == pytest.approx(4.0)
    assert error == pytest.approx(means.std().item() / 2)
    assert math.isnan(mean_and_error(means[:1], counts[:1])[1])


def test_the_sums_of_each_example_make_the_figures() -> None:
    student, teacher = pair()
    measured = examine(student, teacher, [tiny.batch(LENGTHS[:2]), tiny.batch(LENGTHS[2:], seed=1)])
    each, figures = measured.of_each(), measured.figures()
    assert [row["tokens"] for row in each] == [response for _, response in LENGTHS]
    tokens = sum(row["tokens"] for row in each)
    for name in COMPARED:
        assert sum(row[name] for row in each) / tokens == pytest.approx(figures[name], rel=1e-12)
    assert math.exp(sum(row["nats"] for row in each) / tokens) == pytest.approx(figures["perplexity"], rel=1e-12)
    assert set(examine(student, None, [tiny.batch(LENGTHS)]).of_each()[0]) == {"tokens", "nats"}


def test_probability_beyond_the_compared_vocabulary_is_measured() -> None:
    """As where a large model has 128 padded rows more than its small sister: cut on both sides, and the loss said."""
    batch = tiny.batch(LENGTHS)
    batch = replace(batch, response_ids=batch.response_ids % 290)
    wide = tiny.llama(1, tied=False).double()
    student, teacher = Causal(tiny.llama(0, layers=2).double(), 290), LocalTeacher(Causal(wide, 290))
    found = measure(teacher.family, teacher, [batch])
    logits = wide.lm_head(teacher.family(batch))[batch.response_mask]
    assert found["mass_outside"] == pytest.approx(logits.softmax(-1)[:, 290:].sum(-1).mean().item(), rel=1e-6)
    assert 0 < found["mass_outside"] < 1
    assert found["forward_kl_nats"] == 0
    assert measure(student, teacher, [batch])["mass_outside"] > 0
    assert "mass_outside" not in measure(Causal(wide), LocalTeacher(Causal(wide)), [batch])
