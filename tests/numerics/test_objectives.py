"""Every objective against its closed form, in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill import objectives, recipe
from potstill.errors import ConfigError

Divergence = Callable[..., Tensor]

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": objectives.forward_kl,
    "reverse_kl": objectives.reverse_kl,
    "jensen_shannon_half": objectives.jensen_shannon,
    "jensen_shannon_0.1": partial(objectives.jensen_shannon, teacher_weight=0.1),
    "jensen_shannon_0.9": partial(objectives.jensen_shannon, teacher_weight=0.9),
}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())


def logits(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grad(divergence: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(divergence(leaf, teacher).sum(), leaf)[0]


def plain_kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a.log() - b.log())).sum(-1)


def test_values_equal_their_definitions() -> None:
    s, t = logits(1, 50, 11), logits(2, 50, 11)
    q, p = s.softmax(-1), t.softmax(-1)
    torch.testing.assert_close(objectives.forward_kl(s, t), plain_kl(p, q), rtol=0, atol=1e-12)
    torch.testing.assert_close(objectives.reverse_kl(s, t), plain_kl(q, p), rtol=0, atol=1e-12)
    for w in (0.01, 0.3, 0.5, 0.99):
        m = w * p + (1 - w) * q
        expected = w * plain_kl(p, m) + (1 - w) * plain_kl(q, m)
        torch.testing.assert_close(objectives.jensen_shannon(s, t, teacher_weight=w), expected, rtol=0, atol=1e-12)


def test_gradients_equal_their_closed_forms() -> None:
    s, t = logits(3, 50, 11), logits(4, 50, 11)
    q, p = s.softmax(-1), t.softmax(-1)
    torch.testing.assert_close(grad(objectives.forward_kl, s, t), q - p, rtol=0, atol=1e-12)
    ratio = (q / p).log()
    expected = q * (ratio - (q * ratio).sum(-1, keepdim=True))
    torch.testing.assert_close(grad(objectives.reverse_kl, s, t), expected, rtol=0, atol=1e-12)
    w = 0.3
    h = (q / (w * p + (1 - w) * q)).log()
    expected = (1 - w) * q * (h - (q * h).sum(-1, keepdim=True))
    found = grad(partial(objectives.jensen_shannon, teacher_weight=w), s, t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_temperature_divides_both_models_logits(temperature: float) -> None:
    s, t = logits(5, 20, 7), logits(6, 20, 7)
    for divergence in DIVERGENCES.values():
        expected = divergence(s / temperature, t / temperature)
        torch.testing.assert_close(divergence(s, t, temperature=temperature), expected, rtol=0, atol=1e-13)
        assert not torch.allclose(divergence(s, t, temperature=temperature), divergence(s, t))


@every_divergence
def test_zero_with_zero_gradient_where_student_is_teacher(divergence: Divergence) -> None:
    s = logits(7, 200, 9)
    assert divergence(s, s.clone()).abs().max() < 1e-14
    assert grad(divergence, s, s.clone()).abs().max() < 1e-15


@every_divergence
def test_never_negative_and_changes_with_the_teacher(divergence: Divergence) -> None:
    s, t, other = logits(8, 200, 9), logits(9, 200, 9), logits(10, 200, 9)
    assert divergence(s, t).min() > 0
    assert (grad(divergence, s, t) - grad(divergence, s, other)).abs().amax(-1).min() > 1e-6


@every_divergence
@given(seed=st.integers(0, 2**31), shift=st.floats(-30, 30))
@settings(max_examples=25, deadline=None)
def test_invariances(divergence: Divergence, seed: int, shift: float) -> None:
    s, t = logits(seed, 6, 8), logits(seed + 1, 6, 8)
    value = divergence(s, t)
    torch.testing.assert_close(divergence(s + shift, t), value, rtol=0, atol=1e-9)
    torch.testing.assert_close(divergence(s, t - shift), value, rtol=0, atol=1e-9)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(divergence(s[:, order], t[:, order]), value, rtol=0, atol=1e-12)
    assert grad(divergence, s, t).sum(-1).abs().max() < 1e-12


@every_divergence
def test_gradcheck_and_no_gradient_to_the_teacher(divergence: Divergence) -> None:
    s, t = logits(11, 3, 5).requires_grad_(), logits(12, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(x, t.detach()), (s,))
    divergence(s, t).sum().backward()
    assert t.grad is None


@every_divergence
def test_finite_and_precise_in_low_precision(divergence: Divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.empty(4, 32_000).uniform_(-50, 50, generator=generator) for _ in range(2))
    assert divergence(s, t).isfinite().all()
    assert grad(divergence, s, t).isfinite().all()
    s, t = 2 * torch.randn(8, 32_000, generator=generator), 2 * torch.randn(8, 32_000, generator=generator)
    exact = divergence(s.double(), t.double())
    torch.testing.assert_close(divergence(s, t).double(), exact, rtol=1e-5, atol=0)
    assert divergence(s.bfloat16(), t.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(divergence(s.bfloat16(), t.bfloat16()).double(), exact, rtol=2e-2, atol=0)


def test_bounds_of_jensen_shannon() -> None:
    far = torch.eye(4, dtype=torch.float64) * 200
    for w in (0.1, 0.5, 0.9):
        bound = -w * math.log(w) - (1 - w) * math.log(1 - w)
        value = objectives.jensen_shannon(far, far.roll(1, 0), teacher_weight=w)
        assert ((value <= bound + 1e-12) & (value > bound - 1e-9)).all()


@pytest.mark.parametrize("w", [1e-4, 1e-6])
def test_limits_of_jensen_shannon(w: float) -> None:
    s, t = logits(13, 100, 6), logits(14, 100, 6)
    low = objectives.jensen_shannon(s, t, teacher_weight=w) / w
    high = objectives.jensen_shannon(s, t, teacher_weight=1 - w) / w
    assert (low / objectives.forward_kl(s, t) - 1).abs().max() < 5e3 * w
    assert (high / objectives.reverse_kl(s, t) - 1).abs().max() < 5e3 * w


def test_symmetry_of_jensen_shannon() -> None:
    s, t = logits(15, 30, 6), logits(16, 30, 6)
    one, other = (
        objectives.jensen_shannon(s, t, teacher_weight=0.2),
        objectives.jensen_shannon(t, s, teacher_weight=0.8),
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@every_divergence
def test_tokens_masked_on_both_sides_contribute_nothing(divergence: Divergence) -> None:
    s, t = logits(17, 5, 6), logits(18, 5, 6)
    banned = torch.full((5, 2), -torch.inf, dtype=torch.float64)
    wide_s, wide_t = torch.cat([s, banned], -1), torch.cat([t, banned], -1)
    torch.testing.assert_close(divergence(wide_s, wide_t), divergence(s, t), rtol=0, atol=1e-13)
    gradient = grad(divergence, wide_s, wide_t)
    torch.testing.assert_close(gradient[:, :6], grad(divergence, s, t), rtol=0, atol=1e-13)
    assert (gradient[:, 6:] == 0).all()


def test_infinite_where_one_model_excludes_what_the_other_does_not() -> None:
    full, cut = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, -torch.inf]])
    assert objectives.forward_kl(cut, full).item() == math.inf
    assert objectives.reverse_kl(full, cut).item() == math.inf
    assert objectives.forward_kl(full, cut).isfinite().all()
    assert objectives.reverse_kl(cut, full).isfinite().all()
    assert objectives.jensen_shannon(cut, full).isfinite().all()


def test_cross_entropy_and_its_gradient() -> None:
    s, y = logits(19, 40, 9), torch.arange(40) % 9
    q = s.softmax(-1)
    nll = -q.log().gather(-1, y[:, None])[:, 0]
    torch.testing.assert_close(objectives.cross_entropy(s, y), nll, rtol=0, atol=1e-12)
    smooth = 0.9 * nll - 0.1 * q.log().mean(-1)
    torch.testing.assert_close(objectives.cross_entropy(s, y, label_smoothing=0.1), smooth, rtol=0, atol=1e-12)
    leaf = s.clone().requires_grad_()
    objectives.cross_entropy(leaf, y).sum().backward()
    torch.testing.assert_close(leaf.grad, q - torch.nn.functional.one_hot(y, 9), rtol=0, atol=1e-12)


def test_forward_kl_is_a_divergence_and_not_a_cross_entropy() -> None:
    """Three public codes return -sum p log q under this name: off by the teacher's entropy."""
    s, t = logits(20, 40, 9), logits(21, 40, 9)
    p = t.softmax(-1)
    cross = -(p * s.log_softmax(-1)).sum(-1)
    entropy = -(p * p.log()).sum(-1)
    torch.testing.assert_close(objectives.forward_kl(s, t), cross - entropy, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: objectives.forward_kl(s, s, temperature=0),
        lambda s: objectives.reverse_kl(s, s, temperature=-1),
        lambda s: objectives.jensen_shannon(s, s, teacher_weight=0),
        lambda s: objectives.jensen_shannon(s, s, teacher_weight=1.0),
        lambda s: objectives.cross_entropy(s, torch.zeros(3, dtype=torch.long), label_smoothing=1.0),
    ],
)
def test_settings_out_of_range_are_refused_with_the_fix(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ConfigError, match="fix: give"):
        call(logits(22, 3, 4))


def test_vocabularies_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="5 logits and the teacher 4"):
        objectives.forward_kl(logits(23, 3, 5), logits(24, 3, 4))


@pytest.mark.parametrize(
    "section", [recipe.CrossEntropy, recipe.ForwardKL, recipe.ReverseKL, recipe.JensenShannon], ids=lambda s: s.__name__
)
def test_recipe_settings_are_the_functions_keywords_with_the_same_defaults(section: type[recipe.Section]) -> None:
    settings_ = {k: f.default for k, f in section.model_fields.items()}
    function = getattr(objectives, settings_.pop("name"))
    parameters = inspect.signature(function).parameters.values()
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == settings_
