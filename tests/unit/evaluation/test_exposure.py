"""The figures on own samples, against sums over every response that a tiny model can write."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.evaluation.exposure import (
    Samples,
    accumulated_error,
    draw_samples,
    excess_error,
    exposure,
    panel,
    plain,
)
from potstill.evaluation.metrics.statistics import mean_and_error
from potstill.models.families import Causal
from potstill.run import MODELS, Run
from potstill.teachers.local import LocalTeacher
from tests import tiny

VOCAB, STOP, LONGEST = 4, 3, 3
PROMPTS = ((1, 2), (2, 0, 1, 1))
WRITTEN = tuple(
    response
    for length in range(1, LONGEST + 1)
    for response in itertools.product(range(VOCAB), repeat=length)
    if STOP not in response[:-1] and (length == LONGEST or response[-1] == STOP)
)  # all responses there are: they end in the end token, or are cut


@pytest.fixture(scope="module")
def student() -> Causal:
    return Causal(tiny.llama(0, layers=1, vocab=VOCAB).double())


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    return LocalTeacher(Causal(tiny.llama(1, layers=2, vocab=VOCAB).double()))


def steps(family: Causal, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """The log-probabilities of each of a response's tokens and its rivals, from the model's own forward."""
    with torch.no_grad():
        logits = family.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def nll(family: Causal, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    return -sum(float(step[token]) for step, token in zip(steps(family, prompt, response), response, strict=True))


def kl(log_a: Tensor, log_b: Tensor) -> float:
    return float((log_a.exp() * (log_a - log_b)).sum())


def error_by_prefixes(student: Causal, teacher: Causal, writer: Causal, length: int) -> float:
    """R(length) as it is written down: a sum over positions of the expectation over prefixes that have not ended."""
    total = 0.0
    for prompt in PROMPTS:
        for before in range(length):
            for prefix in itertools.product([token for token in range(VOCAB) if token != STOP], repeat=before):
                weight = math.exp(-nll(writer, prompt, prefix)) if prefix else 1.0
                at = (*prefix, 0)  # the token after the prefix is not looked at
                total += weight * kl(steps(teacher, prompt, at)[-1], steps(student, prompt, at)[-1])
    return total / len(PROMPTS)


def expected_error(student: Causal, teacher: LocalTeacher, writer: Causal, length: int) -> float:
    """R(length) as the code has it, over all responses by their probability."""
    total = 0.0
    for prompt, response in itertools.product(PROMPTS, WRITTEN):
        found = accumulated_error(student, teacher, Samples((prompt,), (response,)), length=length)
        total += math.exp(-nll(writer, prompt, response)) * found
    return total / len(PROMPTS)


def test_the_responses_listed_are_all_there_are(student: Causal) -> None:
    for prompt in PROMPTS:
        assert sum(math.exp(-nll(student, prompt, response)) for response in WRITTEN) == pytest.approx(1, abs=1e-12)


# --- exact sums -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_accumulated_error_is_the_sum_over_prefixes(student: Causal, teacher: LocalTeacher, length: int) -> None:
    for writer in (student, teacher.family):
        found = expected_error(student, teacher, writer, length)
        assert found == pytest.approx(error_by_prefixes(student, teacher.family, writer, length), abs=1e-12)


def test_the_excess_error_is_0_at_the_first_token_and_not_after(student: Causal, teacher: LocalTeacher) -> None:
    own, teachers = (
        [expected_error(student, teacher, writer, length) for length in (1, 2, 3)]
        for writer in (student, teacher.family)
    )
    first, second, third = map(excess_error, own, teachers)
    assert first == pytest.approx(0, abs=1e-10)
    assert min(abs(second), abs(third)) > 1
    assert third == pytest.approx(100 * (own[2] / teachers[2] - 1), rel=1e-9)


@pytest.mark.parametrize(
    ("figure", "writer", "expected"),
    [
        ("teacher_nll_own_nats", "student", lambda q, p: p),
        ("student_nll_teachers_nats", "teacher", lambda q, p: q),
        ("reverse_kl_own_nats", "student", lambda q, p: p - q),
        ("entropy_own_nats", "student", lambda q, p: q),
    ],
)
def test_figures_add_up_to_those_of_whole_responses(
    student: Causal, teacher: LocalTeacher, figure: str, writer: str, expected: Any
) -> None:
    """The chain rule: what a figure is of a response is the sum over its tokens, in expectation under its writer.

    ``q`` and ``p`` are the negative log-likelihoods of a whole response under student and teacher.
    """
    by_tokens = by_responses = 0.0
    for prompt, response in itertools.product(PROMPTS, WRITTEN):
        samples = Samples((prompt,), (response,))
        q, p = nll(student, prompt, response), nll(teacher.family, prompt, response)
        weight = math.exp(-(q if writer == "student" else p))
        by_tokens += weight * len(response) * exposure(student, teacher, samples, samples)[figure]
        by_responses += weight * expected(q, p)
    assert by_tokens == pytest.approx(by_responses, abs=1e-12)
    assert by_responses > 0.1


# --- means over a set of samples --------------------------------------------------------------------------------------

OWN = Samples((*PROMPTS, (1,)), ((0, 1, 2), (3,), (1, 3)))
TEACHERS = Samples((*PROMPTS, (1,)), ((2, 3), (1, 0, 3), (0, 2)))


def test_means_are_over_tokens_and_errors_over_responses(student: Causal, teacher: LocalTeacher) -> None:
    found = exposure(student, teacher, OWN, TEACHERS)
    pairs = {
        "teacher_nll_own_nats": [nll(teacher.family, *pair) for pair in zip(OWN.prompts, OWN.responses, strict=True)],
        "student_nll_teachers_nats": [
            nll(student, *pair) for pair in zip(TEACHERS.prompts, TEACHERS.responses, strict=True)
        ],
        "forward_kl_own_nats": [
            sum(map(kl, steps(teacher.family, *pair), steps(student, *pair)))
            for pair in zip(OWN.prompts, OWN.responses, strict=True)
        ],
    }
    for name, sums in pairs.items():
        lengths = [len(response) for response in (TEACHERS if "teachers" in name else OWN).responses]
        mean, error = mean_and_error(torch.tensor(sums, dtype=torch.float64), torch.tensor(lengths))
        assert found[name] == pytest.approx(mean, abs=1e-12)
        assert found[f"{name}_stderr"] == pytest.approx(error, abs=1e-12)


def test_the_excess_error_goes_as_far_as_the_shorter_response(student: Causal, teacher: LocalTeacher) -> None:
    sums = []
    for samples in (OWN, TEACHERS):
        total = 0.0
        for prompt, response, common in zip(samples.prompts, samples.responses, (2, 1, 2), strict=True):
            errors = map(kl, steps(teacher.family, prompt, response), steps(student, prompt, response))
            total += sum(itertools.islice(errors, common))
        sums.append(total)
    found = exposure(student, teacher, OWN, TEACHERS)["excess_error_percent"]
    assert found == pytest.approx(100 * (sums[0] - sums[1]) / sums[1], abs=1e-9)
    assert abs(found) > 0.1


def test_responses_of_one_token_have_no_excess_error(student: Causal, teacher: LocalTeacher) -> None:
    found = exposure(student, teacher, OWN.cut(1), TEACHERS.cut(1))
    assert found["excess_error_percent"] == pytest.approx(0, abs=1e-10)
    assert found["forward_kl_own_nats"] > 0.01


@pytest.mark.parametrize(("batch_size", "pad_id"), [(1, 0), (2, 3), (3, 2)])
def test_padding_and_batches_change_nothing(
    student: Causal, teacher: LocalTeacher, batch_size: int, pad_id: int
) -> None:
    expected = exposure(student, teacher, OWN, TEACHERS)
    found = exposure(student, teacher, OWN, TEACHERS, batch_size=batch_size, pad_id=pad_id)
    assert found == pytest.approx(expected, abs=1e-12)
    error = accumulated_error(student, teacher, OWN, length=2, batch_size=batch_size, pad_id=pad_id)
    assert error == pytest.approx(accumulated_error(student, teacher, OWN, length=2), abs=1e-12)


def test_a_teacher_on_its_own_samples(teacher: LocalTeacher) -> None:
    """Also as a second model with the same weights, which is measured the long way."""
    for student in (teacher.family, Causal(tiny.llama(1, layers=2, vocab=VOCAB).double())):
        found = exposure(student, teacher, OWN, OWN)
        assert math.isnan(found["excess_error_percent"])
        assert found["reverse_kl_own_nats"] == found["forward_kl_own_nats"] == 0
        assert found["teacher_nll_own_nats"] == found["student_nll_teachers_nats"] > 0


def test_an_error_on_nothing_is_negative_infinite_or_not_a_number() -> None:
    assert excess_error(3.0, 2.0) == pytest.approx(50)
    assert excess_error(1.0, 2.0) == pytest.approx(-50)
    assert excess_error(1.0, 0.0) == math.inf
    assert math.isnan(excess_error(0.0, 0.0))


def test_no_tokens_are_not_a_number(student: Causal, teacher: LocalTeacher) -> None:
    for nothing in (Samples((), ()), Samples(PROMPTS, ((), ()))):
        assert all(math.isnan(figure) for figure in exposure(student, teacher, nothing, nothing).values())
    assert math.isnan(accumulated_error(student, teacher, Samples((), ()), length=1))


def test_samples_that_do_not_fit_are_refused(student: Causal, teacher: LocalTeacher) -> None:
    with pytest.raises(ValueError, match="one to each"):
        Samples(PROMPTS, ((1,),))
    with pytest.raises(ValueError, match="different prompts"):
        exposure(student, teacher, OWN, Samples(OWN.prompts[::-1], TEACHERS.responses))
    with pytest.raises(ValueError, match="length of 1"):
        accumulated_error(student, teacher, OWN, length=0)
    with pytest.raises(ValueError, match="or neither"):
        panel(student, teacher, None, PROMPTS, max_new_tokens=2, stop_id=STOP, seed=0)


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_draws_come_from_the_models_own_distribution(student: Causal) -> None:
    """The mean negative log-likelihood of draws against the exact entropy, within four standard errors."""
    prompt, count = PROMPTS[1], 2000
    exact = [nll(student, prompt, response) for response in WRITTEN]
    entropy = sum(math.exp(-value) * value for value in exact)
    deviation = math.sqrt(sum(math.exp(-value) * (value - entropy) ** 2 for value in exact))
    drawn = draw_samples(student, [prompt] * count, plain(LONGEST, STOP), seed=1, slots=count)
    known = dict(zip(WRITTEN, exact, strict=True))
    mean = sum(known[response] for response in drawn.responses) / count
    assert abs(mean - entropy) < 4 * deviation / math.sqrt(count)


def test_draws_depend_on_the_seed_and_not_on_the_slots(student: Causal) -> None:
    prompts = [*PROMPTS, (0,), (2, 2, 2)] * 4
    one, many = (draw_samples(student, prompts, plain(6, STOP), seed=5, slots=slots) for slots in (1, 8))
    assert one == many
    assert one.prompts == tuple(prompts)
    assert one != draw_samples(student, prompts, plain(6, STOP), seed=6)
    assert len({one.responses[at] for at in range(0, len(prompts), 4)}) > 1  # each prompt has numbers of its own


def test_drawing_and_measuring_leave_dropout_as_it_was() -> None:
    student, teacher = Causal(tiny.gpt2(dropout=0.5)).train(), LocalTeacher(Causal(tiny.gpt2(1)))
    first, second = (draw_samples(student, [(5, 6)], plain(8, 0), seed=1) for _ in range(2))
    assert first == second
    assert exposure(student, teacher, first, first) == pytest.approx(
        exposure(student, teacher, first, first), nan_ok=True
    )
    assert student.training


# --- the panel --------------------------------------------------------------------------------------------------------

COMPARED = {
    "teacher_nll_own_nats",
    "student_nll_teachers_nats",
    "reverse_kl_own_nats",
    "forward_kl_own_nats",
    "entropy_own_nats",
}
ALONE = {
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "self_bleu",
    "repeated_4gram_rate",
    "response_tokens_mean",
    "finished_share",
    "num_responses",
}


def test_the_panel_is_of_the_models_own_samples(student: Causal, teacher: LocalTeacher) -> None:
    teachers = draw_samples(teacher.family, PROMPTS, plain(5, STOP), seed=2)
    own = draw_samples(student, PROMPTS, plain(5, STOP), seed=2)
    found = panel(student, teacher, teachers, PROMPTS, max_new_tokens=5, stop_id=STOP, seed=2)
    assert set(found) == COMPARED | {f"{name}_stderr" for name in COMPARED} | {"excess_error_percent"} | ALONE
    expected = exposure(student, teacher, own, teachers)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found["num_responses"] == len(PROMPTS)
    ended = [response[-1] == STOP for response in own.responses]
    assert found["finished_share"] == sum(ended) / len(ended)
    assert found["response_tokens_mean"] == (sum(map(len, own.responses)) - sum(ended)) / len(ended)


def test_the_teachers_own_column(teacher: LocalTeacher) -> None:
    teachers = draw_samples(teacher.family, PROMPTS, plain(5, STOP), seed=2)
    found = panel(teacher.family, teacher, teachers, PROMPTS, max_new_tokens=5, stop_id=STOP, seed=2)
    assert found["reverse_kl_own_nats"] == 0
    assert found["teacher_nll_own_nats"] == found["student_nll_teachers_nats"]
    assert math.isnan(found["excess_error_percent"])


def test_without_a_teacher_the_responses_speak_for_themselves(student: Causal) -> None:
    found = panel(student, None, None, PROMPTS, max_new_tokens=5, stop_id=STOP, seed=2)
    assert set(found) == ALONE


def test_a_run_can_keep_it(student: Causal, tmp_path: Path) -> None:
    figures = panel(student, None, None, PROMPTS, max_new_tokens=5, stop_id=STOP, seed=2)
    Run(tmp_path).write(f"panel/{MODELS[2]}", figures)
    assert Run(tmp_path).read(f"panel/{MODELS[2]}") == pytest.approx(figures, nan_ok=True)
