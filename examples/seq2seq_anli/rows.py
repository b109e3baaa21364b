"""Everything that is trained and measured on: sentences to copy, animals, test rows of ANLI; and a small T5's shape.

Test rows never enter: the tokenizer and the copied sentences are of TinyStories' train file and ANLI's dev rows, and
copying is measured on TinyStories' valid file.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from settings import NUM_LAYERS, VOCAB_SIZE, WIDTH, Sizes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config

from potstill.data.catalogue import Item, load
from potstill.run import write_text

sys.path.append(str(Path(__file__).resolve().parents[1] / "step_by_step"))
from animals import balanced, sentences

ROUNDS = ("r1", "r2", "r3")
SHORT = 16  # words of a sentence that is copied


def write_all(data: Path, sizes: Sizes) -> None:
    """Write ``data/`` and ``t5/`` into the current folder.

    Args:
        data: the folder with ``tinystories/`` and ``anli/``.
        sizes: how many rows of each kind.
    """
    stories = {split: data / "tinystories" / f"{split}.jsonl" for split in ("train", "valid")}
    dev = [item for name in ROUNDS for item in _anli(data, f"{name}_dev")]
    copied = {"train": _drawn([*_short(stories["train"]), *_hypotheses(dev)]), "test": _drawn(_short(stories["valid"]))}
    for split, texts in copied.items():
        _write(f"copy_{split}", ({"prompt": text, "response": text} for text in texts[: sizes.copies[split]]))
    animals = {split: balanced(stories[name], sizes.animals[split]) for split, name in _SPLITS.items()}
    for at, name in enumerate(ROUNDS):
        _write(f"animals_{name}", animals["train"][at::3])
    _write("animals_test", ({**row, "options": ["yes", "no"]} for row in animals["test"]))
    _write("anli_test", (_labelled(item) for item in _anli(data, "r1_test")))
    examples = [*(item.example() for item in dev)]
    answered = (_as_trained_on(row) for row in [*examples, *animals_rows])
    write_model(Path("t5"), [*_stories(stories["train"]), *answered])


_SPLITS = {"train": "train", "test": "valid"}  # ours: TinyStories'


def write_model(folder: Path, texts: Iterable[str]) -> None:
    """A T5's config and a tokenizer for it, without weights: the run draws them by its seed."""
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=WIDTH, d_kv=WIDTH // 4, d_ff=2 * WIDTH, num_heads=4, num_layers=NUM_LAYERS,
        num_decoder_layers=NUM_LAYERS, dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    config.save_pretrained(folder)
    tokenizer(texts).save_pretrained(folder)


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts its end behind a source, as T5's does."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "</s>"]
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


def _anli(data: Path, split: str) -> tuple[Item, ...]:
    return load("anli", split, folder=data / "anli").items


def _as_trained_on(item: Item) -> str:
    """A row's prompt and what is to be answered, so that a label at the beginning of an answer is one token."""
    return f"{item.prompt}\n{item.references[0]}: {item.rationale}"


def _labelled(item: Item) -> dict[str, object]:
    """A row for the suite ``classification``, asked with the prompt that was trained on."""
    return {"id": item.id, "prompt": item.prompt, "response": item.references[0], "options": list(item.options)}


def _short(file: Path) -> Iterator[str]:
    return (text for text in sentences(file) if len(text.split()) <= SHORT)


def _hypotheses(items: Iterable[Item]) -> Iterator[str]:
    """Each once, in their order: several rows may share one."""
    found = (item.content.rsplit("\n", 1)[1] for item in items)
    return (text for text in dict.fromkeys(found) if len(text.split()) <= SHORT)


def _stories(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def _drawn(texts: Iterable[str]) -> list[str]:
    """In an order that is always the same."""
    found = list(dict.fromkeys(texts))
    random.Random(0).shuffle(found)
    return found


def _write(name: str, rows: Iterable[dict[str, object] | dict[str, str]]) -> None:
    write_text(Path("data", f"{name}.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
