"""Scores of channels: what they are by hand, what must not change them, and what they must not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from potstill.errors import ConfigError, DataError, ModelError, NumericsError
from potstill.features import attribution
from potstill.features.activations import differentiable, scored
from potstill.features.attribution import Attribution, Measure, channel_scores, signed_attributions
from potstill.features.stability import select
from potstill.models.families import Family, family_of
from potstill.models.pruning import cut_layers
from potstill.models.taps import tapping
from potstill.types import Batch, Tap
from tests import tiny

MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "t5": tiny.t5,
    "t5_gated": lambda: tiny.t5(gated=True, tied=False),
    "bart": tiny.bart,
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
every_place = pytest.mark.parametrize("place", ["residual", "mlp"])
LENGTHS = [(3, 4), (5, 2), (2, 6)]


def precise(model: Any) -> Family:
    return family_of(model.double())


def log_probability(family: Family, batch: Batch) -> float:
    """Of all responses together, by the model's own forward, row by row and without padding."""
    total = 0.0
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]][None]
        response = batch.response_ids[row][batch.response_mask[row]][None]
        logits = family.own_logits(prompt, response)
        total += logits.log_softmax(-1).gather(-1, response[..., None]).sum().item()
    return total


def one_row(batch: Batch, row: int) -> Batch:
    tensors = {name: value[row : row + 1] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, example_ids=batch.example_ids[row : row + 1], **tensors)


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_what_leaves_the_last_layer_scores_as_worked_out_by_hand() -> None:
    model = tiny.llama().double()
    torch.nn.init.uniform_(model.model.norm.weight, 0.5, 2)
    batch = tiny.batch([(3, 4)])
    ids, targets = torch.cat([batch.prompt_ids, batch.response_ids], 1), batch.response_ids[0]
    with torch.no_grad():
        taken: list[Tensor] = []
        hook = model.model.layers[-1].register_forward_hook(lambda *call: taken.append(call[2]))
        probabilities = model(ids).logits[0, 2:6].softmax(-1)
        hook.remove()
    state, head, gain = taken[0][0, 2:6], model.lm_head.weight, model.model.norm.weight
    length = (state.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
    pulled = gain * (head[targets] - probabilities @ head)
    gradient = pulled / length - state * (state * pulled).sum(-1, keepdim=True) / (16 * length**3)
    found = channel_scores(family_of(model), [batch], [2], place="residual", measure="grad_activation")
    torch.testing.assert_close(
        found[0], (state * gradient).abs().mean(0), rtol=1e-5, atol=1e-7
    )  # its norm is in float32


@every_model
@every_place
def test_an_inner_activation_is_credited_with_its_own_token_and_later_ones(make: Any, place: Any) -> None:
    family, batch, step = precise(make()), tiny.batch([(3, 4)]), 1e-2  # some norms are in float32
    (signed,) = signed_attributions(family, batch, [0], place=place, measure="grad_activation")
    with tapping(family, [Tap(0, place)]) as seen:
        family(batch)
    at = family.predicting(batch)
    held = scored(seen[Tap(0, place)], at)
    for token in (0, 1, 3):
        values, channel = [], int(signed[token].abs().argmax())
        for way in (step, -step):

            def moved(activation: Tensor, way: float = way, token: int = token, channel: int = channel) -> Tensor:
                changed = activation.clone()
                view = changed.view(*at.shape, -1)
                column = int(at[0].nonzero()[token])
                view[0, column, channel] += way
                return changed

            with tapping(family, [Tap(0, place)], moved):
                values.append(log_probability(family, batch))
        slope = (values[0] - values[1]) / (2 * step)
        assert signed[token, channel].item() == pytest.approx((held[token, channel] * slope).item(), rel=0.01)


def test_the_mean_activation_is_that_of_the_states_before_response_tokens() -> None:
    family, batch = precise(tiny.llama()), tiny.batch(LENGTHS)
    sums, tokens = torch.zeros(16, dtype=torch.float64), 0
    for row, (prompt, response) in enumerate(LENGTHS):
        ids = torch.cat([batch.prompt_ids[row, -prompt:], batch.response_ids[row, :response]])
        states = family.model(ids[None], output_hidden_states=True).hidden_states[2][0]  # of the embedding and 2 layers
        sums, tokens = sums + states[prompt - 1 : -1].abs().sum(0), tokens + response
    found = channel_scores(family, [batch], [1], place="residual", measure="mean_activation")
    torch.testing.assert_close(found[0], (sums / tokens).detach())


@every_place
@every_model
def test_integrated_gradients_add_up_to_what_the_activations_are_worth(make: Any, place: Any) -> None:
    family, batch = precise(make()), tiny.batch(LENGTHS)
    at = family.predicting(batch)

    def nothing(activation: Tensor) -> Tensor:
        return torch.where(at.view(*activation.shape[:-1], 1), 0.0, activation)

    def worth() -> float:
        states = family(batch)[batch.response_mask]
        targets = batch.response_ids[batch.response_mask]
        return float(family.head(states).log_softmax(-1).gather(-1, targets[:, None]).sum())

    with torch.no_grad():
        whole = worth()
        with tapping(family, [Tap(0, place)], nothing):
            whole -= worth()
    off = []
    for steps in (16, 64):
        (signed,) = signed_attributions(family, batch, [0], place=place, measure="integrated_gradients", steps=steps)
        off.append(abs(float(signed.sum()) - whole) / float(signed.abs().sum()))
    assert off[1] < 0.01
    assert off[1] < off[0] / 2 or off[0] < 0.001  # sixteen times less where all is smooth


@every_model
@every_place
def test_the_lens_is_the_last_layers_gradient_of_a_model_that_ends_there(make: Any, place: Any) -> None:
    family, batch = precise(make()), tiny.batch([(3, 4)])
    (seen,) = signed_attributions(family, batch, [0], place=place, measure="logit_lens")
    short = family_of(cut_layers(family.model, [0]))
    with tapping(short, [Tap(0, place)], differentiable) as leaf:
        states = short(batch)[batch.response_mask]
    logits = short.head(states).gather(-1, batch.response_ids[0][:, None])
    (gradient,) = torch.autograd.grad(logits.sum(), leaf[Tap(0, place)])
    at = short.predicting(batch)
    torch.testing.assert_close(seen, (scored(leaf[Tap(0, place)], at) * scored(gradient, at)).detach())


def test_through_a_norm_the_residual_streams_signed_lens_adds_up_to_nothing() -> None:
    (signed,) = signed_attributions(
        precise(tiny.llama()), tiny.batch(LENGTHS), [1], place="residual", measure="logit_lens"
    )
    assert signed.sum(1).abs().max() < 1e-4 * signed.abs().sum(1).min()


# --- What must not change them ----------------------------------------------------------------------------------------


@every_model
@every_place
@pytest.mark.parametrize("measure", get_args(Attribution))
def test_padding_and_batches_have_no_say(make: Any, place: Any, measure: Attribution) -> None:
    family, whole = precise(make()), tiny.batch(LENGTHS)
    asked: dict[str, Any] = {"place": place, "measure": measure, "steps": 2}
    expected = channel_scores(family, [whole], [0, 1], **asked)
    padded = channel_scores(family, [tiny.batch(LENGTHS, extra_left=3, extra_right=2)], [0, 1], **asked)
    torch.testing.assert_close(padded, expected, rtol=1e-8, atol=1e-11)
    single = channel_scores(family, [one_row(whole, row) for row in (2, 0, 1)], [0, 1], **asked)
    torch.testing.assert_close(single, expected, rtol=1e-8, atol=1e-11)
    alone = channel_scores(family, [whole], [1], **asked)
    torch.testing.assert_close(alone[0], expected[1], rtol=1e-8, atol=1e-11)


def test_the_logits_of_few_tokens_at_once_are_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    family, asked = precise(tiny.gpt2()), {"place": "mlp", "measure": "grad_activation"}
    at_once = channel_scores(family, [tiny.batch(LENGTHS)], [1], **asked)  # type: ignore[arg-type]
    monkeypatch.setattr(attribution, "CHUNK", 5)
    torch.testing.assert_close(channel_scores(family, [tiny.batch(LENGTHS)], [1], **asked), at_once)  # type: ignore[arg-type]


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = tiny.gpt2(dropout=0.5)
    model.transformer.wte.requires_grad_(False)
    model.train()
    family, batch = family_of(model), tiny.batch(LENGTHS)
    once, again = (channel_scores(family, [batch], [1], place="mlp", measure="grad_activation") for _ in range(2))
    assert torch.equal(once, again)  # so dropout is off
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["transformer.wte.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- What they must not be --------------------------------------------------------------------------------------------


def test_they_are_not_the_gradient_of_a_sum_of_probabilities() -> None:
    """All tokens' probabilities add up to 1: what a published method selects by is the rounding of that."""
    batch = tiny.batch(LENGTHS)
    other = replace(batch, response_ids=torch.where(batch.response_mask, (batch.response_ids + 7) % tiny.VOCAB, 0))

    def of_the_sum(dtype: torch.dtype) -> Tensor:
        family = family_of(tiny.llama().to(dtype))
        with tapping(family, [Tap(2, "residual")], differentiable) as seen:
            states = family(batch)[batch.response_mask]
        (gradient,) = torch.autograd.grad(family.head(states).softmax(-1).sum(), seen[Tap(2, "residual")])
        at = family.predicting(batch)
        return (scored(seen[Tap(2, "residual")], at) * scored(gradient, at)).detach().double().abs().mean(0)[None]

    def ours(dtype: torch.dtype, of: Batch) -> Tensor:
        return channel_scores(family_of(tiny.llama().to(dtype)), [of], [2], place="residual", measure="grad_activation")

    rough, precisely = of_the_sum(torch.float32), of_the_sum(torch.float64)
    assert rough.max() < 1e-5 * ours(torch.float32, batch).min()
    assert precisely.max() < 1e-6 * rough.max()  # nothing but rounding
    assert select(rough, 8) != select(precisely, 8)
    assert select(ours(torch.float32, batch), 8) == select(ours(torch.float64, batch), 8)
    moved = ours(torch.float64, other) - ours(torch.float64, batch)
    assert moved.abs().max() > 0.05 * ours(torch.float64, batch).max()  # another text, the same prompts


@pytest.mark.parametrize("measure", get_args(Attribution))
def test_a_channel_that_is_made_to_matter_comes_first(measure: Attribution) -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[13] *= 20
    asked: dict[str, Any] = {"place": "mlp"}
    found = channel_scores(family_of(model), [tiny.batch(LENGTHS)], [1], measure=measure, **asked)
    assert select(found, 1) == ((13,),)
    chosen = [
        select(channel_scores(family_of(model), [tiny.batch(LENGTHS)], [1], measure="random", seed=seed, **asked), 1)
        for seed in range(5)
    ]
    assert chosen.count(((13,),)) < 2


def test_random_scores_are_a_permutation_of_each_layers_own() -> None:
    family, batch = family_of(tiny.llama()), tiny.batch(LENGTHS)

    def scores(layers: list[int], seed: int) -> Tensor:
        return channel_scores(family, iter([batch]), layers, place="mlp", measure="random", seed=seed)

    both = scores([0, 2], 0)
    assert [sorted(row) for row in both.tolist()] == [list(range(32))] * 2
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[1], scores([2], 0)[0])
    assert not torch.equal(both, scores([0, 2], 1))


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"layers": [3]}, "from 0 to 2"),
        ({"layers": []}, "rising list"),
        ({"layers": [1, 0]}, "rising list"),
        ({"layers": [-1]}, "rising list"),
        ({"measure": "grad"}, "no 'grad'"),
        ({"place": "attention"}, "no 'attention'"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(changed: dict[str, Any], says: str) -> None:
    asked: dict[str, Any] = {"layers": [1], "place": "mlp", "measure": "integrated_gradients"} | changed
    with pytest.raises(ConfigError) as refused:
        channel_scores(family_of(tiny.llama()), [tiny.batch(LENGTHS)], **asked)
    assert says in str(refused.value)


def test_without_a_response_there_is_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="no response token"):
        channel_scores(family_of(tiny.llama()), [], [0], place="mlp", measure="random")


def test_a_score_that_is_not_finite_is_refused() -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = torch.inf
    with pytest.raises(NumericsError, match="of layer 1 is not finite"):
        channel_scores(family_of(model), [tiny.batch(LENGTHS)], [1], place="mlp", measure="grad_activation")


@pytest.mark.parametrize("measure", get_args(Measure))
def test_an_unknown_layout_is_looked_at_where_no_name_is_needed(measure: Measure) -> None:
    model = tiny.llama()
    model.config.model_type = "newcomer"
    family, batches = family_of(model), [tiny.batch(LENGTHS)]
    with pytest.raises(ModelError, match=r"add a line to PLACES in potstill/models/places\.py"):
        channel_scores(family, batches, [1], place="mlp", measure=measure)
    if measure == "logit_lens":
        with pytest.raises(ModelError, match="a newcomer calls"):
            channel_scores(family, batches, [1], place="residual", measure=measure)
    else:
        assert channel_scores(family, batches, [1], place="residual", measure=measure).shape == (1, 16)
