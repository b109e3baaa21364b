"""Tiny random models, tokenizers and batches: enough to be wrong in all the ways a real one can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from potstill.types import Batch

VOCAB = 300
TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "A small pot still makes a strong spirit from a weak wash.",
    "What is the colour of the sky? The sky is blue.",
    "Write a story about a goat. The goat ate the hat.",
]


def llama(
    seed: int = 0, *, layers: int = 3, vocab: int = VOCAB, hidden: int = 16, tied: bool = True
) -> LlamaForCausalLM:
    """A LLaMA of a few thousand parameters, with weights large enough to make confident predictions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0, *, layers: int = 3, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=16,
        n_layer=layers,
        n_head=4,
        n_positions=256,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose pad token is its end-of-sequence token, as with many real models."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    if chat:
        made.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    return made


def save(model: Any, folder: Path, *, chat: bool = False) -> Path:
    """A model folder like any other."""
    model.save_pretrained(folder)
    tokenizer(chat=chat).save_pretrained(folder)
    return folder


def rows(count: int = 40) -> list[dict[str, str]]:
    animals, verbs = ["goat", "fox", "dog", "owl", "hen"], ["ate", "saw", "made", "lost"]
    made = []
    for index in range(count):
        animal, verb = animals[index % 5], verbs[index // 5 % 4]
        response = f"The {animal} {verb} {index % 7 + 1} hats" + " and a pot" * (index % 3) + "."
        made.append({"prompt": f"Write a story about a {animal}, number {index}.", "response": response})
    return made


def data_file(folder: Path, count: int = 40) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(count)), encoding="utf-8")
    return file


def batch(lengths: list[tuple[int, int]], *, seed: int = 0, extra_left: int = 0, extra_right: int = 0) -> Batch:
    """Random tokens with the given (prompt, response) lengths, and more padding than needed where asked."""
    generator = torch.Generator().manual_seed(seed)
    width_p = max(p for p, _ in lengths) + extra_left
    width_r = max(r for _, r in lengths) + extra_right
    prompt_ids = torch.zeros(len(lengths), width_p, dtype=torch.long)
    response_ids = torch.zeros(len(lengths), width_r, dtype=torch.long)
    prompt_mask, response_mask = torch.zeros_like(prompt_ids).bool(), torch.zeros_like(response_ids).bool()
    for row, (p, r) in enumerate(lengths):
        prompt_ids[row, width_p - p :] = torch.randint(1, VOCAB, (p,), generator=generator)
        response_ids[row, :r] = torch.randint(1, VOCAB, (r,), generator=generator)
        prompt_mask[row, width_p - p :] = True
        response_mask[row, :r] = True
    return Batch(prompt_ids, prompt_mask, response_ids, response_mask, tuple(f"row:{i}" for i in range(len(lengths))))
