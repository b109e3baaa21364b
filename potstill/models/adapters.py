"""Students that learn through an adapter: low-rank matrices beside frozen weights (LoRA, by peft).

The matrices are put into the model itself: no wrapper stands around it, so whoever looks for its layers, its base model
or its output embedding finds them where they were. ``mirrored`` is a second tree of modules on the same weights: a
teacher without the adapter, or the plain model that is exported.

Source: Hu et al. 2021, LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill import recipe as schema
from potstill.errors import CheckpointError, ModelError, nearest
from potstill.models import quantised
from potstill.models.adapter_folder import CONFIG, WEIGHTS, import_peft
from potstill.models.layout import is_encoder_decoder, stacks_of

NAME = "default"  # peft's word for the only adapter
BASE_FILE = "base.json"  # beside a checkpoint's adapter
PREFIX = "base_model.model."  # of the names in peft's files


@dataclass(frozen=True)
class Base:
    """What an adapter is beside.

    ``source`` is the model that it was made from and ``sha256`` of that one's files; ``cut`` says what was kept of it.
    ``name`` and ``revision`` are what others load the base by; None where it is in no folder yet.
    """

    source: str
    sha256: str
    cut: dict[str, Any]
    name: str | None = None
    revision: str | None = None


def attach(model: Any, settings: schema.Adapter, base: Base, *, seed: int) -> Any:
    """Put new matrices into a model, which says what it said before, and freeze everything else.

    Args:
        model: changed in place. settings: how large, and beside which layers. base: what the model is.
        seed: of the matrices; the process's own random state is left as it was.
    Raises: ConfigError without peft; ModelError for layers that are not there, or narrower than the rank.
    """
    peft = import_peft()
    targets = chosen_layers(model, settings)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_names(model, targets),
        use_rslora=settings.use_rslora,
        task_type="SEQ_2_SEQ_LM" if is_encoder_decoder(model.config) else "CAUSAL_LM",
        base_model_name_or_path=base.name,
        revision=base.revision,
    )
    # GPT-2 keeps its weights the other way round, as Conv1D, and peft warns where it is not told.
    config.fan_in_fan_out = not all(isinstance(module, nn.Linear) for module in targets.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.inject_adapter_in_model(config, model)
    model.adapter_base = base
    return model.eval()


def is_adapted(model: Any) -> bool:
    """Whether a model has an adapter in it."""
    return hasattr(model, "adapter_base")


def chosen_layers(model: Any, settings: schema.Adapter) -> dict[str, nn.Module]:
    """The linear layers that get matrices, by their full names. Raises: ModelError as ``attach``."""
    there = _linear_layers(model)
    wanted = settings.target_modules
    for target in wanted or ():
        if not any(_is_named(name, target) for name in there):
            kinds = sorted({name.rpartition(".")[2] for name in there})
            raise ModelError(
                f"target_modules names {target}, and the model's layers have no linear layer of that name",
                f"{nearest(target, kinds)}They have {', '.join(kinds)}",
            )
    chosen = {n: m for n, m in there.items() if wanted is None or any(_is_named(n, target) for target in wanted)}
    width, narrowest = min((min(_shape(module)), name) for name, module in chosen.items())
    if settings.rank > width:
        raise ModelError(
            f"the adapter's rank is {settings.rank}, and {narrowest} is only {width} wide",
            f"set student.adapter.rank to at most {width}, or leave that layer out of target_modules",
        )
    return chosen


def matrices(model: Any, settings: schema.Adapter) -> list[tuple[int, int]]:
    """The shapes of the matrices that an adapter would have in a model. Raises: ModelError as ``attach``."""
    widths = [_shape(module) for module in chosen_layers(model, settings).values()]
    return [shape for read, written in widths for shape in ((settings.rank, read), (written, settings.rank))]


def linear_entries(model: Any) -> int:
    """The numbers in linear layers inside the model's layers: what ``quantise_base`` holds in fewer bits."""
    return sum(read * written for read, written in map(_shape, _linear_layers(model).values()))


def _linear_layers(model: Any) -> dict[str, nn.Module]:
    from transformers.pytorch_utils import Conv1D

    found: dict[str, nn.Module] = {}
    for stack in stacks_of(model).values():
        for name, module in stack.layers.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                found[f"{stack.path}.{name}"] = module
    return found


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _names(model: Any, chosen: Mapping[str, nn.Module]) -> list[str]:
    """As peft takes them: the last part of the names where no other module has it, which is how people share them."""
    short = {name.rpartition(".")[2] for name in chosen}
    meant = {name for name, _ in model.named_modules() if any(_is_named(name, last) for last in short)}
    return sorted(short if meant == chosen.keys() else chosen)


