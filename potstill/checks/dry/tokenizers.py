"""A tokenizer for a model whose own is not on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.data.datasets import train_place
from potstill.data.reader import Row, read_rows
from potstill.errors import ModelError
from potstill.models.layout import is_encoder_decoder
from potstill.recipe import Data
from potstill.types import PAIR_MARK

if TYPE_CHECKING:
    from potstill.checks.dry.models import Blueprint

BYTES, MERGED = 256, 1000  # tokens
# A turn a line, and the answer's turn begun.
CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


@dataclass(frozen=True)
class Chosen:
    """A model's tokenizer: its ``own``, or ``what`` stands in for it."""

    tokenizer: Any
    own: bool = True
    what: str = ""


def tokenizers_of(prints: Iterable[Blueprint], *, chat: bool) -> dict[str, Chosen]:
    """By a model's name: its own tokenizer, that of a model of its kind, or one that is made up.

    Args:
        chat: whether one that is made up has a chat template.
    """
    prints = list(prints)
    return {one.name: _chosen(one, prints, chat) for one in prints}


def _chosen(one: Blueprint, prints: Iterable[Blueprint], chat: bool) -> Chosen:
    if one.tokenizer:
        return Chosen(one.tokenizer)
    for kin in prints:
        if kin.tokenizer and _alike(one.model.config, kin.model.config):
            return Chosen(kin.tokenizer, False, f"that of {kin.name}")
    made = stand_in_tokenizer(one.model.config, chat=chat)
    return Chosen(made, False, "a byte-level one, its special tokens at their ids")


def _alike(ours: Any, theirs: Any) -> bool:
    return all(getattr(ours, key, None) == getattr(theirs, key, None) for key in ("model_type", "vocab_size"))


def starter_rows() -> list[dict[str, Any]]:
    """potstill's own train rows: ``prompt``, ``response``."""
    place = train_place(Data())
    assert isinstance(place, Path)
    return [row.values for row in read_rows(place) if isinstance(row, Row)]


def stand_in_tokenizer(config: Any, *, chat: bool) -> Any:
    """A byte-level BPE of the starter rows: as many tokens as the model has, its special tokens at their ids, a text
    framed as models of its kind have it.

    Args:
        chat: whether it has a chat template.
    Raises: ModelError for a vocabulary with no room for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = _special_ids(config)
    vocab, merges = _vocabulary(int(config.get_text_config().vocab_size), special)
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(special))
    begins, pair = "<begin>" in special, is_encoder_decoder(config)
    if begins or pair:
        frame = " ".join(["<begin>"] * begins + ["$A"] + ["<end>"] * pair)
        raw.post_processor = processors.TemplateProcessing(
            single=frame, special_tokens=[(token, at) for token, at in special.items() if token in frame]
        )
    pad = "<pad>" if "<pad>" in special else "<end>"
    begin = {"bos_token": "<begin>"} if begins else {}
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token=pad, **begin)
    if chat:
        made.chat_template = CHAT
    setattr(made, PAIR_MARK, pair)
    return made


def _special_ids(config: Any) -> dict[str, int]:
    """The tokens that the config has ids of, each id once."""
    text = config.get_text_config()
    end = text.eos_token_id[0] if isinstance(text.eos_token_id, list) else text.eos_token_id
    found = {"<end>": int(text.vocab_size) - 1 if end is None else int(end)}
    for token, name in (("<pad>", "pad_token_id"), ("<begin>", "bos_token_id")):
        at = getattr(text, name, None)
        if isinstance(at, int) and at >= 0 and at not in found.values():
            found[token] = at
    return found


def _vocabulary(size: int, special: dict[str, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """``size`` tokens with their ids, and the merges: bytes, pieces of the starter rows, and names without a text."""
    free = [at for at in range(size) if at not in special.values()]
    if len(free) < BYTES:
        raise ModelError(f"a vocabulary of {size} has no room for {BYTES} bytes", "download the model's tokenizer")
    pieces, merges = _trained(min(len(free), MERGED))
    rest = free[len(pieces) :]
    vocab = dict(zip(pieces, free, strict=False)) | {f"<unused {at}>": at for at in rest} | special
    return vocab, merges


def _trained(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator((f"{row['prompt']} {row['response']}" for row in starter_rows()), trainer)
    model = json.loads(raw.to_str())["model"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [(left, right) for left, right in pairs]
