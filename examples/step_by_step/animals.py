"""Does a sentence mention an animal? Rows, tokenizers and two tiny architectures to learn it with.

The task is one that a model of 150,000 parameters can learn, with rationales that are true by
construction. Sentences are TinyStories' (CDLA-Sharing-1.0); test sentences are of other stories than train ones.

    python animals.py OUT        writes train.jsonl, test.jsonl, t5/ and llama/ into the folder OUT
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast, T5Config

from potstill.data.catalogue.loading import data_root

NUM_TRAIN, NUM_TEST = 576, 700  # of the first, 64 are for validation
VOCAB, WIDTH, LAYERS, HEADS = 512, 48, 2, 4
WORDS = """
    ant bear bee bird bug bunny butterfly cat chicken cow crab deer dog dolphin dragonfly duck elephant fish fly
    fox frog giraffe goat goose hamster hen horse kitten kitty ladybug lamb lion lizard monkey mouse octopus owl
    panda parrot penguin pig pony puppy rabbit rat sheep shark snail snake spider squirrel swan tiger turtle
    whale wolf worm zebra
"""
ANIMALS = WORDS.split()
IRREGULAR = {"mice": "mouse", "geese": "goose", "wolves": "wolf", "bunnies": "bunny", "puppies": "puppy",
             "ponies": "pony", "butterflies": "butterfly", "kitties": "kitty", "flies": "fly"}  # fmt: skip
NAMES = {name: name for name in ANIMALS} | {f"{name}s": name for name in ANIMALS} | IRREGULAR
# "fly" and "duck" are verbs as well: a sentence with one of these and no other animal is left out.
DOUBTFUL = {"fly", "flies", "flys", "duck", "ducks", "bear", "bears", "bug", "bugs"}


def sentences(file: Path) -> Iterator[str]:
    """Sentences of 5 to 20 words, each once."""
    seen: set[str] = set()
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            for sentence in re.split(r"(?<=[.!?])\s+", json.loads(line)["text"]):
                text = " ".join(sentence.split())
                if 5 <= len(text.split()) <= 20 and text[-1] in ".!?" and '"' not in text and text not in seen:
                    seen.add(text)
                    yield text


def row_of(sentence: str) -> dict[str, str] | None:
    """The sentence with its label and why; None where a word leaves it in doubt."""
    words = re.findall(r"[a-z]+", sentence.lower())
    certain = [word for word in words if word in NAMES and word not in DOUBTFUL]
    if not certain and DOUBTFUL.intersection(words):
        return None
    why = f"it says {certain[0]}, which is an animal." if certain else "it names no animal."
    return {"prompt": sentence, "response": "yes" if certain else "no", "rationale": why}


def balanced(file: Path, count: int) -> list[dict[str, str]]:
    """As many rows of either label, in a drawn order that is always the same."""
    rows = [row for sentence in sentences(file) if (row := row_of(sentence))]
    random.Random(0).shuffle(rows)
    half = count // 2
    chosen = [row for label in ("yes", "no") for row in [r for r in rows if r["response"] == label][:half]]
    random.Random(1).shuffle(chosen)
    return [{"id": f"{file.stem}-{at}", **row} for at, row in enumerate(chosen)]


def tokenizer(texts: Iterator[str], *, encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE. That of an encoder-decoder model puts its end behind a source, as T5's does."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    if encoder_decoder:
        raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


def write_models(out: Path, stories: Path) -> None:
    """Folders with a config and a tokenizer each, without weights: a run draws them by its seed."""
    shape: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 1}
    begins: dict[str, Any] = {"decoder_start_token_id": 0}  # which T5Config takes, and its signature does not name
    t5 = T5Config(
        **shape, **begins, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=3 * WIDTH, num_layers=LAYERS,
        num_decoder_layers=LAYERS, num_heads=HEADS, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    llama = LlamaConfig(
        **shape, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    for name, config in (("t5", t5), ("llama", llama)):
        config.save_pretrained(out / name)
        tokenizer(sentences(stories), encoder_decoder=name == "t5").save_pretrained(out / name)


def main(out: Path) -> None:
    stories = data_root() / "tinystories"
    if not (stories / "train.jsonl").is_file():
        sys.exit(f"there is no {stories}/train.jsonl: set POTSTILL_DATA to a folder with tinystories/ in it")
    out.mkdir(parents=True, exist_ok=True)
    for split, source, count in (("train", "train", NUM_TRAIN), ("test", "valid", NUM_TEST)):
        rows = balanced(stories / f"{source}.jsonl", count)
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{split}.jsonl: {len(rows)} rows, {sum(row['response'] == 'yes' for row in rows)} of them yes")
    write_models(out, stories / "train.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "animals"))
