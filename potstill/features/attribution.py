"""How much each channel of a layer matters for a task: one number for each, from a model's own text or anybody's.

Looked at are the positions whose states predict a real response token. A score is the mean over them of the absolute
value of a signed attribution, taken position by position, so padding and micro-batches have no say in it.

With a gradient, an activation is credited with the log-probability of every response token that it reaches, its own and
later ones, by one backward of their sum. That is exact and costs one backward; and in an inner layer much of what a
state is for is to be read by later tokens, which a gradient of its own target alone would leave out. What leaves the
last layer reaches its own target only, and there the two are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.data.order import seed_of
from potstill.errors import ConfigError, DataError, NumericsError
from potstill.features.activations import differentiable, frozen, scored
from potstill.models import taps
from potstill.models.families import Family, evaluating
from potstill.models.layout import layers_of
from potstill.models.places import to_head
from potstill.recipe import Place
from potstill.types import Batch, Head, Tap

Attribution: TypeAlias = Literal["grad_activation", "integrated_gradients", "mean_activation", "logit_lens"]
Measure: TypeAlias = Literal["grad_activation", "integrated_gradients", "mean_activation", "logit_lens", "random"]
Value: TypeAlias = Callable[[Float[Tensor, "token vocab"], Int[Tensor, " token"]], Float[Tensor, " token"]]
Signed: TypeAlias = list[Float[Tensor, "token channel"]]  # one for each layer
STEPS = 16  # of integrated gradients, ours; with 8, as selective distillation has it, the residual's do not add up
# How steps crowd towards 0: a norm behind the residual stream has done all it does by about a thousandth of the line.
CROWDING: dict[Place, int] = {"residual": 4, "mlp": 1}
CHUNK = 256  # positions whose logits are in memory at once


def channel_scores(
    family: Family,
    batches: Iterable[Batch],
    layers: Sequence[int],
    *,
    place: Place,
    measure: Measure,
    steps: int = STEPS,
    seed: int = 0,
) -> Float[Tensor, "layer channel"]:
    """How much each channel of some layers of the decoder matters for these responses.

    Measures:
        grad_activation: activation x gradient of the log-probability of the response.
        integrated_gradients: the same, the gradient averaged along the line from 0 to the activation, of one layer at a
            time: ``steps`` times the work for each layer.
        mean_activation: the activation itself; no gradient, no target.
        logit_lens: activation x gradient of the target's logit, were the layer the last: through final norm and head.
        random: a permutation, another for each layer, as a control.

    Args:
        family: in evaluation mode while it is measured; its weights get no gradient.
        batches: prompts and responses, the text of the task.
        layers: of the decoder, from 0, rising.
        place: "residual" is what leaves a layer, "mlp" what its MLP's output matrix reads.
        steps: of integrated gradients. seed: of random.
    Returns: non-negative, float64, on the CPU.
    Raises: ConfigError for an unknown measure or place, layers that are not there, or no steps; DataError without a
        response token; ModelError for a layout that is not known; NumericsError for what is not finite.
    Source: Simonyan et al. 2014, arXiv:1312.6034, section 3, and Ancona et al. 2018, arXiv:1711.06104 (gradient x
        input); Sundararajan et al. 2017, arXiv:1703.01365, equation 3; nostalgebraist 2020, interpreting GPT: the logit
        lens, and Dar et al. 2023, arXiv:2209.02535 (inner channels read in the vocabulary).
    """
    check(family, layers, place, measure, steps)
    total, tokens = torch.zeros(0, dtype=torch.float64), 0
    for batch in batches:
        if measure == "random":
            return random_scores(layers, taps.width(family, Tap(layers[0], place)), seed)
        sums = batch_sums(family, batch, layers, place=place, measure=measure, steps=steps)
        total, tokens = sums if not tokens else total + sums, tokens + batch.num_response_tokens
    if not tokens:
        raise DataError("there is no response token to measure channels on", "give rows with responses")
    return total / tokens


def batch_sums(
    family: Family,
    batch: Batch,
    layers: Sequence[int],
    *,
    place: Place,
    measure: Attribution,
    steps: int = STEPS,
) -> Float[Tensor, "layer channel"]:
    """The scores of a batch times its response tokens, so that batches add up. Args, Raises: as ``channel_scores``."""
    batch = batch.to(next(family.parameters()).device)
    with evaluating(family):
        signed = signed_attributions(family, batch, layers, place=place, measure=measure, steps=steps)
    if len({one.shape[-1] for one in signed}) > 1:
        raise ConfigError("these layers differ in width", "choose channels of them one layer at a time")
    sums = torch.stack([one.cpu().double().abs().sum(0) for one in signed])
    for layer, finite in zip(layers, sums.isfinite().all(1).tolist(), strict=True):
        if not finite:
            fix = f"look at row {batch.example_ids[0]} and those after it; a model in bfloat16 may need float32"
            raise NumericsError(f"{measure} of layer {layer} is not finite", fix)
    return sums


def signed_attributions(
    family: Family,
    batch: Batch,
    layers: Sequence[int],
    *,
    place: Place,
    measure: Attribution,
    steps: int = STEPS,
) -> Signed:
    """Of each layer the attribution of each channel at each position that predicts a response token, in their order.

    Those of integrated gradients add up, over positions and channels, to the response's log-probability minus what it
    is with that layer's activation 0 at these positions (completeness), the closer the more steps.
    """
    match measure:
        case "grad_activation":
            return _gradient_times_activation(family, batch, layers, place)
        case "integrated_gradients":
            return _integrated_gradients(family, batch, layers, place, steps)
        case "mean_activation":
            return _activations(family, batch, layers, place)
        case "logit_lens":
            return _lens(family, batch, layers, place)


def random_scores(layers: Sequence[int], width: int, seed: int) -> Float[Tensor, "layer channel"]:
    """A permutation of 0 to width - 1 for each layer, which does not depend on what other layers there are."""
    generators = (torch.Generator().manual_seed(seed_of("channels", seed, layer)) for layer in layers)
    return torch.stack([torch.randperm(width, generator=generator) for generator in generators]).double()


def check(family: Family, layers: Sequence[int], place: str, measure: str, steps: int) -> None:
    """Refuse what cannot be measured. Raises: ConfigError, and ModelError for a layout that is not known."""
    for word, known in ((place, get_args(Place)), (measure, get_args(Measure))):
        if word not in known:
            raise ConfigError(f"there is no {word!r}", f"it is one of {', '.join(known)}")
    if steps < 1:
        raise ConfigError(f"steps is {steps}", f"give 1 or more; {STEPS} is the default")
    total = len(layers_of(family.model))
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
        cause = f"layers {list(layers)} are not a rising list of the model's"
        raise ConfigError(cause, f"name different layers from 0 to {total - 1}, in order")


# --- Measures ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _activations(family: Family, batch: Batch, layers: Sequence[int], place: Place) -> Signed:
    at = family.predicting(batch)
    with taps.tapping(family, _taps(layers, place)) as seen:
        family(batch)
    return [scored(activation, at) for activation in seen.values()]


def _gradient_times_activation(family: Family, batch: Batch, layers: Sequence[int], place: Place) -> Signed:
    at = family.predicting(batch)
    with frozen(family):
        with taps.tapping(family, _taps(layers, place), differentiable) as seen:
            states = family(batch)[batch.response_mask]
        activations = tuple(seen.values())
        pulled = _pull(states, family.head, _targets(batch), log_probability)
        gradients = torch.autograd.grad(states, activations, pulled)
    return [_product(*(scored(one, at) for one in both)) for both in zip(activations, gradients, strict=True)]


def _integrated_gradients(family: Family, batch: Batch, layers: Sequence[int], place: Place, steps: int) -> Signed:
    """By the midpoint rule in u, where the activation is scaled by u ** power."""
    at, found, power = family.predicting(batch), [], CROWDING[place]
    for layer, whole in zip(layers, _activations(family, batch, layers, place), strict=True):
        slope = torch.zeros_like(whole, dtype=torch.float64, device="cpu")
        for step in range(steps):
            middle = (step + 0.5) / steps
            scale, length = middle**power, power * middle ** (power - 1) / steps
            with frozen(family):
                scaled = partial(_scaled, at=at, scale=scale)
                with taps.tapping(family, _taps([layer], place), scaled) as seen:
                    states = family(batch)[batch.response_mask]
                pulled = _pull(states, family.head, _targets(batch), log_probability)
                (gradient,) = torch.autograd.grad(states, tuple(seen.values()), pulled)
            slope += scored(gradient, at).cpu().double() * length
        found.append(_product(whole, slope))
    return found


def _lens(family: Family, batch: Batch, layers: Sequence[int], place: Place) -> Signed:
    at, found = family.predicting(batch), []
    with frozen(family):
        with (
            taps.tapping(family, _taps(layers, place), differentiable) as seen,
            taps.tapping(family, _taps(layers, "residual")) as leaving,
        ):
            family(batch)
        for activation, residual in zip(seen.values(), leaving.values(), strict=True):
            states = to_head(family.model, scored(residual, at))
            pulled = _pull(states, family.head, _targets(batch), logit)
            (gradient,) = torch.autograd.grad(states, activation, pulled, retain_graph=True)
            found.append(_product(scored(activation, at), scored(gradient, at)))
    return found


def _taps(layers: Sequence[int], place: Place) -> list[Tap]:
    return [Tap(layer, place) for layer in layers]


def _scaled(activation: Tensor, *, at: Bool[Tensor, "batch tokens"], scale: float) -> Tensor:
    """A leaf, scaled where it is scored: what stands elsewhere, as in a prompt, is no part of the question."""
    here = at.view(*activation.shape[:-1], 1)
    return torch.where(here, scale * activation, activation).detach().requires_grad_()


def _product(activation: Tensor, gradient: Tensor) -> Float[Tensor, "token channel"]:
    return activation.detach().cpu().double() * gradient.cpu().double()  # in memory: not every device has float64


# --- What is differentiated -------------------------------------------------------------------------------------------


def log_probability(logits: Float[Tensor, "token vocab"], target: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Of the target token, in nats. Not of all tokens: their probabilities add up to 1, whose gradient is rounding."""
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return logit(precise.log_softmax(-1), target)


def logit(logits: Float[Tensor, "token vocab"], target: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Of the target token."""
    return logits.gather(-1, target[:, None])[:, 0]


def _targets(batch: Batch) -> Int[Tensor, " token"]:
    return batch.response_ids[batch.response_mask]


def _pull(
    states: Float[Tensor, "token hidden"], head: Head, targets: Int[Tensor, " token"], value: Value
) -> Float[Tensor, "token hidden"]:
    """The gradient of the sum of ``value`` by the states that enter the head, with the logits of few tokens at once."""
    pulled = [torch.zeros_like(states[:0])]
    for some, wanted in zip(states.detach().split(CHUNK), targets.split(CHUNK), strict=True):
        leaf = some.clone().requires_grad_()
        pulled += torch.autograd.grad(value(head(leaf), wanted).sum(), leaf)
    return torch.cat(pulled)
