"""Choose channels of any model on any rows, outside a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.data.examples import Tokenised
from potstill.data.prepare import prepare_all
from potstill.errors import ConfigError
from potstill.features.attribution import STEPS as STEPS
from potstill.features.choosing import Watch, choose, rows_sha256
from potstill.features.selection import Model, Selection, Wanted, kept_or_made
from potstill.models.devices import device_named
from potstill.models.families import check_projection, family_of, pack
from potstill.models.fingerprint import fingerprint_of
from potstill.models.layout import layers_of
from potstill.models.loading import load
from potstill.models.positions import check_positions
from potstill.recipe import Data

LIMIT = 128  # rows, ours: that is enough where the stability that is printed says so


def layers_named(text: str, total: int) -> tuple[int, ...]:
    """``last-3``, ``all``, or a list as ``0,5,9``, of so many layers. Raises: ConfigError."""
    if text == "all":
        return tuple(range(total))
    last = text.removeprefix("last-")
    if last != text and last.isdecimal() and 1 <= int(last) <= total:
        return tuple(range(total - int(last), total))
    words = [word.strip() for word in text.split(",")]
    if all(word.isdecimal() and int(word) < total for word in words):
        return tuple(sorted({int(word) for word in words}))
    missing = next((word for word in words if not (word.isdecimal() and int(word) < total)), text)
    raise ConfigError(
        f"layers {text!r}: {missing!r} is none of the model's, which has {total}",
        f"name them as all, last-{min(3, total)} or 0,{total - 1}",
    )


def attribute(
    name: str,
    data: Data,
    out: Path,
    *,
    layers: str,
    limit: int = LIMIT,
    batch_size: int = 8,
    device: str = "auto",
    allow_remote_code: bool = False,
    watch: Watch = iter,
    **wanted: Any,
) -> Selection:
    """The selection in ``out``, or, where that is not there yet, made of a model by name and a file of rows.

    Args:
        name: an embedded name, a folder, a .gguf file or a hub id. data: which rows, and how they are read.
        layers: "all", "last-3" or "0,5,9". limit: rows used, from the first. batch_size: of them at a time.
        device: auto, cpu, cuda or mps. watch: as for ``choose``. wanted: the other settings of ``Wanted``.
    Raises: ConfigError, also where ``out`` holds another selection; DataError, ModelError, NumericsError.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder", "name a file, such as channels.json")
    loaded = load(name, device=device_named(device), allow_remote_code=allow_remote_code)
    family = family_of(loaded.model)
    check_projection(family, name)
    pack(family)
    rows = prepare_all(data, loaded.tokenizer)[:limit]
    _check_lengths(loaded.model.config, rows)
    asked = Wanted(layers=layers_named(layers, len(layers_of(loaded.model))), **wanted)
    model = Model(name=name, fingerprint=fingerprint_of(name))
    shared: dict[str, Any] = {"batch_size": batch_size, "pad_id": loaded.tokenizer.eos_token_id, "watch": watch}

    def make() -> Selection:
        return choose(family, rows, asked, model=model, source=data.path, **shared)

    return kept_or_made(out, asked.settings(model.fingerprint, rows_sha256(rows)), make)


def _check_lengths(config: Any, rows: Sequence[Tokenised]) -> None:
    """Refuse rows that the model does not see the whole of. Raises: ModelError."""
    text = config.get_text_config()
    for row in rows:
        check_positions(text, len(row.prompt_ids), len(row.response_ids), f"row {row.example_id}")
