"""Models and tokenizers from an embedded name, a folder, a .gguf file or a hub id. safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.errors import ModelError, PotstillError
from potstill.models import adapter_folder, embedded
from potstill.models.architectures import built
from potstill.models.layout import auto_class, is_encoder_decoder
from potstill.models.quiet import quiet
from potstill.types import PAIR_MARK

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    ``stored_dtype`` is the type its weights have on disk, ``size_on_disk`` their bytes there.
    """

    name: str
    model: Any
    tokenizer: Any
    stored_dtype: torch.dtype
    size_on_disk: int


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    allow_remote_code: bool = False,
    loading: Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a causal or an encoder-decoder language model, ready to run and in evaluation mode.

    A folder with an adapter of peft's is loaded merged: as the model it names, with the adapter's changes.

    Args:
        name: an embedded name, a folder, a .gguf file or a hub id.
        dtype: of the weights in memory.
        device: where they go.
        revision: of a hub model.
        allow_remote_code: run Python that comes with the model. Never set from a recipe.
        loading: what transformers is told beside; a device_map among it says where the weights go, and not ``device``.
    Raises: ModelError with the way out, for anything that is not such a model.
    """
    if base := _base_of_adapter(name):
        return _load_merged(name, base, dtype, device, allow_remote_code)
    config = config_of(name, revision=revision, allow_remote_code=allow_remote_code)
    where, options = _where(name, revision, allow_remote_code)
    _check_weights(Path(where))
    options |= loading or {}
    model = _attempt(
        name, lambda: auto_class(config).from_pretrained(where, dtype=dtype, use_safetensors=True, **options)
    )
    tokenizer = load_tokenizer(name, revision=revision, allow_remote_code=allow_remote_code)
    size, stored = weights_size(Path(where), model), config.dtype or torch.float32
    placed = model if "device_map" in options else model.to(device)
    return Loaded(name, placed.eval(), tokenizer, stored, size)


def in_own_memory(model: Any) -> Any:
    """The model, its weights in memory of their own rather than in pages of the file they were read from.

    For one that is trained: its file may go or be written anew meanwhile. And where a weight begins in a file, off the
    boundaries that torch keeps to, may decide in what order a library adds up: a run that was resumed is to add as the
    one that was not.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu":
            weight.data = weight.data.clone()
    return model


def _load_merged(
    name: str, base: tuple[str, str | None], dtype: torch.dtype, device: torch.device | str, allow_remote_code: bool
) -> Loaded:
    """The model that an adapter names, with the adapter in its weights; ``size_on_disk`` is of both."""
    of, folder = load(base[0], dtype=dtype, revision=base[1], allow_remote_code=allow_remote_code), local_source(name)
    assert folder is not None  # it is where the base was found
    model = _attempt(name, lambda: adapter_folder.merged_into(of.model, folder))
    tokenizer = load_tokenizer(name, allow_remote_code=allow_remote_code)
    size = of.size_on_disk + weights_size(folder, model)
    return Loaded(name, model.to(device).eval(), tokenizer, of.stored_dtype, size)


def _base_of_adapter(name: str) -> tuple[str, str | None] | None:
    """The model that a folder's adapter is of, and its revision; None where the name is of a model."""
    folder = local_source(name)
    return adapter_folder.base_of(folder) if folder is not None and adapter_folder.is_adapter(folder) else None


def drawn(
    name: str,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    allow_remote_code: bool = False,
) -> Loaded:
    """A model of the architecture and with the tokenizer of another, whose weights are drawn: in float32, so that a
    seed gives the same ones in any precision.

    Args:
        name: whose config and tokenizer; it need not have weights. seed: of the draws; the process's own random state
            is left as it was. The others: as for ``load``.
    Raises: ModelError.
    """
    config = config_of(name, revision=revision, allow_remote_code=allow_remote_code)
    tokenizer = load_tokenizer(name, revision=revision, allow_remote_code=allow_remote_code)
    model = _attempt(name, lambda: built(config, seed=seed))
    stored = config.dtype or torch.float32
    size = sum(p.numel() for p in model.parameters()) * stored.itemsize
    return Loaded(name, model.to(device=device, dtype=dtype).eval(), tokenizer, stored, size)


