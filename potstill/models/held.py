"""Models that are never trained and too large for their place: quantised, split over devices, or kept off them.

Whatever is done to the layers, ids go to the device of the input embedding and states come back there, where the output
embedding is, whole and as a plain matrix. So everything else reads such a model as any other.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from potstill.errors import ConfigError, ModelError
from potstill.models.devices import device_beside
from potstill.models.layout import is_encoder_decoder, stacks_of
from potstill.models.loading import DTYPES, Loaded, load
from potstill.models.quantised import settle
from potstill.recipe import Holding

TORCHAO = {"int8": "Int8WeightOnlyConfig", "int8_dynamic": "Int8DynamicActivationInt8WeightConfig"}


def load_held(
    name: str,
    held: Holding,
    *,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    allow_remote_code: bool = False,
) -> Loaded:
    """Load a model as a recipe wants it held.

    Args:
        name, revision, allow_remote_code: as for ``potstill.models.loading.load``.
        held: where its weights are to be, and in what they are stored.
        dtype, device: of the run, where ``held`` leaves them open.
    Raises: ConfigError for a device or a package that is not there; ModelError for a model that cannot be held so.
    """
    own, place = DTYPES.get(held.dtype, dtype), device_beside(held.device, device)
    options: dict[str, Any] = {"revision": revision, "allow_remote_code": allow_remote_code, "dtype": own}
    if held.offload == "cpu":
        loaded = load(name, device="cpu", **options)
        keep_layers_on_cpu(loaded.model, place)
        return loaded
    loading = _placement(held) | _bitsandbytes(held.quantise, own, place)
    first = torch.device("cpu") if held.quantise in TORCHAO else place
    loaded = load(name, device=first, loading=loading, **options)
    settle(loaded.model)
    if held.quantise in TORCHAO:
        quantise_layers(loaded.model, held.quantise, None if held.device_map else place)
    if held.device_map is not None:
        gather(loaded.model)
    return loaded


def _placement(held: Holding) -> dict[str, Any]:
    if held.device_map is None:
        return {}
    _package("accelerate", "teacher.device_map", "split")
    folder = {} if held.offload_folder is None else {"offload_folder": held.offload_folder}
    return {"device_map": held.device_map, **folder}


# --- Fewer bits -------------------------------------------------------------------------------------------------------


def _bitsandbytes(kind: str, dtype: torch.dtype, place: torch.device) -> dict[str, Any]:
    """What transformers is told, to quantise a model as it is read; it leaves the output embedding as it is."""
    if kind not in ("llm_int8", "nf4"):
        return {}
    _package("bitsandbytes", f"teacher.quantise={kind}", "quantised")
    _package("accelerate", f"teacher.quantise={kind}", "quantised")
    from transformers import BitsAndBytesConfig

    if kind == "llm_int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        # QLoRA's: Dettmers et al. 2023, arXiv:2305.14314, sections 2 and 3.
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": place}}


def quantise_layers(model: Any, kind: str, place: torch.device | None) -> None:
    """Store every matrix but the output embedding in 8 bits, by torchao; embeddings that are looked up stay too.

    Args:
        kind: int8, of weights alone, or int8_dynamic, of what is multiplied with them too.
        place: where each matrix is brought, one by one; None where they are in place.
    Raises: ConfigError without torchao; ModelError where the model has no such matrices.
    """
    torchao = _package("torchao.quantization", f"teacher.quantise={kind}", "quantised")
    head = model.get_output_embeddings()
    chosen = {module for module in model.modules() if isinstance(module, nn.Linear) and module is not head}
    if not chosen:
        raise ModelError(
            f"{type(model).__name__}: none of its layers' matrices is a Linear, which torchao quantises",
            "set teacher.quantise to nf4 or llm_int8",
        )
    config = getattr(torchao, TORCHAO[kind])()
    torchao.quantize_(model, config, filter_fn=lambda module, _: module in chosen, device=place)
    if place is not None:
        model.to(place)


def bytes_held(model: nn.Module) -> int:
    """Bytes of a model's weights as they are stored, scales and tables of quantised ones included; shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    stored = [part for tensor in tensors for part in (*_stored(tensor), *_of_four_bits(tensor))]
    # Of bitsandbytes' 8 bits the scales are the module's.
    scales = [getattr(getattr(module, "state", None), "SCB", None) for module in model.modules()]
    found = [*stored, *(scale for scale in scales if scale is not None)]
    return sum({(part.device, part.data_ptr() or id(part)): part.nbytes for part in found}.values())


def _of_four_bits(tensor: Any) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a matrix of 4 bits: scales, the scales' own, and tables."""
    state = getattr(tensor, "quant_state", None)
    parts = [getattr(one, name, None) for one in (state, getattr(state, "state2", None)) for name in ("absmax", "code")]
    return [part for part in parts if part is not None]


def _stored(tensor: Any) -> list[torch.Tensor]:
    """The plain tensors that a quantised one is made of; itself where it is plain."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]


# --- Other places -----------------------------------------------------------------------------------------------------


def keep_layers_on_cpu(model: Any, place: torch.device) -> None:
    """Keep the layers' weights in the processor's memory, from where each goes to ``place`` when it is run; embeddings
    and what is between layers and head are on ``place``.

    Args:
        model: on the CPU.
    Raises: ConfigError without accelerate; ModelError for a model whose layers are not known.
    """
    accelerate = _package("accelerate", "teacher.offload=cpu", "kept off its device")
    layers = [layer for stack in stacks_of(model).values() for layer in stack.layers]
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(place)
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(place))
    for layer in layers:
        accelerate.cpu_offload(layer, execution_device=place, offload_buffers=True)


def gather(model: Any) -> None:
    """Have a split model take ids and give states in one place, its input embedding's, and its output embedding there.

    Raises: ModelError where the input embedding is on no device.
    """
    home = model.device
    if home.type == "meta":
        raise ModelError(
            "the device_map has the input embedding on disk or off its device",
            "put it, the first module of the model, on a device",
        )
    hooks = _package("accelerate.hooks", "teacher.device_map", "split")
    skipped = getattr(model, "_skip_keys_device_placement", None)
    parts = [model.get_encoder(), model.get_decoder()] if is_encoder_decoder(model.config) else [model.base_model]
    for part in parts:
        hooks.add_hook_to_module(part, hooks.AlignDevicesHook(io_same_device=True, skip_keys=skipped), append=True)
    head = model.get_output_embeddings()
    if head.weight.device != home:
        model.set_output_embeddings(_whole(head, home))


def _whole(head: nn.Linear, home: torch.device) -> nn.Linear:
    """A copy of an output embedding on a device, from wherever accelerate has put its numbers."""
    hook = getattr(head, "_hf_hook", None)
    stored = getattr(hook, "weights_map", None)
    copy = nn.Linear(head.in_features, head.out_features, head.bias is not None, device="meta")
    for name, parameter in head.named_parameters(recurse=False):
        value = stored[name] if parameter.is_meta and stored is not None else parameter
        setattr(copy, name, nn.Parameter(value.to(home), requires_grad=False))
    return copy


def _package(name: str, setting: str, what: str) -> Any:
    """An optional package. Raises: ConfigError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = "large" if package == "accelerate" else "quantised"
        raise ConfigError(
            f"{setting} has the teacher {what} by {package}, which cannot be imported: {error}",
            f"pip install 'potstill[{extra}]', or leave {setting.partition('=')[0]} out",
        ) from error
