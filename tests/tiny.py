"""Tiny random models, tokenizers and batches: enough to be wrong in all the ways a real one can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

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


def t5(
    seed: int = 0,
    *,
    layers: int = 2,
    encoder_layers: int | None = None,
    gated: bool = False,
    tied: bool = True,
    vocab: int = VOCAB,
    hidden: int = 16,
    dropout: float = 0.0,
) -> T5ForConditionalGeneration:
    """A T5 of a few thousand parameters: of the first version, or of 1.1 where it is gated and not tied.

    Its relative bias is large, and changes within a few tokens, so that a wrong distance shows.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab,
        d_model=hidden,
        d_kv=4,
        d_ff=2 * hidden,
        num_layers=encoder_layers or layers,
        num_decoder_layers=layers,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=tied,  # which says whether logits are scaled: every T5 is made with one embedding
        dropout_rate=dropout,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(vocab, hidden))
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(6)
    return model.eval()


def bart(
    seed: int = 0, *, layers: int = 2, encoder_layers: int | None = None, vocab: int = VOCAB, positions: int = 128
) -> BartForConditionalGeneration:
    """A BART of a few thousand parameters, with a bias on its logits."""
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=vocab,
        d_model=16,
        encoder_layers=encoder_layers or layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=positions,
        init_std=0.2,
        dropout=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model.eval()


# Special tokens by their ids, and what is put around a text: of causal models, T5 and BART.
FRAMES = {
    "causal": (["<end>"], "$A"),
    "t5": (["<pad>", "<end>"], "$A <end>"),
    "bart": (["<begin>", "<pad>", "<end>"], "<begin> $A <end>"),
}


def tokenizer(*, chat: bool = False, kind: str = "causal") -> PreTrainedTokenizerFast:
    """A byte-level BPE that frames a text as models of a kind have it.

    A causal one's pad token is its end-of-sequence token, as with many real models.
    """
    special, frame = FRAMES[kind]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if kind != "causal":
        ids = [(token, special.index(token)) for token in special if token in frame]
        raw.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    pad = "<pad>" if "<pad>" in special else "<end>"
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token=pad)
    if chat:
        made.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    return made


def save(model: Any, folder: Path, *, chat: bool = False) -> Path:
    """A model folder like any other."""
    model.save_pretrained(folder)
    kind = model.config.model_type
    tokenizer(chat=chat, kind=kind if kind in FRAMES else "causal").save_pretrained(folder)
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