def load_tokenizer(name: str, *, revision: str | None = None, allow_remote_code: bool = False) -> Any:
    """The tokenizer that belongs to a model; that of an encoder-decoder model is marked as one of pairs.

    Raises: ModelError, also for one without an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if (base := _base_of_adapter(name)) and not _has_tokenizer(name):
        return load_tokenizer(base[0], revision=base[1], allow_remote_code=allow_remote_code)
    where, options = _where(name, revision, allow_remote_code)
    tokenizer = _attempt(name, lambda: AutoTokenizer.from_pretrained(where, **options))
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{name}: its tokenizer has no end-of-sequence token", "set eos_token in tokenizer_config.json"
        )
    config = config_of(name, revision=revision, allow_remote_code=allow_remote_code)
    setattr(tokenizer, PAIR_MARK, is_encoder_decoder(config))
    return tokenizer


def _has_tokenizer(folder: str) -> bool:
    return any((Path(folder).expanduser() / file).is_file() for file in TOKENIZER_FILES)


def config_of(name: str, *, revision: str | None = None, allow_remote_code: bool = False) -> Any:
    """A model's config, without its weights."""
    from transformers import AutoConfig

    if base := _base_of_adapter(name):
        return config_of(base[0], revision=base[1], allow_remote_code=allow_remote_code)
    where, options = _where(name, revision, allow_remote_code)
    return _attempt(name, lambda: AutoConfig.from_pretrained(where, **options))


def output_rows(name: str, *, revision: str | None = None, allow_remote_code: bool = False) -> int:
    """Rows of a model's output embedding, padding included, without loading its weights."""
    config = config_of(name, revision=revision, allow_remote_code=allow_remote_code)
    return int(config.get_text_config().vocab_size)


def _where(name: str, revision: str | None, allow_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """What transformers is asked for, and how."""
    source = local_source(name)
    options: dict[str, Any] = {"trust_remote_code": allow_remote_code}
    if source is None:
        return name, options | {"revision": revision or "main"}
    return str(source), options | {"local_files_only": True}


def local_source(name: str) -> Path | None:
    """The folder a name stands for on this machine, or None for a hub id.

    Embedded names and .gguf files are converted once and then reused.
    """
    if name in embedded.NAMES:
        return embedded.folder(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        return embedded.converted(path)
    if path.is_dir():
        return _checked_folder(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{name}: there is no such folder", "give a model folder, a .gguf file, a hub id or an embedded name"
        )
    return None


def _checked_folder(path: Path) -> Path:
    if (path / "student" / "config.json").is_file():  # a run folder stands for its student
        return path / "student"
    if not (path / "config.json").is_file() and not adapter_folder.is_adapter(path):
        raise ModelError(
            f"{path}: no config.json in it, so it is not a model folder", "point at the folder that has it"
        )
    return path


def _check_weights(path: Path) -> None:
    """Refuse a folder without weights that are read."""
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path}: no .safetensors weights in it; other formats can run code when loaded and are not read",
            "convert it once with save_pretrained(..., safe_serialization=True) in a place you trust; "
            "student.kind=fresh takes its architecture alone",
        )


def _attempt(name: str, load: Any) -> Any:
    """Run a loader, without its own progress bars; whatever goes wrong becomes one line that says what to do."""
    quiet()
    try:
        return load()
    except PotstillError:  # the user stopped it: that is no fault of the model
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name}: it comes with Python code of its own, which is not run",
                "add --allow-remote-code if you trust it",
            ) from error
        if isinstance(error, OSError) and local_source(name) is None:
            raise ModelError(
                f"{name}: not found here and not reachable on a model hub",
                f"name a folder or an embedded model ({', '.join(embedded.NAMES)}), or check HF_HUB_OFFLINE",
            ) from error
        raise ModelError(
            f"{name}: cannot be loaded: {first}",
            "check that the folder is complete and the model is causal or encoder-decoder",
        ) from error


def weights_size(folder: Path, model: Any) -> int:
    """Bytes of the weights on disk, or what they would take where the folder is not here."""
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return on_disk or sum(p.numel() * p.element_size() for p in model.parameters())
