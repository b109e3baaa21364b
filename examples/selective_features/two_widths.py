"""Two models to be trained from scratch, 128 and 64 channels wide, with one tokenizer: configs, without weights.

    python examples/selective_features/two_widths.py OUT STORIES

STORIES is the file of rows that the tokenizer, a byte-level BPE of 512 tokens, is trained on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

VOCAB, LAYERS, HEAD = 512, 4, 32
WIDTHS = (128, 64)


def tokenizer(stories: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the stories' text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    rows = (json.loads(line) for line in stories.read_text(encoding="utf-8").splitlines())
    raw.train_from_iterator((f"{row['prompt']} {row['response']}" for row in rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


def config(width: int) -> LlamaConfig:
    """A LLaMA of that width; heads are of one size, so that a narrower model has fewer."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        architectures=["LlamaForCausalLM"],
    )


def main(out: Path, stories: Path) -> None:
    shared = tokenizer(stories)
    for width in WIDTHS:
        config(width).save_pretrained(out / f"d{width}")
        shared.save_pretrained(out / f"d{width}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
