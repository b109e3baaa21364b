"""What is kept of a row comes back: exactly where it is said to, within half a step where it is rounded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from potstill.objectives import forward_kl, reverse_kl, sparse
from potstill.teachers.cache.forms import (
    STEPS_PER_NAT,
    DrawsForm,
    Form,
    LogitsForm,
    StatesForm,
    TopKForm,
    bits_for,
    coded,
    decoded,
)
from potstill.types import Dense, Head, Live, Sampled, TeacherSignal, TopK

VOCABULARIES = [
    300,
    49_152,
    65_536,
    65_537,
    131_072,
    151_936,
]  # ids of 16, 17 and 18 bits, and both sides of the bounds


def logits(count: int, vocab: int, scale: float = 3.0) -> Tensor:
    return torch.randn(count, vocab, generator=torch.Generator().manual_seed(vocab + count)) * scale


def there_and_back(form: Form, signal: TeacherSignal, *lengths: int) -> TeacherSignal:
    """Packed as rows of these lengths, and unpacked together."""
    rows, start = [], 0
    for length in lengths:
        rows.append(memoryview(form.pack(signal[slice(start, start + length)])))
        start += length
    return form.unpack(rows, lengths)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_top_k_keeps_ids_exactly_and_log_probabilities_within_half_a_step(vocab: int) -> None:
    said = sparse.top_k(logits(9, vocab), 16)
    said.ids[0, 0] = vocab - 1  # the largest id there is
    back = there_and_back(TopKForm(16, 1.0, vocab), said, 2, 0, 7)
    assert isinstance(back, TopK)
    assert torch.equal(back.ids, said.ids)
    # Rounded by half a step, and then all of a position moved together so that they add up to 1.
    assert (back.log_probs - said.log_probs).abs().max() <= 1.0 / STEPS_PER_NAT
    assert (back.log_tail_mass - said.log_tail_mass).abs().max() <= 1.0 / STEPS_PER_NAT
    total = back.log_probs.exp().sum(-1) + back.log_tail_mass.exp()
    assert torch.allclose(total, torch.ones(9), atol=1e-6)


def test_a_confident_top_k_is_still_a_distribution_and_no_divergence_of_it_is_infinite() -> None:
    """Probabilities that are 1 to the last digit, and others below exp(-32): rounded to 0 they would be infinitely far
    from any student."""
    sharp = torch.tensor([[80.0, 20.0, 0.0, -40.0, -60.0]])
    back = there_and_back(TopKForm(3, 1.0, 5), sparse.top_k(sharp, 3), 1)
    assert isinstance(back, TopK)
    student = torch.zeros(1, 5)
    for divergence in (forward_kl, reverse_kl):
        assert divergence(student, back).isfinite().all()
    assert math.isclose(float(forward_kl(student, back)), math.log(5), rel_tol=1e-3)
    whole = there_and_back(TopKForm(5, 1.0, 5), sparse.top_k(sharp, 5), 1)  # nothing is left: the tail has no mass
    assert isinstance(whole, TopK)
    assert whole.log_tail_mass.isneginf().all()


def test_a_log_probability_is_rounded_to_the_nearest_step() -> None:
    said = torch.linspace(-31.9, 0, 9_999, dtype=torch.float64)
    back = torch.from_numpy(decoded(coded(said))).double()
    assert (back - said).abs().max() <= 0.5 / STEPS_PER_NAT + 32 * 2**-24  # and that of float32 at -32


def test_the_temperature_of_what_was_said_comes_back() -> None:
    """An objective of another one refuses it."""
    scores = logits(4, 300)
    top = there_and_back(TopKForm(5, 2.0, 300), sparse.top_k(scores, 5, temperature=2.0), 4)
    drawn = there_and_back(DrawsForm(5, 2.0, 300, seed=1), sparse.draw(scores, 5, temperature=2.0), 4)
    for said in (top, drawn):
        assert isinstance(said, TopK | Sampled)
        assert said.temperature == 2.0


def test_forms_of_other_bytes_have_other_settings() -> None:
    dtypes = (torch.float32, torch.float64)
    assert len({str(LogitsForm(11, dtype).settings) for dtype in dtypes}) == 2
    assert len({str(StatesForm(head(), dtype, torch.float64).settings) for dtype in dtypes}) == 2
    assert len({str(StatesForm(head(hidden=width), *dtypes).settings) for width in (6, 8)}) == 2


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("draws", [1, 50, 127, 300])
def test_draws_come_back_exactly(vocab: int, draws: int) -> None:
    said = sparse.draw(logits(8, vocab, 0.5), draws, generator=torch.Generator().manual_seed(1))
    said.ids[0, 0] = vocab - 1
    back = there_and_back(DrawsForm(draws, 1.0, vocab, seed=1), said, 3, 1, 0, 4)
    assert isinstance(back, Sampled)
    dense = [torch.zeros(8, vocab).scatter_add_(1, one.ids, one.weights) for one in (said, back)]
    assert torch.equal(*dense)


def test_draws_of_one_token_alone_fit_their_count() -> None:
    """All draws the same: the largest count there is."""
    for draws in (1, 50, 64, 127, 128, 255, 256):
        said = Sampled(torch.tensor([[7]]), torch.ones(1, 1))
        back = there_and_back(DrawsForm(draws, 1.0, 300, seed=1), said, 1)
        assert isinstance(back, Sampled)
        assert (back.ids.tolist(), back.weights.tolist()) == ([[7]], [[1.0]])


def test_sizes_are_those_of_the_issue_of_bytes() -> None:
    said = sparse.top_k(logits(10, 49_152), 64)
    form = TopKForm(64, 1.0, 49_152)
    assert len(form.pack(said)) == 10 * form.bytes_per_token == 2580
    assert TopKForm(64, 1.0, 151_936).bytes_per_token == 258 + 16  # two bits more of each id
    # 50 draws with 12.55 distinct tokens: ids of 16 bits, counts of 6, and a byte that says how many.
    draws = torch.arange(50).remainder(12)[None].expand(10, -1)
    ids, counts = sparse._distinct(draws)
    assert len(DrawsForm(50, 1.0, 49_152, seed=1).pack(Sampled(ids, counts / 50))) == 10 + 10 * 12 * 22 // 8
    assert bits_for(65_536) == 16
    assert bits_for(65_537) == 17


def head(vocab: int = 11, hidden: int = 6, dtype: torch.dtype = torch.float32) -> Head:
    return Head(torch.randn(vocab, hidden, generator=torch.Generator().manual_seed(3)).to(dtype), None, None, vocab)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_are_exact_and_bfloat16_ones_rounded_once(dtype: torch.dtype) -> None:
    own = head(dtype=dtype)
    live = Live(torch.randn(5, 6, dtype=dtype), own)
    exact = there_and_back(StatesForm(own, dtype, dtype), live, 2, 3)
    assert isinstance(exact, Live)
    assert exact.head is own
    assert torch.equal(exact.hidden, live.hidden)
    rounded = there_and_back(StatesForm(own, torch.bfloat16, dtype), live, 5)
    assert isinstance(rounded, Live)
    assert rounded.hidden.dtype == dtype
    assert torch.equal(rounded.hidden, live.hidden.bfloat16().to(dtype))
    assert StatesForm(own, torch.bfloat16, dtype).bytes_per_token == 2 * 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_are_what_the_head_gives(dtype: torch.dtype) -> None:
    own = head(dtype=dtype)
    live = Live(torch.randn(5, 6).to(dtype), own)
    back = there_and_back(LogitsForm(11, dtype), live, 4, 1)
    assert isinstance(back, Dense)
    assert torch.equal(back.logits, torch.cat([own(live.hidden[:4]), own(live.hidden[4:])]))


def test_rows_without_a_token_are_nothing() -> None:
    for form in (StatesForm(head(), torch.bfloat16, torch.float32), LogitsForm(11, torch.float32)):
        assert form.pack(Live(torch.zeros(0, 6), head())) == b""
        back = form.unpack([memoryview(b"")], [0])
        assert next(iter(vars(back).values())).shape[0] == 0
