"""TinyStories as two streams of tokens: what is trained on, and what is held out."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from settings import Settings
from store import published
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
HELD_OUT_SEED = 0


def data_folder() -> Path:
    """$POTSTILL_DATA, or the folder of data sets beside the repository.

    Raises: SystemExit where TinyStories is not in it.
    """
    folder = Path(os.environ.get("POTSTILL_DATA") or BESIDE) / "tinystories"
    if not (folder / "train.jsonl").is_file():
        raise SystemExit(f"no TinyStories in {folder}; set POTSTILL_DATA to the folder that holds tinystories/")
    return folder


def prepare(out: Path, settings: Settings) -> None:
    """Train the tokenizer on the training stories alone, and encode both splits, unless that is done."""
    if (out / "tokens.safetensors").exists():
        return
    stories = {split: _stories(data_folder() / f"{split}.jsonl") for split in ("train", "valid")}
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(stories["train"], vocab_size=settings.vocab_size, show_progress=False)
    tokens = {split: torch.tensor(tokenizer.encode("\n".join(rows)).ids) for split, rows in stories.items()}
    with published(out / "tokenizer.json") as path:
        tokenizer.save(str(path))
    with published(out / "tokens.safetensors") as path:
        save_file(tokens, path)


@cache
def streams(out: Path) -> dict[str, Int[Tensor, " token"]]:
    """The tokens of ``train`` and ``valid``, story after story; no end token stands between them."""
    return load_file(out / "tokens.safetensors")


def windows(tokens: Int[Tensor, " token"], count: int, length: int, seed: int) -> Int[Tensor, "window token"]:
    """Windows of a stream, anywhere in it, by the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - length + 1, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


def held_out(out: Path, settings: Settings) -> Int[Tensor, "window token"]:
    """The windows that every model is measured on: the same for all, none over another."""
    cut = streams(out)["valid"].unfold(0, settings.window_tokens, settings.window_tokens)
    chosen = torch.randperm(len(cut), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    return cut[chosen[: settings.held_out_windows].sort().values]


def _stories(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]
