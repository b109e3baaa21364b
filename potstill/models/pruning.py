"""Students cut from a larger model: some of its layers, everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.families import left_aligned
from potstill.types import Batch

# Where each architecture keeps its layers, under its base model. A new one joins by a line here.
LAYER_LISTS = ("layers", "decoder.layers", "h")
# Config keys that list one value for each layer.
PER_LAYER_KEYS = ("layer_types", "attention_layers", "mlp_layer_types")


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers of a model, in order.

    Raises: ModelError for a layout that is not known yet.
    """
    return model.base_model.get_submodule(_layers_path(model))


def choose_layers(
    model: Any, keep: int | Sequence[int], choose_by: str, batches: Sequence[Batch]
) -> tuple[tuple[int, ...], Float[Tensor, " layers"] | None]:
    """Which layers stay, in order, and the Block Influence of every layer where that decided.

    Args:
        model: what is cut.
        keep: how many layers, or which.
        choose_by: "block_influence" keeps those that change their input most, "even" spaces them evenly.
        batches: text to measure the influence on; about a thousand tokens are enough.
    Raises: ModelError where the model has no such layers.
    """
    total = len(layers_of(model))
    if not isinstance(keep, int):
        _check_indices(keep, total)
        return tuple(sorted(keep)), None
    if keep > total:
        raise ModelError(
            f"keep_layers is {keep} but the model has {total} layers", f"set student.keep_layers to at most {total}"
        )
    if choose_by == "even" or keep == total:
        return evenly_spaced(keep, total), None
    influence = block_influence(model, batches)
    return tuple(sorted(influence.topk(keep).indices.tolist())), influence


def evenly_spaced(keep: int, total: int) -> tuple[int, ...]:
    """``keep`` of ``total`` layers, first and last included, as DistilBERT takes them (arXiv:1910.01108)."""
    if keep == 1:
        return (0,)
    return tuple(round(index * (total - 1) / (keep - 1)) for index in range(keep))


@torch.no_grad()
def block_influence(model: Any, batches: Sequence[Batch]) -> Float[Tensor, " layers"]:
    """1 - cosine between what enters and what leaves each layer, mean over real tokens.

    Source: Men et al. 2024, ShortGPT, arXiv:2403.03853, equation 1.
    """
    layers = layers_of(model)
    sums = torch.zeros(len(layers), dtype=torch.float64)
    count = 0
    for batch in batches:
        ids, _ = left_aligned(batch)
        real = (
            torch.arange(ids.shape[1], device=ids.device)
            < (batch.prompt_mask.sum(1) + batch.response_mask.sum(1))[:, None]
        )
        count += int(real.sum())
        for index, (before, after) in enumerate(_through_layers(model, layers, ids)):
            similarity = torch.cosine_similarity(before[real].float(), after[real].float(), dim=-1)
            sums[index] += (1 - similarity).double().sum().cpu()
    return (sums / count).float()


def _through_layers(model: Any, layers: nn.ModuleList, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What enters and leaves each layer, taken by hooks: ``output_hidden_states`` ends after the final norm."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        entered = args[0] if args else kwargs["hidden_states"]
        seen.append((entered, output[0] if isinstance(output, tuple) else output))

    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        model.base_model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return iter(seen)


def cut_layers(model: Any, keep: Sequence[int]) -> Any:
    """A new model with only the layers ``keep``. Keeping all gives the same logits, bit for bit; ties stay."""
    from transformers import AutoModelForCausalLM

    _check_indices(keep, len(layers_of(model)))
    student = AutoModelForCausalLM.from_config(_cut_config(model.config, keep), dtype=model.dtype)
    student.load_state_dict(_cut_state(model, keep))
    student.tie_weights()
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).eval()


def _cut_config(config: Any, keep: Sequence[int]) -> Any:
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(keep)
    for key in PER_LAYER_KEYS:
        values = getattr(config, key, None)
        if isinstance(values, (list, tuple)):
            setattr(cut, key, [values[index] for index in keep])
    return cut


def _cut_state(model: Any, keep: Sequence[int]) -> dict[str, Tensor]:
    """The state dict with kept layers renumbered and the others left out."""
    prefix = f"{model.base_model_prefix}.{_layers_path(model)}."
    new_index = {str(old): str(new) for new, old in enumerate(keep)}
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith(prefix):
            index, rest = key[len(prefix) :].split(".", 1)
            if index not in new_index:
                continue
            key = f"{prefix}{new_index[index]}.{rest}"
        state[key] = value
    return state


def _layers_path(model: Any) -> str:
    for path in LAYER_LISTS:
        try:
            if isinstance(model.base_model.get_submodule(path), nn.ModuleList):
                return path
        except AttributeError:
            continue
    raise ModelError(
        f"{type(model).__name__}: where it keeps its layers is not known, so it cannot be cut",
        "name a ready student with student=MODEL, or add its layout to LAYER_LISTS in potstill/models/pruning.py",
    )


def _check_indices(keep: Sequence[int], total: int) -> None:
    wrong = [index for index in keep if index >= total]
    if wrong or len(set(keep)) != len(keep):
        problem = f"layer {wrong[0]} is not there: the model has {total}" if wrong else "a layer stands in it twice"
        raise ModelError(f"keep_layers: {problem}", f"list different layers from 0 to {total - 1}")


def freeze_embeddings(model: Any) -> None:
    """Keep the input embedding and the output head as they are while the rest is trained."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.requires_grad_(False)