def _shape(module: Any) -> tuple[int, int]:
    """Columns read and written; GPT-2's layers have no names for them."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return tuple(module.weight.shape)


# --- Two trees on the same weights ------------------------------------------------------------------------------------


def mirrored(model: Any) -> Any:
    """A second model of the same weights: its modules are its own, its parameters and buffers are the first one's.

    What is attached to, trained in or replaced in the one's modules the other does not see; a weight is held once.
    """
    held: list[Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        held += quantised.tensors_of(module)
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


@torch.no_grad()
def merged(model: Any, dtype: torch.dtype, *, with_adapter: bool = True) -> Any:
    """A plain model that says what the adapted one says; that stays as it is.

    Args:
        model: with an adapter in it, its weights quantised or not. dtype: of the plain model's weights.
        with_adapter: false for the model under the adapter.
    """
    plain = mirrored(model)
    for name, layer in [(name, module) for name, module in plain.named_modules() if _has_matrices(module)]:
        own = _dense(layer.get_base_layer(), model.dtype)
        if with_adapter:
            own.weight = nn.Parameter(own.weight + layer.get_delta_weight(NAME).to(own.weight), requires_grad=False)
        plain.set_submodule(name, own)
    for name, module in [(name, module) for name, module in plain.named_modules() if quantised.is_quantised(module)]:
        plain.set_submodule(name, _dense(module, model.dtype))
    for attribute in ("adapter_base", "peft_config", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(plain).pop(attribute, None)
    return _recast(plain, dtype).eval()


def _has_matrices(module: Any) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")


def _dense(module: Any, dtype: torch.dtype) -> Any:
    return quantised.dequantised(module, dtype) if quantised.is_quantised(module) else module


def _recast(model: Any, dtype: torch.dtype) -> Any:
    """The model with floating point weights of a type, in tensors of its own wherever that is another; ties stay."""
    recast: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, own in module.named_parameters(recurse=False):
            if own.is_floating_point():
                new = nn.Parameter(own.detach().to(dtype), requires_grad=False)
                setattr(module, name, recast.setdefault(id(own), new))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(dtype))
    return model


# --- On disk ----------------------------------------------------------------------------------------------------------


def save(model: Any, folder: Path, *, base_name: str | None = None) -> None:
    """Write the adapter alone, in peft's format, with what its base is.

    Args:
        base_name: what others load the base by, where it is not the one it was made from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = model.peft_config[NAME].to_dict() | {"inference_mode": True}
    if base_name is not None:
        told |= {"base_model_name_or_path": base_name, "revision": None}
    told = {key: sorted(value) if isinstance(value, set) else value for key, value in told.items()}
    _write_json(folder / CONFIG, told)
    _write_json(folder / BASE_FILE, asdict(model.adapter_base))
    weights = {f"{PREFIX}{name}": value.detach().contiguous().cpu() for name, value in _state(model).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def restore(model: Any, folder: Path) -> None:
    """Take over the matrices of an adapter that was saved from such a model.

    Raises: CheckpointError where it is beside another model, or of another shape.
    """
    then, now = json.loads((folder / BASE_FILE).read_text(encoding="utf-8")), asdict(model.adapter_base)
    for key, what in {"sha256": "has changed since", "cut": "is cut otherwise now"}.items():
        if then[key] != json.loads(json.dumps(now[key])):
            raise CheckpointError(
                f"{folder} is an adapter of {then['source']}, which {what}",
                "bring that model back as it was, or start a new run",
            )
    given = {name.removeprefix(PREFIX): value for name, value in load_file(folder / WEIGHTS).items()}
    if _shapes(given) != _shapes(_state(model)):
        raise CheckpointError(f"{folder} is not the adapter that the recipe asks for", "start a new run")
    import_peft().set_peft_model_state_dict(model, given, adapter_name=NAME)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _state(model: Any) -> dict[str, Tensor]:
    """The adapter's tensors by their names in peft's files, less the prefix."""
    found: dict[str, Tensor] = import_peft().get_peft_model_state_dict(
        model, adapter_name=NAME, save_embedding_layers=False
    )
    return found


def _write_json(file: Path, told: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def told(model: Any) -> dict[str, Any]:
    """What the adapter is, for the run's record."""
    config = model.peft_config[NAME]
    matrices = [p.numel() for name, p in model.named_parameters() if is_matrix(name)]
    return {
        "rank": config.r,
        "target_modules": sorted(config.target_modules),
        "num_parameters": sum(matrices),
        "of_parameters": num_parameters(model),
        "base_sha256": model.adapter_base.sha256,
    }


def num_parameters(model: Any) -> int:
    """Parameters of the model itself: those of its adapter, which is merged in the end, are left out."""
    return sum(quantised.entries(p) for name, p in model.named_parameters() if not is_matrix(name))


def is_matrix(name: str) -> bool:
    """Whether a parameter is of an adapter."""
    return ".lora_" in name
