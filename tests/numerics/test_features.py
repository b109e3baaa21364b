"""Objectives on hidden states: definitions, padding, and the mistakes of public code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from potstill.errors import ConfigError
from potstill.objectives.features import (
    IdentityMap,
    LearnedProjection,
    SelectedChannels,
    hidden_correlation,
    hidden_cosine,
    hidden_mse,
    relation_divergence,
    relation_heads,
)
from tests.numerics.table import logits

S, T = logits(50, 2, 5, 8), logits(51, 2, 5, 8)
MASK = torch.arange(5) < torch.tensor([5, 3])[:, None]


def normalised_mse(s: Tensor, t: Tensor) -> Tensor:
    return hidden_mse(s, t, normalise=True)


def correlation(s: Tensor, t: Tensor) -> Tensor:
    return hidden_correlation(s, t, MASK)


def relations(s: Tensor, t: Tensor) -> Tensor:
    return relation_divergence(relation_heads(s, 2), relation_heads(t, 2), MASK)


EVERY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": hidden_mse,
    "normalised": normalised_mse,
    "cosine": hidden_cosine,
    "correlation": correlation,
    "relations": relations,
}
every = pytest.mark.parametrize("function", EVERY.values(), ids=EVERY.keys())
POSITIONWISE = [hidden_mse, normalised_mse, hidden_cosine]


def grad(function: Callable[[Tensor, Tensor], Tensor], s: Tensor, t: Tensor) -> Tensor:
    leaf = s.clone().requires_grad_()
    return torch.autograd.grad(function(leaf, t).sum(), leaf)[0]


# --- Definitions ------------------------------------------------------------------------------------------------------


def test_mse_and_cosine_equal_their_definitions() -> None:
    plain = hidden_mse(S, T, normalise=False)
    torch.testing.assert_close(plain, ((S - T) ** 2).sum(-1) / 8, rtol=0, atol=1e-13)
    torch.testing.assert_close(hidden_mse(S, T), 2 * hidden_cosine(S, T), rtol=0, atol=1e-13)
    cosine = (S * T).sum(-1) / S.norm(dim=-1) / T.norm(dim=-1)
    torch.testing.assert_close(hidden_cosine(S, T), 1 - cosine, rtol=0, atol=1e-13)
    torch.testing.assert_close(normalised_mse(S, T), 2 * hidden_cosine(S, T), rtol=0, atol=1e-12)
    assert (hidden_cosine(S, T) >= 0).all()
    torch.testing.assert_close(hidden_cosine(S, -S), torch.full((2, 5), 2.0).double(), rtol=0, atol=1e-13)


def plain_correlation(weight_on: float, weight_off: float) -> float:
    s, t = S[MASK], T[MASK]
    total = 0.0
    for i in range(8):
        for j in range(8):
            a, b = s[:, i] - s[:, i].mean(), t[:, j] - t[:, j].mean()
            c = ((a * b).mean() / a.square().mean().sqrt() / b.square().mean().sqrt()).item()
            total += weight_on * (1 - c) ** 2 if i == j else weight_off * c**2
    return total


def test_correlation_equals_its_definition_over_the_real_tokens() -> None:
    assert correlation(S, T).item() == pytest.approx(plain_correlation(1.0, 0.005), rel=1e-9)
    assert hidden_correlation(S, T, MASK, off_diagonal_weight=0.1).item() == pytest.approx(
        plain_correlation(1.0, 0.1), rel=1e-9
    )


def test_the_small_weight_is_off_the_diagonal() -> None:
    """Public channel-selective code has the two weights the other way round."""
    off_diagonal = hidden_correlation(
        S, S, MASK, off_diagonal_weight=1.0
    ).item()  # of one model with itself, all there is
    assert off_diagonal > 1
    assert correlation(S, S).item() == pytest.approx(0.005 * off_diagonal, rel=1e-9)


def test_relation_heads_are_runs_of_channels() -> None:
    """As a model's own heads are, so that with its own number of heads nothing is regrouped."""
    found = relation_heads(S, 2)
    assert found.shape == (2, 2, 5, 4)
    assert torch.equal(found[:, 0], S[..., :4])
    assert torch.equal(found[:, 1], S[..., 4:])


def plain_relation(states: Tensor, b: int, h: int, query: int, keys: list[int]) -> Tensor:
    x = relation_heads(states, 2)[b, h]
    return torch.stack([x[query] @ x[key] / 4**0.5 for key in keys]).softmax(0)


