"""What says whether two names mean one model: a hash of its files."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from potstill.hashes import file_sha256, files_sha256
from potstill.models.adapter_folder import CONFIG, base_of, is_adapter
from potstill.models.loading import local_source

TELLING = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)


def fingerprint_of(name: str) -> str:
    """SHA-256 of a model folder's weights, config and tokenizer; of the name itself where it is not on this machine.

    That of an adapter's folder is of the model it names as well.
    """
    folder = local_source(name)
    if folder is None:
        return sha256(name.encode()).hexdigest()
    own = files_sha256(filter(_counts, folder.iterdir()), folder)
    if not is_adapter(folder):
        return own
    told = (own, file_sha256(folder / CONFIG), fingerprint_of(base_of(folder)[0]))
    return sha256(" ".join(told).encode()).hexdigest()


def parts_of(name: str) -> dict[str, str]:
    """The same in two: what computes, and what makes ids of text. Of a model that is not on this machine its name."""
    folder = local_source(name)
    if folder is None or is_adapter(folder):
        return {"weights": fingerprint_of(name), "tokenizer": ""}
    files = [file for file in folder.iterdir() if _counts(file)]
    weights = [file for file in files if file.suffix == ".safetensors" or file.name == "config.json"]
    tokenizer = [file for file in files if file not in weights]
    return {"weights": files_sha256(weights, folder), "tokenizer": files_sha256(tokenizer, folder)}


def _counts(file: Path) -> bool:
    """Whether a file of a model folder says what the model is."""
    return file.suffix == ".safetensors" or file.name in TELLING
