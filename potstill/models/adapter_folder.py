"""Adapters that lie in a folder of peft's own format, beside no model: what they are of, and the two made one."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, ModelError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path | None) -> bool:
    """Whether a folder holds an adapter and no model."""
    return folder is not None and (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> tuple[str, str | None]:
    """The model that an adapter is of, by name, and its revision.

    Raises: ModelError for an adapter that does not say, or whose weights are not safetensors.
    """
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name, revision = told.get("base_model_name_or_path"), told.get("revision")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{folder}: its {CONFIG} is damaged: {error}", "bring it back from a copy") from error
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{folder}: its {CONFIG} does not say which model it is an adapter of",
            "write the model's folder or hub id there as base_model_name_or_path",
        )
    if Path(name).expanduser().resolve() == folder.resolve():
        raise ModelError(f"{folder}: its {CONFIG} names itself as its model", "write the model's own folder there")
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder}: no {WEIGHTS} in it; other formats can run code when loaded and are not read",
            "save the adapter again with save_pretrained",
        )
    return name, revision


def merged_into(model: Any, folder: Path) -> Any:
    """The model with an adapter's changes added to its weights, in place: a plain model again.

    Raises: ModelError for a kind of adapter that cannot be added, or one of another model.
    """
    peft = import_peft()
    try:
        return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"{folder}: its adapter cannot be added to the model it names: {str(error).strip().splitlines()[0]}",
            "check base_model_name_or_path in its adapter_config.json, or merge it with the tool that made it",
        ) from error


def import_peft(module: str = "peft") -> Any:
    """peft or a part of it, when it is asked for: it is slow to import. Raises: ConfigError without the extra."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"adapters need peft, which cannot be imported: {error}", "pip install 'potstill[adapters]'"
        ) from error