@pytest.mark.parametrize("causal", [True, False])
def test_relations_equal_a_loop_over_queries_and_allowed_keys(causal: bool) -> None:
    found = relation_divergence(relation_heads(S, 2), relation_heads(T, 2), MASK, causal=causal)
    assert found.shape == (2, 2, 5)
    for b, length in enumerate([5, 3]):
        for h in range(2):
            for query in range(length):
                keys = list(range(query + 1 if causal else length))
                p, q = (plain_relation(x, b, h, query, keys) for x in (T, S))
                assert found[b, h, query].item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-12)
    assert (found[1, :, 3:] == 0).all()


# --- Properties -------------------------------------------------------------------------------------------------------


@every
def test_gradients_are_right_and_the_teacher_gets_none(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    s, t = S.clone().requires_grad_(), T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, T), (s,))
    function(s, t).sum().backward()
    assert t.grad is None


@every
def test_the_gradient_changes_with_the_teacher(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert (grad(function, S, T) - grad(function, S, logits(52, 2, 5, 8))).abs().max() > 1e-4


@pytest.mark.parametrize("function", [*POSITIONWISE, relations])
def test_zero_with_zero_gradient_at_the_teacher(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert function(S, S.clone()).abs().max() < 1e-14
    assert grad(function, S, S.clone()).abs().max() < 1e-14


def test_correlation_at_the_teacher_is_what_its_own_channels_share() -> None:
    """Its diagonal part is 0 there; its gradient is not, because teachers' channels are correlated."""
    assert hidden_correlation(S, S, MASK, off_diagonal_weight=0.0).item() == pytest.approx(0, abs=1e-18)
    assert correlation(S, S) > 0


@every
def test_what_stands_in_padding_and_how_much_of_it_changes_nothing(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    if function in POSITIONWISE:
        pytest.skip("looks at one position at a time")
    other_s, other_t = S.clone(), T.clone()
    other_s[~MASK], other_t[~MASK] = 1e3, torch.nan
    expected = function(S, T)
    torch.testing.assert_close(function(other_s, other_t), expected, rtol=0, atol=1e-12)
    found = grad(function, other_s, other_t)
    assert (found[~MASK] == 0).all()
    torch.testing.assert_close(found[MASK], grad(function, S, T)[MASK], rtol=0, atol=1e-12)


def test_more_padding_changes_nothing() -> None:
    wide_s, wide_t = (torch.nn.functional.pad(x, (0, 0, 0, 3), value=9.0) for x in (S, T))
    mask = torch.nn.functional.pad(MASK, (0, 3))
    torch.testing.assert_close(hidden_correlation(wide_s, wide_t, mask), correlation(S, T), rtol=0, atol=1e-12)
    wide = relation_divergence(relation_heads(wide_s, 2), relation_heads(wide_t, 2), mask)
    torch.testing.assert_close(wide[..., :5], relations(S, T), rtol=0, atol=1e-13)
    assert (wide[..., 5:] == 0).all()


def test_later_keys_are_in_neither_softmax_of_a_causal_relation() -> None:
    changed = S.clone()
    changed[0, 3:] = 7.0
    torch.testing.assert_close(relations(changed, T)[0, :, :3], relations(S, T)[0, :, :3], rtol=0, atol=1e-14)
    assert not torch.allclose(relations(changed, T)[0, :, 3:], relations(S, T)[0, :, 3:])


def test_relations_do_not_see_a_rotation_of_the_channels_and_let_widths_differ() -> None:
    rotation = torch.linalg.qr(logits(53, 4, 4))[0]
    turned = relation_divergence(relation_heads(S, 2) @ rotation, relation_heads(T, 2), MASK)
    torch.testing.assert_close(turned, relations(S, T), rtol=0, atol=1e-12)
    wide = logits(54, 2, 5, 24)
    assert relation_divergence(relation_heads(S, 2), relation_heads(wide, 2), MASK).shape == (2, 2, 5)


def test_cosine_does_not_see_length_and_a_zero_state_is_finite() -> None:
    torch.testing.assert_close(hidden_cosine(7 * S, T / 3), hidden_cosine(S, T), rtol=0, atol=1e-13)
    zero = torch.zeros(1, 8, dtype=torch.float64)
    assert hidden_cosine(zero, T[0, :1]).item() == hidden_cosine(T[0, :1], zero).item() == 1
    for function in POSITIONWISE:
        assert function(zero, T[0, :1]).isfinite().all()
        assert grad(function, T[0, :1], zero).isfinite().all()
    for function in (hidden_cosine, normalised_mse):  # a direction that is not there cannot be turned
        assert (grad(function, zero.half(), T[0, :1].half()) == 0).all()


@every
def test_a_state_that_is_not_a_number_is_not_hidden(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """What has no length and what does not vary count as 0; what has broken must reach whoever looks for it."""
    broken = S.clone()
    broken[0, 0, 1] = torch.nan
    assert function(broken, T).isnan().any()
    assert function(T, broken).isnan().any()


def test_a_channel_that_does_not_vary_correlates_with_nothing() -> None:
    s = S.clone()
    s[..., 2] = 4.0
    expected = correlation(s, T)
    assert expected.isfinite()
    assert grad(correlation, s, T).isfinite().all()
    s[..., 2] = 0.0
    torch.testing.assert_close(correlation(s, T), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 0.1, 1000.3])
def test_the_rounding_of_a_mean_is_no_variation(size: float) -> None:
    """In float32 the mean of equal numbers is not that number; scaled up, what is left over would correlate fully."""
    s, t = logits(56, 1, 700, 4).float(), logits(57, 1, 700, 4).float()
    s[..., 1] = t[..., 1] = size
    mask = torch.ones(1, 700, dtype=torch.bool)
    others = [0, 2, 3]
    expected = 1 + hidden_correlation(s[..., others], t[..., others], mask)
    torch.testing.assert_close(hidden_correlation(s, t, mask), expected, rtol=1e-5, atol=0)
    leaf = s.clone().requires_grad_()
    found = torch.autograd.grad(hidden_correlation(leaf, t, mask), leaf)[0]
    assert (found[..., 1] == 0).all()
    assert found[..., 0].abs().max() > 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_correlation_does_not_see_the_size_of_a_channel(scale: float) -> None:
    torch.testing.assert_close(correlation(scale * S + 3 * scale, T), correlation(S, T), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every
def test_low_precision_is_computed_in_float32(function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    s, t = S.to(dtype), T.to(dtype)
    assert function(s, t).dtype == torch.float32
    torch.testing.assert_close(function(s, t).double(), function(s.double(), t.double()), rtol=1e-4, atol=1e-5)


# --- Maps -------------------------------------------------------------------------------------------------------------


def test_maps_bring_states_to_one_width() -> None:
    wide = logits(55, 2, 5, 12)
    for channels in (IdentityMap(8, 8), SelectedChannels([0, 1, 2, 5, 6, 7, 9, 11], 12), LearnedProjection(8, 12)):
        teacher = T if isinstance(channels, IdentityMap) else wide
        channels.double()
        assert hidden_mse(channels.student(S), channels.teacher(teacher)).shape == (2, 5)
    selected = SelectedChannels([0, 3, 4], 12)
    assert torch.equal(selected.teacher(wide), wide[..., [0, 3, 4]])
    restored = SelectedChannels([0, 1, 2], 12)
    restored.load_state_dict(selected.state_dict())
    assert restored.indices.tolist() == [0, 3, 4]
    assert [name for name, _ in LearnedProjection(8, 12).named_parameters()] == ["projection.weight"]
    assert not list(selected.parameters())


def test_a_projection_takes_states_of_lower_precision_than_its_own() -> None:
    channels, low = LearnedProjection(8, 12), S.bfloat16()
    found = channels.student(low)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, low.float() @ channels.projection.weight.T)
    hidden_mse(found, channels.teacher(logits(55, 2, 5, 12))).sum().backward()
    weight = channels.projection.weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: IdentityMap(8, 12),
        lambda: SelectedChannels([], 12),
        lambda: SelectedChannels([3, 1], 12),
        lambda: SelectedChannels([1, 1], 12),
        lambda: SelectedChannels([12], 12),
        lambda: SelectedChannels([-1, 3], 12),
        lambda: relation_heads(S, 3),
        lambda: hidden_correlation(S, T, MASK, off_diagonal_weight=-1),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_fix(call: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="fix: "):
        call()


def test_states_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one width first"):
        hidden_mse(S, T[..., :4])
    with pytest.raises(ValueError, match="states of"):
        relation_divergence(relation_heads(S, 2), relation_heads(T, 4), MASK)
    with pytest.raises(ValueError, match="relation_heads makes the heads"):
        relation_divergence(S, T, MASK)
    with pytest.raises(ValueError, match="relation_heads makes the heads"):
        relation_divergence(S[..., :5], T[..., :5], MASK)  # as wide as long: would broadcast to numbers of nothing
    with pytest.raises(ValueError, match="relation_heads makes the heads"):
        relation_divergence(relation_heads(S, 2), relation_heads(T, 2), MASK[:1])
    with pytest.raises(ValueError, match="a mask of"):
        hidden_correlation(S, T, MASK[:, :4])
    with pytest.raises(ValueError, match="at least two real tokens"):
        hidden_correlation(S, T, MASK & False)
