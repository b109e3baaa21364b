"""Students cut from a larger model: some of its layers, everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.families import family_of, source_of
from potstill.models.layout import DECODER, ENCODER, Stack, auto_class, is_encoder_decoder, layers_of, stacks_of
from potstill.types import Batch

__all__ = ["Kept", "block_influence", "choose_layers", "cut_layers", "evenly_spaced", "freeze_embeddings", "layers_of"]

# Config keys that list one value for each layer.
PER_LAYER_KEYS = ("layer_types", "attention_layers", "mlp_layer_types")
SETTINGS = {DECODER: "keep_layers", ENCODER: "keep_encoder_layers"}  # of a recipe's student


@dataclass(frozen=True)
class Kept:
    """Which layers of a stack stay, in order, of how many; ``influence`` of every layer, where that decided."""

    layers: tuple[int, ...]
    of_layers: int
    influence: Float[Tensor, " layers"] | None = None


def choose_layers(
    model: Any,
    keep: int | Sequence[int],
    choose_by: str,
    batches: Sequence[Batch],
    keep_encoder: int | Sequence[int] | None = None,
) -> dict[str, Kept]:
    """Which layers stay, by the stack they are of.

    Args:
        model: what is cut.
        keep: how many of the decoder's layers, which are all there are of a causal model, or which.
        choose_by: "block_influence" keeps those that change their input most, "even" spaces them evenly.
        batches: text to measure the influence on; about a thousand tokens are enough.
        keep_encoder: likewise of the encoder; where None, as many as ``keep`` says (or all, where it has fewer), and
            all where ``keep`` says which.
    Raises: ModelError where the model has no such layers.
    """
    totals = {name: len(stack.layers) for name, stack in stacks_of(model).items()}
    wanted = wanted_layers(totals, keep, keep_encoder)
    for name, some in wanted.items():
        _check_wanted(some, totals[name], SETTINGS[name])
    measured = choose_by == "block_influence" and any(_is_to_choose(wanted[name], totals[name]) for name in totals)
    influence = block_influence(model, batches) if measured else {}
    return {name: _kept(wanted[name], totals[name], influence.get(name)) for name in totals}


def wanted_layers(
    totals: Mapping[str, int], keep: int | Sequence[int], keep_encoder: int | Sequence[int] | None
) -> dict[str, int | Sequence[int]]:
    """How many layers of each stack, or which. Raises: ModelError where ``keep_encoder`` is given and no encoder is."""
    if ENCODER not in totals:
        if keep_encoder is not None:
            cause = f"keep_encoder_layers is {keep_encoder}, and the model has no encoder"
            raise ModelError(cause, "leave student.keep_encoder_layers out: keep_layers is of all its layers")
        return {DECODER: keep}
    total = totals[ENCODER]
    as_decoder = min(keep, total) if isinstance(keep, int) else total
    return {ENCODER: as_decoder if keep_encoder is None else keep_encoder, DECODER: keep}


def _check_wanted(keep: int | Sequence[int], total: int, setting: str) -> None:
    if not isinstance(keep, int):
        _check_indices(keep, total, setting)
    elif keep > total:
        raise ModelError(
            f"{setting} is {keep} but the model has {total} layers",
            f"set student.{setting} to at most {total}; to train a model whole, name it as student=MODEL",
        )


def _is_to_choose(keep: int | Sequence[int], total: int) -> bool:
    return isinstance(keep, int) and keep < total


def _kept(keep: int | Sequence[int], total: int, influence: Float[Tensor, " layers"] | None) -> Kept:
    if not isinstance(keep, int):
        return Kept(tuple(sorted(keep)), total)
    if keep == total or influence is None:
        return Kept(evenly_spaced(keep, total), total)
    return Kept(tuple(sorted(influence.topk(keep).indices.tolist())), total, influence)


def evenly_spaced(keep: int, total: int) -> tuple[int, ...]:
    """``keep`` of ``total`` layers, first and last included, as DistilBERT takes them (arXiv:1910.01108)."""
    if keep == 1:
        return (0,)
    return tuple(round(index * (total - 1) / (keep - 1)) for index in range(keep))


@torch.no_grad()
def block_influence(model: Any, batches: Sequence[Batch]) -> dict[str, Float[Tensor, " layers"]]:
    """1 - cosine between what enters and what leaves each layer of each stack, mean over the real tokens it reads.

    Source: Men et al. 2024, ShortGPT, arXiv:2403.03853, equation 1.
    """
    family, stacks = family_of(model), stacks_of(model)
    sums = {name: torch.zeros(len(stack.layers), dtype=torch.float64) for name, stack in stacks.items()}
    counts = dict.fromkeys(stacks, 0)
    for batch in batches:
        real = _read(model, batch)
        with _through_layers(stacks) as seen:
            family(batch)
        for name, passed in seen.items():
            counts[name] += int(real[name].sum())
            for index, (before, after) in enumerate(passed):
                similarity = torch.cosine_similarity(before[real[name]].float(), after[real[name]].float(), dim=-1)
                sums[name][index] += (1 - similarity).double().sum().cpu()
    return {name: (total / counts[name]).float() for name, total in sums.items()}


def _read(model: Any, batch: Batch) -> dict[str, Bool[Tensor, "batch tokens"]]:
    """Which of the tokens that a stack reads are real. A decoder with an encoder reads the response one token late."""
    if is_encoder_decoder(model.config):
        return {ENCODER: source_of(batch)[1], DECODER: batch.response_mask}
    lengths = batch.prompt_mask.sum(1) + batch.response_mask.sum(1)
    return {DECODER: torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]}


@contextmanager
def _through_layers(stacks: Mapping[str, Stack]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """What enters and leaves each layer, taken by hooks: ``output_hidden_states`` ends after the final norm."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in stacks}

    def recording(name: str) -> Any:
        def record(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            seen[name].append((entered, output[0] if isinstance(output, tuple) else output))

        return record

    hooks = [
        layer.register_forward_hook(recording(name), with_kwargs=True)
        for name, stack in stacks.items()
        for layer in stack.layers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def cut_layers(model: Any, keep: Sequence[int], keep_encoder: Sequence[int] | None = None) -> Any:
    """A new model with only the layers ``keep``. Keeping all gives the same logits, bit for bit; ties stay.

    Args:
        model: what is cut; it stays as it is.
        keep: the decoder's layers, in order. keep_encoder: the encoder's; all of them where None.
    Raises: ModelError for layers that are not there.
    """
    stacks = stacks_of(model)
    kept: dict[str, Sequence[int]] = {DECODER: keep}
    if ENCODER in stacks:
        kept[ENCODER] = range(len(stacks[ENCODER].layers)) if keep_encoder is None else keep_encoder
    for name, some in kept.items():
        _check_indices(some, len(stacks[name].layers), SETTINGS[name])
    student = auto_class(model.config).from_config(_cut_config(model.config, stacks, kept), dtype=model.dtype)
    # Before the weights are taken over: a T5 of version 1.1 has a head of its own, which its config does not say.
    if _is_tied(student) and not _is_tied(model):
        head = student.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
    student.load_state_dict(_cut_state(model, stacks, kept))
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).eval()


def _is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _cut_config(config: Any, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]) -> Any:
    cut = copy.deepcopy(config)
    for name, stack in stacks.items():
        for key in stack.count_keys:
            setattr(cut, key, len(kept[name]))
    for key in PER_LAYER_KEYS:
        values = getattr(config, key, None)
        if isinstance(values, (list, tuple)):
            setattr(cut, key, [values[index] for index in kept[DECODER]])
    return cut


def _cut_state(model: Any, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The state dict with kept layers renumbered and the others left out.

    What only the first layer of a stack has, because all its layers share it, as T5's relative attention bias, is
    handed on to the layer that is the first now.
    """
    state = dict(model.state_dict())
    for name, stack in stacks.items():
        of_layers = [layer.state_dict() for layer in stack.layers]
        state = {key: value for key, value in state.items() if not key.startswith(f"{stack.path}.")}
        for new, old in enumerate(kept[name]):
            inherited = of_layers[0] if new == 0 else {}
            for rest, value in (inherited | of_layers[old]).items():
                state[f"{stack.path}.{new}.{rest}"] = value
    return state


def _check_indices(keep: Sequence[int], total: int, setting: str) -> None:
    wrong = [index for index in keep if index >= total]
    if wrong or len(set(keep)) != len(keep):
        problem = f"layer {wrong[0]} is not there: the model has {total}" if wrong else "a layer stands in it twice"
        raise ModelError(f"{setting}: {problem}", f"list different layers from 0 to {total - 1}")


def freeze_embeddings(model: Any) -> None:
    """Keep the input embedding, which encoder and decoder share, and the output head as they are in training."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.requires_grad_(False)
