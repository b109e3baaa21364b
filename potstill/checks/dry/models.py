"""The models of a recipe at full size without their weights, and small ones of the same make on disk."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill import recipe as schema
from potstill.models.architectures import built, known_config
from potstill.models.layout import DECODER, ENCODER, stacks_of
from potstill.models.loading import config_of, load_tokenizer, local_source
from potstill.models.pruning import cut_layers
from potstill.models.quiet import quiet

LAYERS = 2  # of each stack that are tried
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tokenizer_config.json")
WIDTHS = (
    *("d_model", "d_ff", "d_kv", "hidden_size", "intermediate_size", "head_dim", "word_embed_proj_dim"),
    *("n_embd", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
)
Key = tuple[str, str | None]  # a model's name and its revision


@dataclass(frozen=True)
class Blueprint:
    """A model that a recipe names: ``model`` is at full size and takes no memory; ``tokenizer`` is None where there is
    none here, and ``folder`` where the config comes from the table of known architectures."""

    name: str
    model: Any
    tokenizer: Any | None
    folder: Path | None

    @property
    def layers(self) -> dict[str, int]:
        return layers_of_stacks(self.model)


def named_models(stage: schema.Stage) -> list[Key]:
    """Every model that a stage names, once."""
    found: list[Key] = []
    for teacher in stage.all_teachers.values():
        if isinstance(teacher, schema.Teacher):
            found.append((teacher.model, teacher.revision))
    match stage.student:
        case schema.PretrainedStudent() | schema.FreshStudent():
            found.append((stage.student.model, stage.student.revision))
        case schema.PrunedStudent(model=str(model)):
            found.append((model, None))
    return list(dict.fromkeys(found))


def blueprint(key: Key, allow_remote_code: bool) -> Blueprint:
    """A model from its config on this machine, else from the table of known architectures; no hub is asked.

    Raises: ModelError for one that is neither, or whose files are broken.
    """
    name, revision = key
    folder = local_source(name) or _cached(name, revision)
    if folder is None:
        return Blueprint(name, built(known_config(name), device="meta"), None, None)
    config = config_of(str(folder), allow_remote_code=allow_remote_code)
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    tokenizer = load_tokenizer(str(folder), allow_remote_code=allow_remote_code) if has_tokenizer else None
    return Blueprint(name, built(config, device="meta"), tokenizer, folder)


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the hub's cache, where its config has been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    except ValueError:  # no name of a hub model
        return None
    return Path(file).parent if isinstance(file, str) else None


def layers_of_stacks(model: Any) -> dict[str, int]:
    return {name: len(stack.layers) for name, stack in stacks_of(model).items()}


def small_config(full: Any, narrower: int) -> Any:
    """The config of a model with ``LAYERS`` layers in each stack, and its widths divided by ``narrower``."""
    counts = {name: min(LAYERS, total) for name, total in layers_of_stacks(full).items()}
    encoder = range(counts[ENCODER]) if ENCODER in counts else None
    with torch.device("meta"):
        config = deepcopy(cut_layers(full, range(counts[DECODER]), encoder).config)
    widths = {name: getattr(config, name, None) for name in WIDTHS}  # all of them first: some are aliases of others
    for name, width in widths.items():
        if isinstance(width, int):
            setattr(config, name, max(1, width // narrower))
    return config


def save_small(one: Blueprint, config: Any, tokenizer: Any, folder: Path, *, seed: int) -> None:
    """Write a small model of ``config`` as a model folder, with random weights in the precision of the model's own."""
    quiet()
    built(config, seed=seed).to(config.dtype or torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generation = one.folder and one.folder / "generation_config.json"
    if generation and generation.is_file():
        shutil.copy(generation, folder)
